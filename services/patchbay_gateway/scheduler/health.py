"""
The health of credentials as this scheduler knows it: which are cooling, probing, full or out of use.

`HealthView` is asked for each candidate of each attempt, so a credential with nothing against it costs one
look-up. It is fed by the answers of this scheduler's own scripts, by the channel of changes and by polling
(pool.py); the script that leases checks the chosen one again (leases.py), so an old view costs a second
choice and never a wrong lease. While Redis is away it is all there is: marks are made here and places under a
cap are this scheduler's share.

No I/O, no awaits. Not here: what opens and lifts a mark (marks.py), choosing (selection.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay_gateway.scheduler import marks as rules
from patchbay_gateway.scheduler.marks import WHOLE, Mark, MarkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.scheduler.marks import End

# Whoever waits for a probe's outcome may ask again after this; seconds.
_PROBE_ANSWER: Final = 1.0


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something is held against a credential for a model."""

    state: str
    """`cooling`, `probing` or `disabled`; `ready` when the next attempt may probe."""
    reason: str
    """UPPER_SNAKE, for example QUOTA."""
    until: float | None
    """Unix seconds of the earliest recovery; None when only a person helps."""
    probe_allowed: bool
    """True: it may be chosen; the attempt will be its only one until it ends."""
    last_error: MarkError | None = None
    needs_login: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the pool's state."""

    version: int
    """Of the pool after it; 0: it does not count, for it is of no concern to other schedulers."""
    kind: str
    """`m` a mark, `o` out of use, `v` a version."""
    credential_id: str
    scope: str
    value: bytes
    """The mark, empty when lifted; `1` or empty; the version."""


class _State:
    """All that is known against one credential."""

    __slots__ = ("marks", "off")

    def __init__(self) -> None:
        self.off = False
        self.marks: dict[str, Mark] = {}


