"""
The plugins that a usage service talks to, put together: registry, hooks, calls, fan-out.

Not here: what they do.
"""

from __future__ import annotations

import contextlib
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from patchbay.errors import Unavailable
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.dns import DnsResolver, named_settings
from patchbay_gateway.plugins.endpoints import EndpointsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.hooks import Hooks
from patchbay_gateway.plugins.instances import list_instances
from patchbay_gateway.plugins.registry import PluginRegistry, remote
from patchbay_gateway.plugins.usage_plugin import may_listen
from patchbay_gateway.usage.fan_out import FanOut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay.tls import Tls
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.lifecycle import Tasks
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.registry import ChannelKeys
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.usage.deliveries import Deliveries


@contextlib.asynccontextmanager
async def running_fan_out(
    deliveries: Deliveries,
    *,
    name: str,
    store: Store,
    holder: SnapshotHolder,
    keys: ChannelKeys,
    clock: Clock,
    tasks: Tasks,
    name_servers: str = "",
    tls: Tls | None = None,
) -> AsyncIterator[PluginRegistry]:
    """
    Offer rows to the plugins of the snapshot: all that becomes final once this is entered.

    Args:
        deliveries: What waits.
        name: Of this instance among those of kind `usage`.
        store: Redis.
        holder: Snapshots.
        keys: Channel keys of plugins.
        clock: Time.
        tasks: Owns the loops.
        name_servers: As in `dns.named_settings`.
        tls: Certificates for calls of plugins.
    """
    registry = PluginRegistry(
        host=Host(name, version("patchbay-gateway")),
        keys=keys,
        resolver=EndpointsResolver(
            DnsResolver(named_settings(name_servers)), store=store, clock=clock
        ),
        clock=clock,
        connect=partial(remote, tls=tls),
    )

    async def leads() -> bool:
        try:
            living = [i.id for i in await list_instances(store) if i.kind == "usage" and i.ready]
        except Unavailable:
            # Twice is better than never.
            return True
        return min(living, default=name) >= name

    fan_out = FanOut(
        deliveries,
        registry=registry,
        hooks=Hooks(registry),
        calls=PluginCalls(registry),
        snapshots=holder,
        leads=leads,
        clock=clock,
    )
    try:
        with contextlib.suppress(Unavailable):
            await fan_out.queue()
        tasks.start("usage-registry", _follow(holder, registry))
        tasks.start("usage-plugins", fan_out.run())
        yield registry
    finally:
        await registry.aclose()


async def _follow(holder: SnapshotHolder, registry: PluginRegistry) -> None:
    """Register with the plugins of each new snapshot that may listen."""

    async def apply(snapshot: Snapshot) -> None:
        plugins = tuple(p for p in snapshot.plugins if may_listen(p))
        await registry.apply(msgspec.structs.replace(snapshot, plugins=plugins))

    await holder.follow(apply)
