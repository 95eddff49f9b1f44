"""
Three plugins with unlike grants that call a gateway back as a request's text tells them, in both topologies.

Not here: tests, and callbacks where they are served otherwise (test_callbacks_elsewhere.py).
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.processes import free_port
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable


PLUGIN = Path(__file__).parent / "callbacks" / "plugin.py"
IDS = ("alpha", "beta", "gamma")
"""alpha may nearly everything, beta less, gamma nothing."""


@dataclass(slots=True)
class World:
    """All processes of one topology."""

    gateway: Up | Services
    plugins: dict[str, PluginProcess]
    upstream: Upstream
    log: Path
    auth_dir: Path
    host_port: int

    def ask(
        self,
        *commands: dict[str, Any],
        model: str = "alpha-x",
        headers: dict[str, str] | None = None,
    ) -> list[Any]:
        """Let a plugin do *commands* in a request of a client; return what they brought."""
        return self.say(json.dumps(commands), model, headers)

    def say(
        self, text: str, model: str = "alpha-x", headers: dict[str, str] | None = None
    ) -> list[Any]:
        """Do the commands in *text*."""
        answer = httpx.post(
            f"{self.gateway.base_url}/v1/chat/completions",
            headers={**self.gateway.headers(), **(headers or {})},
            json={"model": model, "messages": [{"role": "user", "content": text}]},
            timeout=60,
            verify=False,
        )
        assert answer.status_code == 200, answer.text
        found: list[Any] = json.loads(answer.json()["choices"][0]["message"]["content"])
        return found

    def notes(self) -> list[dict[str, Any]]:
        """Return what the plugins noted since the test began."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_note(self, fits: Callable[[dict[str, Any]], bool], limit: float = 60.0) -> Any:
        """Return the first note that fits, once it is there."""
        deadline = time.monotonic() + limit
        while True:
            for found in self.notes():
                if fits(found):
                    return found
            assert time.monotonic() < deadline, self.notes()
            time.sleep(0.05)  # polls other processes

    def ledger(self, question: str, *values: object, limit: float = 60.0) -> list[tuple[Any, ...]]:
        """Ask the ledger until it has an answer."""
        deadline = time.monotonic() + limit
        while True:
            with sqlite3.connect(
                f"file:{self.gateway.ledger_path}?mode=ro", uri=True, timeout=60
            ) as ledger:
                rows = ledger.execute(question, values).fetchall()
            if rows:
                return rows
            assert time.monotonic() < deadline, question
            time.sleep(0.1)  # polls another process


def make_world(kind: str, directory: Path) -> World:
    """Return the processes, not yet started."""
    root = new_root()
    upstream = Upstream(directory)
    log, auth_dir = directory / "notes.jsonl", directory / "auths"
    auth_dir.mkdir()
    host_port = free_port()
    env = {"CALLER_LOG": str(log), "PATCHBAY_HOST_ADDRESS": f"127.0.0.1:{host_port}"}
    plugins = {
        id_: PluginProcess(id_, PLUGIN, root, directory, {**env, "CALLER_ID": id_}) for id_ in IDS
    }
    config = make_config(upstream.url, auth_dir=str(auth_dir))
    config["providers"] += [
        {
            "name": "looping",
            "plugin": "alpha",
            "base_url": "http://127.0.0.1:9",
            "models": ["loop"],
            "credentials": [{"id": "alpha-key", "api_key": "test-alpha-key"}],
        }
    ]
    here = f"127.0.0.1:{upstream.port}"
    access = {
        "alpha": {"models": True, "http": {"hosts": [here]}, "auths": "own"},
        "beta": {"models": True, "http": {"hosts": ["127.*", "local*"]}, "auths": "all"},
        "gamma": {},
    }
    config["plugins"] = [
        {
            "id": id_,
            "address": plugins[id_].address,
            # Two hundred requests at once are on their way through them.
            "timeouts": {"request_interceptor": "60s", "model_router": "60s"},
            "host_access": access[id_],
        }
        for id_ in IDS
    ]
    settings = {"PATCHBAY_PLUGINS_KEY": root.hex()}
    gateway: Up | Services
    if kind == "up":
        gateway = Up(directory, config, {**settings, "PATCHBAY_GRPC_PORT": str(host_port)})
    else:
        gateway = Services(directory, config, settings)
        gateway.processes["edge"]._env["PATCHBAY_GRPC_PORT"] = str(host_port)
    for name, process in gateway.processes.items():
        if name != "valkey":
            process._env["PATCHBAY_PLUGINS_KEY"] = root.hex()
    return World(gateway, plugins, upstream, log, auth_dir, host_port)
