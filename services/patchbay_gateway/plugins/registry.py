"""
Which plugins are there, where they are registered, and whom to call next.

The registry keeps each enabled plugin of the snapshot registered at each of its addresses, and forgets
what the snapshot no longer has. `pick` is asked per call and costs microseconds. A member is one plugin
at one address: in-process built-ins are members like any other. Not here: finding addresses
(addresses.py), the handshake itself (handshake.py), what a failed call means (kernel/outcomes.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors
from patchbay.handshake import config_hash
from patchbay.plugin.v1 import plugin_pb2
from patchbay.server import DEFAULT_MESSAGE_LIMIT, message_limit_for
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.kernel.logs import get_logger
from patchbay_gateway.plugins import handshake
from patchbay_gateway.plugins.addresses import Addresses, Health, Peer, split_target
from patchbay_gateway.plugins.describing import describe
from patchbay_gateway.plugins.handshake import Host, Refused
from patchbay_gateway.plugins.members import Member, Plugin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from patchbay.tls import Tls
    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.dns import Resolver
    from patchbay_gateway.plugins.snapshot import Snapshot

    ChannelKeys = Callable[[str], Awaitable[Sequence[bytes]]]
    """Plugin id to its channel keys, the newest first; may raise PatchbayError."""

    Connect = Callable[[str, int], Channel]
    """Makes the channel to `host:port` for messages up to so many bytes."""

FIRST_RETRY: Final = 0.5
MAX_RETRY: Final = 30.0
"""Seconds between handshakes that fail."""
MAX_KEYS_RETRY: Final = 2.0
"""The same while our own schedulers have no keys to give: services start side by side, none waits long."""

_log = get_logger("plugins.registry")


def remote(address: str, message_limit: int, tls: Tls | None = None) -> Channel:
    """Return a gRPC channel to *address*."""
    return RemoteChannel(address, message_limit=message_limit, tls=tls)


@dataclasses.dataclass(slots=True)
class Totals:
    """What this process did with one plugin; grows only, but for the last two."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    in_flight: int = 0
    states: tuple[str, ...] = ()
    """One per address (`Member.state`)."""

    def add(self, member: Member) -> None:
        """Add what went to *member*."""
        self.calls += member.calls
        self.errors += member.errors
        self.seconds += member.seconds


