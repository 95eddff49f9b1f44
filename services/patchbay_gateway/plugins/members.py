"""
A member is one plugin at one address; its plugin knows all of them and chooses among the ready.

Hot: `metadata`, `begin`, `end` and `choose` run once per call. Not here: when members come, go and are
registered (registry.py), the address itself (addresses.py).
"""

from __future__ import annotations

import asyncio
import bisect
import random
from typing import TYPE_CHECKING, Final

from patchbay import tokens
from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.plugins.capabilities import common_executor, common_needs, flags

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from patchbay_gateway.kernel.channels.port import Metadata
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.addresses import Peer
    from patchbay_gateway.plugins.handshake import Registration
    from patchbay_gateway.plugins.snapshot import PluginEntry


# Seconds between two registrations that a plugin has forgotten.
_FORGETS: Final = 1.0


class Member:
    """One plugin at one address."""

    __slots__ = (
        "_changed",
        "_clock",
        "_forgotten_at",
        "_metadata",
        "_renew_at",
        "_tokens",
        "address",
        "calls",
        "capabilities",
        "channel",
        "config",
        "errors",
        "generation",
        "peer",
        "plugin_id",
        "reasons",
        "registration",
        "revision",
        "seconds",
        "task",
        "wake",
        "weight",
    )

    def __init__(
        self, plugin_id: str, peer: Peer, config: bytes, changed: Callable[[], None], clock: Clock
    ) -> None:
        self.plugin_id = plugin_id
        self.peer = peer
        self.address = peer.address
        self.channel = peer.channel
        self.revision = ""
        self.weight = 100.0
        self.config = config
        """What it is to run with; the registration says what it does run with."""
        self.registration: Registration | None = None
        self.capabilities = plugin_pb2.Capabilities()
        self.generation = 0
        """The peer's generation that the registration was made with."""
        self.reasons: tuple[str, ...] = ()
        """Why the last handshake failed."""
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.calls = 0
        """Calls that ended, whatever their end."""
        self.errors = 0
        """Calls that ended without an answer of the plugin."""
        self.seconds = 0.0
        """Time that calls took; of streams, until the first answer."""
        self._changed = changed
        self._clock = clock
        self._forgotten_at = float("-inf")
        self._tokens: tokens.TokenSource | None = None
        self._metadata: Metadata = ()
        self._renew_at = 0.0

    @property
    def registered(self) -> bool:
        """Whether the process that stands there now has accepted us."""
        return self.registration is not None and self.generation == self.peer.generation

    @property
    def ready(self) -> bool:
        """Whether calls may go there, ejection aside."""
        return self.peer.serving and self.registered

    @property
    def state(self) -> str:
        """For people: `ready`, `ejected`, `refused`, `registering`, or the address's health."""
        if not self.peer.serving:
            return self.peer.health.value
        if self.ready:
            return "ready" if self.peer.allows() else "ejected"
        return "refused" if self.reasons else "registering"

    def metadata(self) -> Metadata:
        """Return plugin id, configuration and call token, as each call to the plugin carries them."""
        if self._clock.now() >= self._renew_at:
            self._renew()
        return self._metadata

    def begin(self) -> None:
        """Count a call that starts."""
        self.peer.begin()

    def answered(self) -> None:
        """Note that a call that goes on has its first answer."""
        self.peer.answered()

    def end(self, transport_failure: bool | None = False, *, draining: bool = False) -> None:
        """
        Count a call that ended.

        Args:
            transport_failure: True when no answer of the plugin stands behind the failure, a passed
                deadline included; None when the caller gave the call up before it knew.
            draining: The address answered Unavailable with reason DRAINING: no new calls.
        """
        self.calls += 1
        if transport_failure:
            self.errors += 1
        self.peer.end(transport_failure)
        if draining and self.peer.refuse():
            self._changed()

    def forgotten(self, registration: Registration | None) -> None:
        """
        Register again: a call under *registration* was answered NOT_REGISTERED.

        Not all the time, for one that forgets at once would be asked for nothing else.
        """
        now = self._clock.monotonic()
        if self.registration is not registration or now - self._forgotten_at < _FORGETS:
            return
        self._forgotten_at = now
        self.registration = None
        self.wake.set()
        self._changed()

    def accept(self, registration: Registration, generation: int, host_id: str) -> None:
        """Use *registration* from now on."""
        self.registration = registration
        self.capabilities = registration.response.capabilities
        self.generation = generation
        self.reasons = ()
        self._tokens = tokens.TokenSource(
            registration.key, self.plugin_id, host_id, now=self._clock.now
        )
        self._renew_at = 0.0

    def _renew(self) -> None:
        source, registration = self._tokens, self.registration
        if source is None or registration is None:
            return
        self._metadata = (
            (tokens.PLUGIN_KEY, self.plugin_id),
            (tokens.CONFIG_KEY, registration.config_hash),
            *source.metadata(),
        )
        self._renew_at = source.renew_at


