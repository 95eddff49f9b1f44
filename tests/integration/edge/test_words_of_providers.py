"""What reaches a provider for a thinking suffix, and what becomes of one that stays after its last word."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.topology import Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator


class World:
    """A provider and `patchbay up` before it."""

    def __init__(self, gateway: Up, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.client = httpx.Client(
            base_url=gateway.base_url, headers=gateway.headers(), timeout=90, verify=False
        )

    def chat(self, model: str = "fake-model", **fields: Any) -> httpx.Response:
        """Ask in the OpenAI dialect."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def asked(self) -> dict[str, Any]:
        """Return the last body that reached the provider."""
        found: dict[str, Any] = json.loads(self.upstream.records()[-1]["body"])
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Both, with an idle timeout that nobody would wait for."""
    directory = tmp_path_factory.mktemp("words")
    upstream = Upstream(directory)
    upstream.process.start(wait=90)
    streaming = {"end_grace": "500ms", "idle_timeout": "600s"}
    config = make_config(upstream.url, streaming=streaming)
    config["providers"][1]["models"].append(
        {"name": "fake-model@stall=end,chunks=4", "alias": "stays"}
    )
    gateway = Up(directory, config)
    try:
        gateway.start()
        found = World(gateway, upstream)
        yield found
        found.client.close()
    finally:
        gateway.stop()
        upstream.process.stop()


def test_level_in_the_models_name_reaches_the_provider_as_its_own_field(world: World) -> None:
    assert world.chat("fake-model(high)").status_code == 200
    asked = world.asked()
    assert (asked["model"], asked["reasoning_effort"]) == ("fake-model", "high")


def test_budget_in_the_models_name_becomes_a_level_of_the_provider(world: World) -> None:
    assert world.chat("fake-model(1024)").status_code == 200
    asked = world.asked()
    assert asked["model"] == "fake-model"
    assert asked["reasoning_effort"] in {"minimal", "low", "medium", "high"}


def test_model_without_a_setting_asks_for_none(world: World) -> None:
    assert world.chat().status_code == 200
    assert "reasoning_effort" not in world.asked()


def test_setting_survives_the_translation_from_another_dialect(world: World) -> None:
    body = {
        "model": "fake-model(low)",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hi"}],
    }
    answer = world.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    asked = world.asked()
    assert (asked["model"], asked["reasoning_effort"]) == ("fake-model", "low")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_stream_ends_though_its_provider_keeps_the_connection(world: World, path: str) -> None:
    body = {
        "model": "stays",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }
    answer = world.client.post(path, json=body)
    assert answer.status_code == 200
    last = "data: [DONE]" if "chat" in path else '"type":"message_stop"'
    assert last in answer.text.replace(": ", ":").replace("data:[DONE]", "data: [DONE]")
    assert "error" not in answer.text