class PluginRegistry:
    """
    The plugins of the current snapshot.

    Args:
        host: Who this process is to plugins.
        keys: Where channel keys come from.
        resolver: Where addresses come from.
        clock: Paces polls and retries, dates tokens.
        local: Plugin id to the in-process channel of a built-in that runs here.
        builtin_address: `host:port` of built-ins that run elsewhere, several with commas; None when all
            run here.
        connect: Makes the channel to an address, for messages as large as the snapshot of that moment lets
            request bodies be.
    """

    def __init__(
        self,
        *,
        host: Host,
        keys: ChannelKeys,
        resolver: Resolver,
        clock: Clock,
        local: Mapping[str, Channel] | None = None,
        builtin_address: str | None = None,
        connect: Connect = remote,
    ) -> None:
        self._host = host
        self._keys = keys
        self._clock = clock
        self._builtin_address = builtin_address
        self._local = {
            plugin_id: Peer(f"inprocess:{plugin_id}", channel, clock, local=True)
            for plugin_id, channel in (local or {}).items()
        }
        for peer in self._local.values():
            peer.mark(Health.SERVING)
        self._plugins: dict[str, Plugin] = {}
        self._message_limit = DEFAULT_MESSAGE_LIMIT
        self._addresses = Addresses(
            resolver=resolver,
            connect=lambda address: connect(address, self._message_limit),
            clock=clock,
            on_change=self._target_changed,
        )
        self._past: dict[str, Totals] = {}
        """Plugin id → what went to addresses that are gone."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._closed = False
        self.generation = 0
        """Grows whenever what `pick` may answer changes."""

    async def apply(self, snapshot: Snapshot) -> None:
        """
        Take the plugins of *snapshot*; returns before they are registered (`wait_ready`).

        A closed registry takes none: a snapshot may come while its process ends.
        """
        if self._closed:
            return
        self._message_limit = message_limit_for(snapshot.settings.body_limit)
        wanted = snapshot.plugin_by_id
        for plugin_id in [id_ for id_ in self._plugins if id_ not in wanted]:
            gone = self._plugins.pop(plugin_id)
            self.generation += 1
            for member in gone.members.values():
                self._dismiss(member)
        for plugin_id, entry in wanted.items():
            plugin = self._plugins.get(plugin_id)
            if plugin is None:
                plugin = self._plugins[plugin_id] = Plugin(entry)
            plugin.entry = entry
            plugin.targets = self._targets(plugin)
        await self._addresses.keep(
            {target for plugin in self._plugins.values() for target in plugin.targets}
        )
        for plugin in self._plugins.values():
            self._reconcile(plugin)

    def executor(self, plugin_id: str) -> plugin_pb2.ExecutorCapability | None:
        """Return what every ready address of the plugin takes as an executor, None when none is ready."""
        plugin = self._plugins.get(plugin_id)
        return plugin.capability if plugin is not None else None

    def pick(self, plugin_id: str, exclude: Collection[str] = ()) -> Member | None:
        """Return an address to call: the less loaded of two; None when none is left."""
        plugin = self._plugins.get(plugin_id)
        return plugin.pick(exclude) if plugin is not None else None

    def pick_able(
        self, plugin_id: str, capability: str, exclude: Collection[str] = ()
    ) -> Member | None:
        """Return an address that declares *capability*; None when none is left."""
        plugin = self._plugins.get(plugin_id)
        return plugin.pick_able(capability, exclude) if plugin is not None else None

    def declared(self, plugin_id: str) -> frozenset[str]:
        """Return the flags that the plugin declared when it last was registered; empty before."""
        plugin = self._plugins.get(plugin_id)
        return plugin.declared if plugin is not None else frozenset()

    def needs(self, plugin_id: str) -> plugin_pb2.InterceptorNeeds:
        """Return what all addresses of the plugin do without."""
        plugin = self._plugins.get(plugin_id)
        return plugin.needs if plugin is not None else plugin_pb2.InterceptorNeeds()

    def declaring(self, plugin_id: str, capability: str) -> Sequence[plugin_pb2.RegisterResponse]:
        """Return what the ready addresses with *capability* answered to the handshake."""
        plugin = self._plugins.get(plugin_id)
        members = plugin.able.get(capability, ()) if plugin is not None else ()
        return [m.registration.response for m in members if m.registration is not None]

    def status(self) -> list[dict[str, Any]]:
        """Return what is registered and what is not, with the reasons, as plain JSON data."""
        return [describe(plugin, self._reasons(plugin)) for plugin in self._plugins.values()]

    def totals(self) -> dict[str, Totals]:
        """Return plugin id → what was called so far, and what its addresses are like now."""
        found = {plugin_id: dataclasses.replace(past) for plugin_id, past in self._past.items()}
        for plugin_id, plugin in self._plugins.items():
            total = found.setdefault(plugin_id, Totals())
            for member in plugin.members.values():
                total.add(member)
                total.in_flight += member.peer.in_flight
                total.states = (*total.states, member.state)
        return found

    def states(self) -> dict[str, str]:
        """Return plugin id → `ready` or the first reason why not."""
        return {
            plugin_id: "ready" if plugin.ready else "; ".join(self._reasons(plugin)) or "starting"
            for plugin_id, plugin in self._plugins.items()
        }

    async def wait_ready(self, ids: Iterable[str], timeout: float) -> frozenset[str]:  # noqa: ASYNC109 - the caller's patience, no error
        """Wait until each of *ids* has a ready address, at most *timeout* seconds; return those without."""
        wanted = frozenset(ids)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._missing(wanted):
                    self._news.clear()
                    await self._news.wait()
        return self._missing(wanted)

    async def aclose(self) -> None:
        """Forget every plugin and close the channels that were made here; local ones are their owner's."""
        self._closed = True
        for plugin in self._plugins.values():
            for member in plugin.members.values():
                self._dismiss(member)
        self._plugins.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._addresses.aclose()

    def _missing(self, wanted: frozenset[str]) -> frozenset[str]:
        return frozenset(id_ for id_ in wanted if not (p := self._plugins.get(id_)) or not p.ready)

    def _targets(self, plugin: Plugin) -> dict[str, tuple[str, int]]:
        entry = plugin.entry
        plugin.problems = []
        declared = {a.address: (a.revision, a.weight) for a in entry.addresses}
        if entry.builtin:
            declared = {}
            if entry.id not in self._local:
                declared = {
                    a.strip(): ("", 100) for a in (self._builtin_address or "").split(",") if a
                }
                if not declared:
                    plugin.problems.append("it runs nowhere: set PATCHBAY_EXECUTORS_ADDRESS")
        elif not declared:
            plugin.problems.append("the configuration names no address")
        for address in list(declared):
            try:
                split_target(address)
            except errors.InvalidRequest as error:
                # One bad declaration must not cost the others their registration.
                plugin.problems.append(error.message)
                del declared[address]
        return declared

    def _target_changed(self, target: str) -> None:
        for plugin in self._plugins.values():
            if target in plugin.targets:
                self._reconcile(plugin)

    def _reconcile(self, plugin: Plugin) -> None:
        """Give *plugin* one member per address, and each of them what it is to know."""
        entry = plugin.entry
        config = entry.config.encode()
        found: dict[str, tuple[Peer, str, int]] = {}
        if entry.builtin and entry.id in self._local:
            peer = self._local[entry.id]
            found[peer.address] = (peer, "", 100)
        for target, (revision, weight) in plugin.targets.items():
            for peer in self._addresses.peers(target):
                found.setdefault(peer.address, (peer, revision, weight))
        for address, member in list(plugin.members.items()):
            if address not in found or found[address][0] is not member.peer:
                self._dismiss(plugin.members.pop(address))
        for address, (peer, revision, weight) in found.items():
            member = plugin.members.get(address)  # type: ignore[assignment] # None is made good below
            if member is None:
                member = Member(entry.id, peer, config, lambda: self._changed(plugin), self._clock)
                plugin.members[address] = member
                member.task = asyncio.get_running_loop().create_task(
                    self._tend(plugin, member), name=f"plugin {entry.id} at {address}"
                )
                self._tasks.add(member.task)
                member.task.add_done_callback(self._ended)
            member.revision, member.weight, member.config = revision, float(weight), config
            member.wake.set()
        self._changed(plugin)

    def _changed(self, plugin: Plugin) -> None:
        plugin.refresh()
        self.generation += 1
        self._news.set()

    def _dismiss(self, member: Member) -> None:
        if member.calls:
            self._past.setdefault(member.plugin_id, Totals()).add(member)
        if member.task is not None:
            member.task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task crashed", task=task.get_name(), exc_info=error)

    async def _tend(self, plugin: Plugin, member: Member) -> None:
        """Keep *member* registered, for ever."""
        pause = FIRST_RETRY
        while True:
            member.wake.clear()
            if not member.peer.serving or (
                member.registered
                and member.registration is not None
                and member.registration.config_hash == config_hash(member.config)
            ):
                pause = FIRST_RETRY
                await member.wake.wait()
                continue
            longest = MAX_KEYS_RETRY
            try:
                keys = () if member.registered else await self._keys(member.plugin_id)
                longest = MAX_RETRY
                await self._shake(member, keys)
            except (Refused, errors.PatchbayError) as error:
                reasons = (
                    error.reasons if isinstance(error, Refused) else (handshake.explain(error),)
                )
                if reasons != member.reasons:
                    _log.warning(
                        "plugin not registered",
                        plugin=member.plugin_id,
                        address=member.address,
                        reasons=reasons,
                    )
                member.reasons = reasons
            except Exception as error:  # noqa: BLE001 - one that is left alone would never be registered
                _log.error(
                    "handshake crashed",
                    plugin=member.plugin_id,
                    address=member.address,
                    exc_info=error,
                )
                member.reasons = (f"the handshake crashed: {type(error).__name__}",)
            else:
                _log.info("plugin registered", plugin=member.plugin_id, address=member.address)
                self._changed(plugin)
                continue
            self._changed(plugin)
            await self._pause(member, min(pause, longest))
            pause = min(pause * 2, longest)

    async def _shake(self, member: Member, keys: Sequence[bytes]) -> None:
        generation, config = member.peer.generation, member.config
        if member.registered and member.registration is not None:
            registration = await handshake.reconfigure(
                member.channel, self._host, member.plugin_id, config, member.registration
            )
        else:
            registration = await handshake.register(
                member.channel, self._host, member.plugin_id, config, keys
            )
        member.accept(registration, generation, self._host.id)

    async def _pause(self, member: Member, seconds: float) -> None:
        """Wait *seconds*, or until something about *member* has changed."""
        await pause(self._clock, seconds, member.wake)

    def _reasons(self, plugin: Plugin) -> list[str]:
        reasons = [f"{m.address}: {r}" for m in plugin.members.values() for r in m.reasons]
        reasons += [
            f"{m.address}: {m.peer.reason}"
            for m in plugin.members.values()
            if not m.peer.serving and m.peer.reason
        ]
        for target in plugin.targets:
            if failure := self._addresses.failure(target):
                reasons.append(f"{target}: {failure}")
            elif not self._addresses.peers(target):
                reasons.append(f"{target} has no addresses")
        reasons += plugin.problems
        return reasons
