"""A gateway in both topologies with a plugin of the tests' own beside it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.topology import Gateway

SAMPLE = Path(__file__).parent / "sample" / "plugin.py"
PATIENT = {
    # One test waits for it to pass.
    "request_interceptor": "3s",
    **dict.fromkeys(
        (
            "frontend_auth_provider", "model_router", "request_normalizer", "response_interceptor",
            "response_stream_interceptor", "request_lifecycle_plugin",
        ),
        "60s",
    ),
}  # fmt: skip
"""Deadlines of a busy machine: a step whose plugin is late is passed by, which no test here is about."""


@dataclass(slots=True)
class World:
    """All processes of one topology."""

    gateway: Gateway
    plugin: PluginProcess
    upstream: Upstream
    log: Path

    def client(self, **headers: str) -> httpx.Client:
        """Return a client with the client key, or with *headers* alone."""
        given = {k.replace("_", "-"): v for k, v in headers.items()} or self.gateway.headers()
        return httpx.Client(base_url=self.gateway.base_url, headers=given, timeout=60, verify=False)

    def chat(self, text: str, model: str = "fake-model", **fields: Any) -> httpx.Response:
        """Ask in the OpenAI dialect."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        with self.client() as http:
            return http.post("/v1/chat/completions", json=body)

    def plugins(self) -> dict[str, dict[str, Any]]:
        """Return what the management API says of plugins."""
        return {p["id"]: p for p in self.gateway.managed("plugins")}

    def wait_registered(self, limit: float = 60.0) -> None:
        """Wait until the edge uses the plugin."""
        deadline = time.monotonic() + limit
        while not self.plugins()["sample"]["ready"]:
            assert time.monotonic() < deadline, (self.plugins()["sample"], self.plugin.tail())
            time.sleep(0.05)  # polls another process

    def lines(self) -> list[dict[str, Any]]:
        """Return what the plugin wrote down so far."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def ends(self, *answers: httpx.Response, limit: float = 60.0) -> list[dict[str, Any]]:
        """Return what the lifecycle plugin heard of the ends of *answers*, once it has heard of each."""
        wanted = {answer.headers["x-request-id"] for answer in answers}
        deadline = time.monotonic() + limit
        while True:
            found = [line for line in self.lines() if line["request"] in wanted]
            if {line["request"] for line in found} == wanted:
                return found
            assert time.monotonic() < deadline, (wanted, self.lines()[-9:])
            time.sleep(0.05)  # polls another process


@pytest.fixture(scope="session", params=["up", "services"])
def made_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The processes, not yet started."""
    directory = tmp_path_factory.mktemp(f"plugins-{request.param}")
    root = new_root()
    upstream = Upstream(directory)
    upstream.process.start()
    log = directory / "ends.jsonl"
    plugin = PluginProcess("sample", SAMPLE, root, directory, {"SAMPLE_LOG": str(log)})
    config = make_config(upstream.url)
    config["plugins"] = [
        {
            "id": "sample",
            "address": plugin.address,
            "timeouts": PATIENT,
            "config": {"greeting": "hello"},
        }
    ]
    kind = Up if request.param == "up" else Services
    gateway = kind(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    yield World(gateway, plugin, upstream, log)
    gateway.stop()
    plugin.stop()
    upstream.process.stop()


@pytest.fixture
def world(made_world: World) -> World:
    """All processes, running, the plugin registered."""
    if not made_world.plugin.running:
        made_world.plugin.start()
    made_world.gateway.start()
    made_world.wait_registered()
    return made_world
