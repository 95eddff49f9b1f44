"""Formats that only a plugin can translate, through the whole gateway with real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.processes import free_port
from tests.harness.topology import Up, make_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., httpx.Response]]:
    """`patchbay up` beside a plugin with a format of its own and one that calls models; asks in OpenAI's."""
    directory = tmp_path_factory.mktemp("formats")
    root, host_port = new_root(), free_port()
    env = {
        "CALLER_ID": "alpha",
        "CALLER_LOG": str(directory / "notes.jsonl"),
        "PATCHBAY_HOST_ADDRESS": f"127.0.0.1:{host_port}",
    }
    whisper = PluginProcess("whisper", HERE / "formats" / "plugin.py", root, directory)
    alpha = PluginProcess("alpha", HERE / "callbacks" / "plugin.py", root, directory, env)
    patient = dict.fromkeys(("request_translator", "response_translator", "model_router"), "20s")
    config = make_config("http://127.0.0.1:9/v1")
    config["providers"].append({"name": "own", "plugin": "whisper", "models": ["whisper-1"]})
    config["plugins"] = [
        {"id": "whisper", "address": whisper.address, "timeouts": patient},
        {
            "id": "alpha",
            "address": alpha.address,
            "timeouts": patient,
            "host_access": {"models": True},
        },
    ]
    settings = {"PATCHBAY_PLUGINS_KEY": root.hex(), "PATCHBAY_GRPC_PORT": str(host_port)}
    gateway = Up(directory, config, settings)
    client = httpx.Client(
        base_url=gateway.base_url, headers=gateway.headers(), timeout=60, verify=False
    )

    def post(model: str, text: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return client.post("/v1/chat/completions", json=body)

    try:
        whisper.start()
        alpha.start()
        gateway.start()
        deadline = time.monotonic() + 90
        while {post(model, "[]").status_code for model in ("whisper-1", "alpha-x")} != {200}:
            assert time.monotonic() < deadline, (whisper.tail(), alpha.tail())
            time.sleep(0.05)  # polls other processes
        yield post
    finally:
        client.close()
        gateway.stop()
        whisper.stop()
        alpha.stop()


def test_answer_in_a_format_that_only_a_plugin_knows_reaches_the_client_in_its_own(
    ask: Callable[..., httpx.Response],
) -> None:
    answer = ask("whisper-1", "good day")
    assert answer.json()["choices"][0]["message"]["content"] == "good day"
    streamed = ask("whisper-1", "good day to you", stream=True)
    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    said = [json.loads(event)["choices"][0]["delta"]["content"] for event in events]
    assert said == ["good", "day", "to", "you"]


@pytest.mark.parametrize("model", ["echo", "whisper-1"])
def test_model_call_in_a_format_that_only_a_plugin_knows_goes_there_and_back(
    ask: Callable[..., httpx.Response], model: str
) -> None:
    """With `whisper-1` the executor answers in it too: translated to the dialect between, and back."""
    command = {"model": model, "entry": "whisper", "body": {"ask": "good day"}}
    answer = ask("alpha-x", json.dumps([{"op": "model", **command}, {"op": "stream", **command}]))
    whole, streamed = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert whole["body"] == {"said": "good day"}, whole
    said = [json.loads(c[6:])["said"] for c in streamed["chunks"] if "[DONE]" not in c]
    assert "".join(word for word in said if word).replace(" ", "") == "goodday"
