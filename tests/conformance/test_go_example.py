"""A plugin in Go that knows the contract and not our SDK: it builds, keeps every rule, serves a gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness import go_example
from tests.harness.plugin_process import new_root
from tests.harness.processes import PATCHBAY, Process, free_port
from tests.harness.topology import Up, make_config
from tests.harness.upstream import Upstream

from patchbay.testing.conformance import FAIL, PASS
from patchbay.testing.requests import CANARY
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The first build of a machine compiles gRPC.
pytestmark = [pytest.mark.requires("go"), pytest.mark.timeout(600)]

ID = "relay-go"
SEEN = frozenset(
    {
        "streams.order", "streams.backpressure", "streams.cancellation", "streams.interceptor",
        "provider.once", "provider.failure", "provider.truncated", "provider.secret",
        "calls.deadline", "calls.cancellation", "health.drain", "secrets.logs",
    }
)  # fmt: skip
"""Rules that must not be skipped for it."""
TIMED = frozenset({"streams.cancellation", "calls.cancellation", "calls.deadline"})


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    """What it imports."""
    go_example.need_modules()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin."""
    return go_example.build(tmp_path_factory.mktemp("relay-go"))


def judged(program: Path) -> dict[str, Any]:
    """Return the verdict of the verb that its README shows, which also sees its log and its end."""
    address = f"127.0.0.1:{free_port()}"
    done = subprocess.run(
        [
            str(PATCHBAY), "plugin", "check", address, "--id", ID, "--json",
            "--run", f"{program} -address {address}",
        ],
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_rule_is_kept(program: Path) -> None:
    """A busy machine may spoil what is timed, so of that the best of three counts."""
    for _ in range(3):
        report = judged(program)
        broken = {rule["id"]: rule["detail"] for rule in report["rules"] if rule["result"] == FAIL}
        if not broken or not set(broken) <= TIMED:
            break
    assert broken == {}
    assert report["passed"]
    assert {rule["id"] for rule in report["rules"] if rule["result"] == PASS} >= SEEN


def test_own_tests_pass() -> None:
    go_example.go("vet", ".")
    go_example.go("test", ".")


def test_generated_code_is_current(tmp_path: Path) -> None:
    """Of the contract as it stands, by the command of its README; comments of the contract may be older."""
    done = subprocess.run(
        [str(go_example.FOLDER / "generate.sh"), str(tmp_path)],
        env={**os.environ, "PROTOC": f"{sys.executable} -m grpc_tools.protoc"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    committed = go_example.FOLDER / "gen"
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.go")}
    assert made == {path.relative_to(committed) for path in committed.rglob("*.go")}
    stale = [path for path in made if code(tmp_path / path) != code(committed / path)]
    assert stale == [], "run `make proto`"


def code(path: Path) -> list[str]:
    """Return the lines of a Go file that are no comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [" ".join(line.split()) for line in lines if not line.lstrip().startswith("//")]


class World:
    """A gateway whose provider is called by the plugin."""

    def __init__(self, gateway: Up, plugin: Process, upstream: Upstream) -> None:
        self.gateway = gateway
        self.plugin = plugin
        self.upstream = upstream

    def chat(self, **fields: Any) -> httpx.Response:
        """Ask in the OpenAI dialect."""
        body = {"model": "relayed", "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx.post(
            f"{self.gateway.base_url}/v1/chat/completions",
            json=body, headers=self.gateway.headers(), timeout=60,
         verify=False)  # fmt: skip

    def wait_ready(self, limit: float = 90.0) -> None:
        """Wait until the gateway uses the plugin."""
        deadline = time.monotonic() + limit
        while True:
            found = self.gateway.managed("plugins")
            (told,) = (plugin for plugin in found if plugin["id"] == ID)
            if told["ready"]:
                return
            assert time.monotonic() < deadline, (told, self.plugin.tail())
            time.sleep(0.05)  # polls another process


@pytest.fixture(scope="module")
def world(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All processes; the plugin's log is looked through when all is done."""
    directory = tmp_path_factory.mktemp("relay-go-world")
    root, upstream, port = new_root(), Upstream(directory), free_port()
    key = plugin_key(root, ID).hex()
    plugin = Process(
        ID,
        [program, "-address", f"127.0.0.1:{port}"],
        env={"PATCHBAY_PLUGIN_KEY": key},
        directory=directory,
    )
    config = make_config(upstream.url)
    config["plugins"] = [
        {
            "id": ID,
            "address": f"127.0.0.1:{port}",
            "config": {"words": ["word3"]},
            "host_access": {"models": True},  # some grant, so that calls have a scope
            "timeouts": {"response_stream_interceptor": "60s"},  # on a busy machine too
        }
    ]
    config["providers"].append(
        {
            "name": "relayed",
            "plugin": ID,
            "base_url": upstream.url,
            "attempt_header": "x-patchbay-attempt",
            "models": ["relayed"],
            "cooldown": {"enabled": False},
            "credentials": [{"id": "relayed", "api_key": f"{CANARY}-relayed"}],
        }
    )
    gateway = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    found = World(gateway, plugin, upstream)
    try:
        upstream.process.start(wait=90)
        plugin.start()
        gateway.start()
        found.wait_ready()
        yield found
    finally:
        gateway.stop()
        if plugin.running:
            assert plugin.stop(60) == 0, plugin.tail()
        upstream.process.stop()
    log = plugin.log.read_text(encoding="utf-8")
    assert all(json.loads(line)["msg"] for line in log.splitlines())
    assert CANARY not in log
    assert key not in log


def test_gateway_answers_through_it(world: World) -> None:
    """Whole answers are no stream chunk interceptor's; the credential arrives upstream."""
    mark = new_root().hex()
    answer = world.chat(fake={"chunks": 5, "cached": 1, "mark": mark})
    assert answer.status_code == 200, (answer.text, world.plugin.tail())
    assert answer.json()["choices"][0]["message"]["content"].split()[3] == "word3"
    (record,) = (r for r in world.upstream.records() if mark in r["body"])
    assert record["headers"]["authorization"] == f"Bearer {CANARY}-relayed"
    assert record["attempt"].endswith("-1")


def test_gateway_streams_through_it_and_it_masks(world: World) -> None:
    answer = world.chat(stream=True, fake={"chunks": 6})
    assert answer.status_code == 200, (answer.text, world.plugin.tail())
    assert answer.headers["x-masked-by"] == ID
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert said.split() == ["word0", "word1", "word2", "*****", "word4", "word5"]


def test_it_calls_back_within_a_stream(world: World) -> None:
    """A line in the gateway's log, under the token that the contract describes."""
    deadline = time.monotonic() + 90
    log = ""
    while "words were masked" not in log:
        # Asked again: on a busy machine the plugin may give up the line to keep the stream.
        assert time.monotonic() < deadline, (log[-2000:], world.plugin.tail())
        assert world.chat(stream=True, fake={"chunks": 6}).status_code == 200
        log = world.gateway.processes["up"].log.read_text("utf-8")
    (line, *_) = (line for line in log.splitlines() if "words were masked" in line)
    assert json.loads(line)["plugin"] == ID


def test_failure_of_the_provider_reaches_the_client_whole(world: World) -> None:
    answer = world.chat(fake={"status": 400, "error": "no such thing"})
    assert answer.status_code == 400
    assert "no such thing" in answer.text


def test_truncated_answer_does_not_look_finished(world: World) -> None:
    answer = world.chat(stream=True, fake={"chunks": 6, "half_frame_after": 3})
    assert "[DONE]" not in answer.text
    assert "error" in answer.text


def test_its_attempts_are_in_the_ledger(world: World) -> None:
    """With the tokens that it read from the provider's stream."""
    answer = world.chat(stream=True, fake={"chunks": 7, "usage": "always"})
    assert answer.status_code == 200
    deadline = time.monotonic() + 60
    while True:
        rows = [row for row in world.gateway.usage() if row["model"] == "relayed"]
        if rows and rows[0]["output_tokens"] >= 7:
            return
        assert time.monotonic() < deadline, rows
        time.sleep(0.1)  # the ledger is another process