class HealthView:
    """
    The view of one scheduler.

    Args:
        clock: Says what is over.
        lease_ttl: Seconds after which a place that this scheduler gave away counts as lost.
    """

    def __init__(self, *, clock: Clock, lease_ttl: float = 60.0) -> None:
        self._clock = clock
        self._ttl = lease_ttl
        self._states: dict[str, _State] = {}
        self._newest: dict[str, int] = {}
        self._material: dict[str, int] = {}
        self._busy: dict[str, int] = {}
        self._planned: dict[str, int] = {}
        self._mine: dict[str, dict[str, float]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self.version = 0
        """Of the pool's state in Redis up to which nothing is missing here."""
        self.generation = 0
        """Grows with each change of the view; what was worked out under another one may be wrong."""
        self.behind = False
        """Whether a change was missed: the state must be read."""
        self.share = 0
        """While Redis is away: among how many schedulers places are divided; 0: Redis is there."""
        self.lost_at = 0.0
        """Unix seconds of the last outage or flush: leases from before may be gone without having ended."""

    # -- asked by selection, hot ------------------------------------------------------------------

    def blocked(self, credential_id: str, upstream_model: str) -> Blocked | None:
        """Return what is held against the credential for this model; None when nothing is."""
        state = self._states.get(credential_id)
        if state is None:
            return None
        if state.off:
            return Blocked("disabled", "DISABLED", None, False)
        found = state.marks
        whole, own = found.get(WHOLE), found.get(upstream_model)
        if whole is None and own is None:
            return None
        now = int(self._clock.now() * 1000)
        worst = [_judge(mark, now) for mark in (whole, own) if mark is not None]
        closed = [blocked for blocked in worst if not blocked.probe_allowed]
        # The one that recovers last decides; probes are allowed if each mark allows one.
        return max(closed or worst, key=lambda b: b.until or 0.0)

    def in_flight(self, credential_id: str) -> int:
        """Return the attempts under way of a credential with a cap, as far as is known."""
        planned = self._planned.get(credential_id, 0) if self._planned else 0
        if self.share:
            held = self._held(credential_id) + planned
            # Full when one more here and as many at each other one would be too many; one is always let.
            return (held + 1) * self.share - 1 if held else 0
        return self._busy.get(credential_id, 0) + planned

    def earliest(self, targets: Iterable[tuple[str, str]]) -> float | None:
        """Return when the first of the blocked (credential id, upstream model) recovers, Unix seconds."""
        found = [self.blocked(id_, model) for id_, model in targets]
        times = [blocked.until for blocked in found if blocked is not None and blocked.until]
        return min(times, default=None)

    def touches(self, credential_id: str) -> bool:
        """Whether anything at all is held against the credential."""
        return credential_id in self._states

    def outdated(self, credential_id: str, version: int) -> bool:
        """Whether there is newer material than *version*, be it that this scheduler has not read it yet."""
        return self._material.get(credential_id, 0) > version

    def disabled(self, credential_id: str) -> bool:
        """Whether management took it out of use."""
        state = self._states.get(credential_id)
        return state is not None and state.off

    def marks(self, credential_id: str) -> Mapping[str, Mark]:
        """Return scope → mark."""
        state = self._states.get(credential_id)
        return state.marks if state is not None else {}

    def credentials(self) -> list[str]:
        """Return the ids of those that something is held against."""
        return list(self._states)

    def cooling(self) -> int:
        """Return how many credentials rest now, for a model or as a whole."""
        now = int(self._clock.now() * 1000)
        return sum(
            any(mark.closed(now) for mark in state.marks.values())
            for state in self._states.values()
        )

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* after each change, freed places included; the returned function ends that."""
        self._callbacks.append(callback)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return forget

    # -- fed by scripts and the channel -----------------------------------------------------------

    def learn(self, changes: Iterable[Change]) -> None:
        """Take *changes* in; one that does not follow the last known sets `behind`."""
        for change in changes:
            if change.version and change.version <= self.version:
                continue
            if change.version == self.version + 1:
                self.version = change.version
            elif change.version:
                self.behind = True
            if change.version:
                self._newest[change.credential_id] = change.version
            self._apply(change)
        self.changed()

    def replace(
        self,
        credential_id: str,
        found: Mapping[str, Mark],
        *,
        off: bool,
        version: int,
        material: int = 0,
    ) -> None:
        """
        Hold exactly *found* against a credential, as read at *version*; tells nobody (`changed`).

        *material* is the newest version of its material that Redis was told of, 0 for none.
        """
        if material:
            self._material[credential_id] = material
        if self._newest.get(credential_id, 0) > version:
            return  # a change came by the channel while this was on its way
        state = _State()
        state.marks, state.off = dict(found), off
        if found or off:
            self._states[credential_id] = state
        else:
            self._states.pop(credential_id, None)

    def read_up_to(self, version: int) -> None:
        """All of the state up to *version* was read."""
        self.version = max(self.version, version)
        self.behind = False

    def forget(self) -> None:
        """Another epoch: nothing is held against anybody."""
        self._states.clear()
        self._newest.clear()
        self._material.clear()
        self._busy.clear()
        self.version = 0
        self.behind = False
        self.changed()

    def changed(self) -> None:
        """Tell those who listen."""
        self.generation += 1
        for callback in self._callbacks:
            callback()

    def _apply(self, change: Change) -> None:
        id_ = change.credential_id
        state = self._states.get(id_)
        if change.kind == "m":
            if change.value:
                state = state or self._states.setdefault(id_, _State())
                state.marks[change.scope] = rules.decode(change.value)
            elif state is not None:
                state.marks.pop(change.scope, None)
        elif change.kind == "o":
            state = state or self._states.setdefault(id_, _State())
            state.off = bool(change.value)
        elif change.kind == "v":
            self._material[id_] = int(change.value)
        if state is not None and not state.marks and not state.off:
            self._states.pop(id_, None)

    # -- caps -------------------------------------------------------------------------------------

    def count(self, credential_id: str, busy: int) -> None:
        """Redis counts *busy* attempts under way."""
        if self._busy.get(credential_id, 0) != busy:
            freed = busy < self._busy.get(credential_id, 0)
            self._busy[credential_id] = busy
            if freed:
                self.changed()

    def plan(self, credential_id: str) -> None:
        """A place was chosen, and Redis is being asked for it: the next choice counts it in."""
        self._planned[credential_id] = self._planned.get(credential_id, 0) + 1

    def planned(self, credential_id: str) -> None:
        """Redis has answered."""
        left = self._planned.get(credential_id, 0) - 1
        if left > 0:
            self._planned[credential_id] = left
        else:
            self._planned.pop(credential_id, None)

    def counted(self) -> list[str]:
        """Return the ids of credentials whose places are counted."""
        return [id_ for id_, busy in self._busy.items() if busy]

    def hold(self, credential_id: str, uid: str) -> None:
        """This scheduler leased a place, or it was renewed."""
        held = self._mine.setdefault(credential_id, {})
        held.pop(uid, None)  # to the end: they stand in the order in which they are lost
        now = self._clock.monotonic()
        held[uid] = now + self._ttl
        _forget_lost(held, now)

    def release(self, credential_id: str, uid: str) -> None:
        """A place is free again."""
        held = self._mine.get(credential_id)
        if held is not None:
            held.pop(uid, None)
        if self.share:
            self.changed()

    def _held(self, credential_id: str) -> int:
        held = self._mine.get(credential_id)
        if not held:
            return 0
        _forget_lost(held, self._clock.monotonic())
        return len(held)

    # -- alone, while Redis is away ---------------------------------------------------------------

    def settle(self, end: End) -> list[str]:
        """Apply an end to this view alone; return the scopes whose marks it changed."""
        now = int(self._clock.now() * 1000)
        id_ = end.credential_id
        touched = []
        state = self._states.get(id_)
        for scope in dict.fromkeys((WHOLE, end.model)):
            mark = state.marks.get(scope) if state is not None else None
            new = mark
            if mark is not None and end.kind == "ok":
                new = mark if rules.survives(mark, end, now, whole=scope == WHOLE) else None
            if new is not None:
                new = rules.freed(new, end)
            if end.cools and scope == end.scope:
                new = rules.cooled(mark if end.kind == "cool" else new, end, now)
            if new is not mark:
                touched.append(scope)
                value = rules.encode(new) if new is not None else b""
                self._apply(Change(0, "m", id_, scope, value))
                state = self._states.get(id_)
        if touched:
            self.changed()
        return touched

    def probe(self, credential_id: str, upstream_model: str, uid: str) -> bool:
        """Make an attempt the probe of all marks that concern it; False when there are none. Local."""
        now = int(self._clock.now() * 1000)
        state = self._states.get(credential_id)
        made = False
        for scope in dict.fromkeys((WHOLE, upstream_model)):
            mark = state.marks.get(scope) if state is not None else None
            if mark is not None and state is not None:
                state.marks[scope] = rules.probed(mark, uid, now + int(self._ttl * 1000))
                made = True
        if made:
            self.changed()
        return made


def _forget_lost(held: dict[str, float], now: float) -> None:
    """Forget places that count as lost: their ends may have been reported to another scheduler."""
    while held and held[first := next(iter(held))] <= now:
        del held[first]


def _judge(mark: Mark, now: int) -> Blocked:
    needs_login = bool(mark.needs_login)
    if mark.probing(now):
        until = max(mark.until, now + int(_PROBE_ANSWER * 1000)) / 1000
        return Blocked("probing", mark.reason, until, False, mark.error, needs_login)
    if mark.closed(now):
        return Blocked("cooling", mark.reason, mark.until / 1000, False, mark.error, needs_login)
    return Blocked("ready", mark.reason, mark.until / 1000, True, mark.error, needs_login)