class Plugin:
    """One plugin of the snapshot."""

    __slots__ = (
        "_cumulative",
        "able",
        "capability",
        "declared",
        "entry",
        "members",
        "needs",
        "problems",
        "ready",
        "targets",
    )

    def __init__(self, entry: PluginEntry) -> None:
        self.entry = entry
        self.targets: dict[str, tuple[str, int]] = {}
        """Target → revision, weight."""
        self.problems: list[str] = []
        """What is wrong with its declaration."""
        self.members: dict[str, Member] = {}
        self.ready: tuple[Member, ...] = ()
        self.able: dict[str, tuple[Member, ...]] = {}
        """Capability flag → the ready members that declare it, where the configuration allows it."""
        self.declared: frozenset[str] = frozenset()
        """Flags that the plugin declared when it last was registered anywhere."""
        self.needs = plugin_pb2.InterceptorNeeds()
        """What every ready member's interceptors do without."""
        self.capability: plugin_pb2.ExecutorCapability | None = None
        self._cumulative: list[float] = []

    def refresh(self) -> None:
        """Compute what `pick` reads, after any change."""
        ready = [m for m in self.members.values() if m.ready and m.weight > 0]
        self.ready = tuple(ready)
        executors = [m.capabilities.executor for m in ready if m.capabilities.HasField("executor")]
        allowed = not self.entry.capabilities or "executor" in self.entry.capabilities
        self.capability = common_executor(executors) if executors and allowed else None
        self.able = {}
        for member in ready:
            for flag in flags(member.capabilities):
                if not self.entry.capabilities or flag in self.entry.capabilities:
                    self.able[flag] = (*self.able.get(flag, ()), member)
        self.needs = common_needs([m.capabilities.interceptor_needs for m in ready])
        if ready:
            self.declared = frozenset(self.able)
        # A revision's weight is shared by its addresses, so that a canary's share does not grow with its
        # replicas.
        shares: dict[str, int] = {}
        for member in ready:
            shares[member.revision] = shares.get(member.revision, 0) + 1
        weights = [member.weight / shares[member.revision] for member in ready]
        self._cumulative = []
        if len(set(weights)) > 1:
            total = 0.0
            for weight in weights:
                total += weight
                self._cumulative.append(total)

    def choose(self, able: Sequence[Member]) -> Member:
        """Return the less loaded of two random members."""
        if self._cumulative and able is self.ready:
            top = self._cumulative[-1]
            first: Member
            second: Member
            first, second = (
                able[bisect.bisect_right(self._cumulative, random.random() * top)]  # noqa: S311
                for _ in range(2)
            )
        else:
            size = len(able)
            at = int(random.random() * size)  # noqa: S311 - load, no secret
            first = able[at]
            second = able[(at + 1 + int(random.random() * (size - 1))) % size]  # noqa: S311
        return first if first.peer.in_flight <= second.peer.in_flight else second

    def pick(self, exclude: Collection[str]) -> Member | None:
        """Return the member to call next, None when none is left."""
        ready = self.ready
        if not ready:
            return None
        member = ready[0] if len(ready) == 1 else self.choose(ready)
        if member.address not in exclude and member.peer.allows():
            return member
        return self._left(ready, exclude)

    def pick_able(self, flag: str, exclude: Collection[str]) -> Member | None:
        """Return a member that declares *flag*, None when none is left."""
        able = self.able.get(flag, ())
        if len(able) == len(self.ready):
            return self.pick(exclude)
        return self._left(able, exclude)

    def _left(self, among: Sequence[Member], exclude: Collection[str]) -> Member | None:
        able = [m for m in among if m.address not in exclude and m.peer.allows()]
        if len(able) > 1:
            return self.choose(able)
        return able[0] if able else None
