"""
Plugins for a process that serves management and no clients: the control process of `patchbay up --workers N`.

Built-ins are left out: they run in the data processes. Not here: edges, which have a registry anyway.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.command_line import CommandLines
from patchbay_gateway.plugins.dns import DnsResolver, named_settings
from patchbay_gateway.plugins.endpoints import EndpointsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.hooks import Hooks
from patchbay_gateway.plugins.management_api import ManagementPlugins
from patchbay_gateway.plugins.registry import PluginRegistry, remote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay.tls import Tls
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.lifecycle import Tasks
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.registry import ChannelKeys
    from patchbay_gateway.plugins.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class HostedPlugins:
    """What management asks of plugins."""

    registry: PluginRegistry
    pages: ManagementPlugins
    command_lines: CommandLines


@contextlib.asynccontextmanager
async def management_plugins(
    *,
    store: Store,
    holder: SnapshotHolder,
    keys: ChannelKeys,
    clock: Clock,
    tasks: Tasks,
    name_servers: str = "",
    tls: Tls | None = None,
) -> AsyncIterator[HostedPlugins]:
    """
    Keep registered with the plugins of each new snapshot.

    Args:
        store: Redis.
        holder: Snapshots.
        keys: Channel keys of plugins.
        clock: Time.
        tasks: Owns the loop.
        name_servers: As in `dns.named_settings`.
        tls: Certificates for calls of plugins.
    """
    registry = PluginRegistry(
        host=Host(f"management-{secrets.token_hex(6)}", version("patchbay-gateway")),
        keys=keys,
        resolver=EndpointsResolver(
            DnsResolver(named_settings(name_servers)), store=store, clock=clock
        ),
        clock=clock,
        connect=partial(remote, tls=tls),
    )
    hooks, calls = Hooks(registry), PluginCalls(registry)
    pages = ManagementPlugins(registry, hooks, calls, lambda: holder.current)
    try:
        tasks.start("management-registry", _follow(holder, registry))
        yield HostedPlugins(registry, pages, CommandLines(hooks, calls, lambda: holder.current))
    finally:
        await pages.aclose()
        await registry.aclose()


async def _follow(holder: SnapshotHolder, registry: PluginRegistry) -> None:
    async def apply(snapshot: Snapshot) -> None:
        plugins = tuple(p for p in snapshot.plugins if not p.builtin)
        await registry.apply(msgspec.structs.replace(snapshot, plugins=plugins))

    await holder.follow(apply)
