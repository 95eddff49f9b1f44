"""
A host for plugins without a gateway around it: registry, hooks and calls, over either channel.

What tests of hooks need to ask a plugin as the pipeline would. Not here: the pipeline (topology.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patchbay.keys import channel_key
from patchbay.serve import PluginServer, build_servicers
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.dns import StaticResolver
from patchbay_gateway.plugins.execution import PluginExecution
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.hooks import Facts, Hooks
from patchbay_gateway.plugins.policy import POLICIES
from patchbay_gateway.plugins.registry import PluginRegistry
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from patchbay.capability import Plugin

KEY = b"a test's plugin key, 32 bytes..."
CHANNELS = ("inprocess", "grpc")
# A machine that does much else may answer half a second late; deadlines are what some tests name.
_PATIENT = {
    capability: 60.0
    for capability, row in POLICIES.items()
    if row.deadline is not None and row.deadline < 30
}


@dataclass(slots=True)
class Hosted:
    """A host and the plugins that it knows."""

    registry: PluginRegistry
    hooks: Hooks
    calls: PluginCalls
    snapshot: Snapshot

    def execution(self, **changes: Any) -> PluginExecution:
        """Return an execution of a chat in the OpenAI dialect, changed as said."""
        fields: dict[str, Any] = {
            "request_id": "01REQUEST",
            "trace_id": "trace-1",
            "snapshot": self.snapshot,
            "facts": Facts("openai", "gpt-5.5", client_key="laptop"),
            "operation": "chat",
            "stream": False,
            **changes,
        }
        return PluginExecution(**fields)


@contextlib.asynccontextmanager
async def hosting(
    plugins: Sequence[Plugin], channel: str = "inprocess", **entries: dict[str, Any]
) -> AsyncIterator[Hosted]:
    """
    Register *plugins* with a host of their own.

    Args:
        plugins: In order of priority.
        channel: `inprocess` or `grpc`: one server with all of them.
        entries: Plugin id (dashes as underscores) to fields of its entry in the snapshot. Deadlines that
            its `timeouts` do not name are long.
    """
    clock = SystemClock()
    keys = {plugin.id: [KEY] for plugin in plugins}
    local: dict[str, InProcessChannel] = {}
    server: PluginServer | None = None
    addresses: tuple[AddressEntry, ...] = ()
    if channel == "inprocess":
        local = {
            p.id: InProcessChannel(build_servicers([p], {p.id: [KEY]}), strict=True)
            for p in plugins
        }
    else:
        server = PluginServer(plugins, keys)
        port = await server.start("127.0.0.1:0")
        addresses = (AddressEntry(f"127.0.0.1:{port}"),)
    snapshot = Snapshot(
        1,
        plugins=tuple(
            PluginEntry(
                p.id,
                priority=len(plugins) - i,
                builtin=bool(local),
                addresses=addresses,
                **_patient(entries.get(p.id.replace("-", "_"), {})),
            )
            for i, p in enumerate(plugins)
        ),
    )

    async def channel_keys(_: str) -> list[bytes]:
        return [channel_key(KEY)]

    registry = PluginRegistry(
        host=Host("test-host", "0"),
        keys=channel_keys,
        resolver=StaticResolver({}),
        clock=clock,
        local=local,
    )
    try:
        await registry.apply(snapshot)
        missing = await registry.wait_ready(keys, 60)
        assert not missing, registry.states()
        yield Hosted(registry, Hooks(registry), PluginCalls(registry), snapshot)
    finally:
        await registry.aclose()
        for each in local.values():
            await each.close()
        if server is not None:
            await server.stop()


def _patient(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "timeouts": _PATIENT | entry.get("timeouts", {})}
