"""
The plugins that a scheduler itself talks to: auth providers, scheduler plugins, plugins that tell models.

Registered with are the auth providers that a credential needs and every other plugin that may have one of
these capabilities; which it has only its handshake tells. Not here: the calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.keys import channel_key
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.dns import DnsResolver, named_settings
from patchbay_gateway.plugins.endpoints import EndpointsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.hooks import Hooks
from patchbay_gateway.plugins.registry import PluginRegistry, remote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import ProcessSettings
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot

CAPABILITIES: Final = frozenset({"auth_provider", "scheduler", "model_provider", "model_registrar"})
"""What a scheduler calls."""


@dataclass(frozen=True, slots=True)
class HostedPlugins:
    """Where they are, which take part, how they are called."""

    registry: PluginRegistry
    hooks: Hooks
    calls: PluginCalls

    async def apply(self, snapshot: Snapshot, needed: Collection[str]) -> None:
        """
        Register with the plugins of *snapshot* that may be called here.

        Args:
            snapshot: The newest.
            needed: Ids of the auth providers of credentials.
        """
        plugins = tuple(p for p in snapshot.plugins if p.id in needed or _may_serve(p))
        await self.registry.apply(msgspec.structs.replace(snapshot, plugins=plugins))


def _may_serve(plugin: PluginEntry) -> bool:
    if plugin.builtin:
        # Of the built-ins only auth providers serve schedulers, and only where a credential needs them.
        return False
    return not plugin.capabilities or not CAPABILITIES.isdisjoint(plugin.capabilities)


def host_plugins(
    settings: ProcessSettings,
    *,
    name: str,
    store: Store,
    roots: Roots,
    clock: Clock,
    local: Mapping[str, Channel] | None = None,
) -> HostedPlugins:
    """
    Return them, registered with nobody yet; whoever calls this closes the registry.

    Args:
        settings: Of this process.
        name: Of this process, for plugins.
        store: Redis.
        roots: Of which `plugins`.
        clock: Time.
        local: Plugins in this process, plugin id → channel.
    """

    async def keys(plugin_id: str) -> Sequence[bytes]:
        return [channel_key(plugin_key(root, plugin_id)) for root in roots.plugins]

    registry = PluginRegistry(
        host=Host(name, version("patchbay-gateway")),
        keys=keys,
        resolver=EndpointsResolver(
            DnsResolver(named_settings(settings.name_servers)), store=store, clock=clock
        ),
        clock=clock,
        local=local,
        builtin_address=settings.executors_address or None,
        connect=partial(remote, tls=settings.tls),
    )
    return HostedPlugins(registry, Hooks(registry), PluginCalls(registry))
