"""Callbacks where they are served otherwise: by data processes that share a port, and by schedulers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.observing import until, write_config
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.topology import Up, make_config
from tests.harness.upstream import Upstream

from patchbay import errors
from patchbay.host_client import HostConnections
from patchbay.host_types import HostModelExecutionRequest, HTTPRequest
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Iterator

PLUGIN = Path(__file__).parent / "callbacks" / "plugin.py"
PICKER = PLUGIN.with_name("picker.py")


def addresses(up: Up) -> set[str]:
    """Return where the gateway's processes say that plugins may call back."""
    found = set()
    for line in up.processes["up"].log.read_text().splitlines(keepends=True):
        if "plugins may call back" in line and line.endswith("\n"):
            found.add(str(json.loads(line)["address"]))
    return found


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[bytes, Path, dict[str, Any], PluginProcess]]:
    """A root key, a directory, a configuration with a plugin that is granted everything, the plugin."""
    root = new_root()
    upstream = Upstream(tmp_path)
    plugin = PluginProcess(
        "alpha",
        PLUGIN,
        root,
        tmp_path,
        {"CALLER_ID": "alpha", "CALLER_LOG": str(tmp_path / "notes.jsonl")},
    )
    config = make_config(upstream.url)
    config["plugins"] = [
        {
            "id": "alpha",
            "address": plugin.address,
            "host_access": {"models": True, "http": {"hosts": ["*"]}, "auths": "all"},
        }
    ]
    plugin.start()
    yield root, tmp_path, config, plugin
    plugin.stop()


def ask(up: Up, *commands: dict[str, Any]) -> list[Any]:
    """Let the plugin do *commands*, once it is registered."""
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(
            f"{up.base_url}/v1/chat/completions",
            headers=up.headers(),
            json={
                "model": "alpha-x",
                "messages": [{"role": "user", "content": json.dumps(commands)}],
            },
            timeout=60,
            verify=False,
        )
        if answer.status_code == 200:
            found: list[Any] = json.loads(answer.json()["choices"][0]["message"]["content"])
            return found
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)  # polls another process: the plugin may not be registered there yet


def test_each_data_process_is_called_back_at_a_port_of_its_own(
    parts: tuple[bytes, Path, dict[str, Any], PluginProcess],
) -> None:
    root, directory, config, _ = parts
    up = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()}, workers=2)
    try:
        up.start()
        # Two of each data process, for its edge and its scheduler, and the control process's scheduler.
        until(lambda: len(addresses(up)) >= 5, 60, "each process says where it listens")
        for _ in range(8):  # a connection each: the kernel spreads them
            (found,) = ask(up, {"op": "model", "model": "echo"})
            assert found["status"] == 200
        assert len(addresses(up)) == 5
    finally:
        up.stop()


def test_no_port_is_open_while_nobody_is_granted_anything(
    parts: tuple[bytes, Path, dict[str, Any], PluginProcess],
) -> None:
    root, directory, config, _ = parts
    access = config["plugins"][0].pop("host_access")
    up = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    try:
        up.start()
        (found,) = ask(up, {"op": "model", "model": "echo"})
        assert found["reason"] == "HOST_NOT_REACHABLE"
        assert addresses(up) == set()
        config["plugins"][0]["host_access"] = access
        write_config(up, config)
        deadline = time.monotonic() + 60
        while found.get("status") != 200:
            (found,) = ask(up, {"op": "model", "model": "echo"})
            assert time.monotonic() < deadline, found
            time.sleep(0.1)  # polls another process
        # The edge's, which was asked, and the scheduler's.
        until(lambda: len(addresses(up)) == 2, 60, "the scheduler listens, too")
    finally:
        up.stop()


async def test_scheduler_knows_plugins_by_their_keys_and_runs_no_models(
    parts: tuple[bytes, Path, dict[str, Any], PluginProcess],
) -> None:
    root, directory, config, _ = parts
    up = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex(), "PATCHBAY_GRPC_PORT": "0"})
    body = b'{"model":"echo","messages":[]}'
    try:
        await asyncio.to_thread(up.start)
        await asyncio.to_thread(until, lambda: len(addresses(up)) == 2)
        reached = []
        for address in sorted(addresses(up)):
            own = HostConnections({"alpha": [plugin_key(root, "alpha")]}, host_address=address)
            foreign = HostConnections({"alpha": [b"another key".ljust(32)]}, host_address=address)
            client, stranger = own.client("alpha"), foreign.client("alpha")
            try:
                with pytest.raises(errors.Unauthenticated):
                    await stranger.log("info", "let me in")
                await client.log("info", "here I am")
                assert {a.id for a in await client.list_auths()} >= {"first", "second"}
                with pytest.raises(errors.PermissionDenied) as refused:
                    await client.http_do(HTTPRequest("http://169.254.169.254/latest/meta-data"))
                assert refused.value.reason == "HTTP_ADDRESS_REFUSED"
                try:
                    await client.execute_model(HostModelExecutionRequest("echo", body))
                except errors.FailedPrecondition as error:
                    reached.append(error.reason)
                except errors.UpstreamError:
                    reached.append("edge")
                else:
                    reached.append("edge")
            finally:
                await own.aclose()
                await foreign.aclose()
        assert sorted(reached) == ["NO_MODEL_CALLS_HERE", "edge"]
    finally:
        await asyncio.to_thread(up.stop)


def test_plugin_that_a_scheduler_asks_calls_the_scheduler_back(tmp_path: Path) -> None:
    root, log = new_root(), tmp_path / "notes.jsonl"
    picker = PluginProcess("picker", PICKER, root, tmp_path, {"CALLER_LOG": str(log)})
    config = make_config("http://127.0.0.1:9/v1")
    config["plugins"] = [
        {
            "id": "picker",
            "address": picker.address,
            "capabilities": ["scheduler"],
            "timeouts": {"scheduler": "20s"},
            "host_access": {"models": True, "auths": "all"},
        }
    ]
    picker.start()
    up = Up(tmp_path, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    try:
        up.start()
        deadline = time.monotonic() + 60
        while not log.exists() or "\n" not in log.read_text():
            answer = httpx.post(
                f"{up.base_url}/v1/chat/completions",
                headers=up.headers(),
                json={"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]},
                timeout=60,
                verify=False,
            )
            assert time.monotonic() < deadline, (answer.text, picker.tail())
            time.sleep(0.1)  # polls another process
        found = json.loads(log.read_text().splitlines()[0])
        assert found["models"] == "NO_MODEL_CALLS_HERE"
        assert {"first", "second"} <= set(found["auths"])
    finally:
        up.stop()
        picker.stop()
