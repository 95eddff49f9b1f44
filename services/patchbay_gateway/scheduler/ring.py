"""
The candidates of one public model at a set of providers, and which of them are ready: hot path.

A ring is built once per snapshot. Candidates that are found cooling, full or without material are set aside,
each at most once for as long as that lasts, so that a choice costs the same however many there are. They come
back when their time is over (a heap), and are looked at again, a few per choice, when the view of the pool
changed and once a second: what recovers early is noticed within a second, also without any news. When nobody
is ready, all that may have changed are looked at before anything is refused.

No I/O, no awaits. Not here: whose turn it is (strategies.py), what may serve at all (eligibility.py), what a
refusal says (selection.py).
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from patchbay_gateway.scheduler import strategies
from patchbay_gateway.scheduler.strategies import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry
    from patchbay_gateway.scheduler.health import Blocked

# Looked at again per choice; and when nobody is ready, before the first that is ready ends the search.
_LOOKS: Final = 8
_SEARCH: Final = 64
_LOOK_EVERY: Final = 1.0
# The view may use a later clock reading than the choice: no sooner than this again.
_AGAIN: Final = 0.05


class PoolView(Protocol):
    """What is held against credentials: HealthView, as choices see it."""

    @property
    def generation(self) -> int:
        """Grows with each change."""

    def blocked(self, credential_id: str, upstream_model: str) -> Blocked | None:
        """Return what is held against the credential for the model; cheap when nothing is."""

    def in_flight(self, credential_id: str) -> int:
        """Return how many attempts of the credential are under way."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve an attempt."""

    provider: ProviderEntry
    credential: CredentialEntry
    upstream_model: str


class Why(enum.Enum):
    """Why a candidate is not ready."""

    COOLING = "cooling"
    BUSY = "busy"
    OUT = "out of use"
    MATERIAL = "no material"


@dataclass(slots=True, eq=False)
class Obstacle:
    """What keeps a credential from serving now."""

    number: int
    why: Why
    until: float = math.inf
    """Unix seconds."""
    blocked: Blocked | None = None


class _Entry:
    """One credential and the models of its provider that the name stands for."""

    __slots__ = ("candidates", "cap", "credential", "id", "number", "provider", "tier", "turn")

    def __init__(self, number: int, tier: int, candidates: Sequence[Candidate]) -> None:
        self.number = number
        self.tier = tier
        self.candidates = tuple(candidates)
        self.provider = candidates[0].provider
        self.credential = candidates[0].credential
        self.id = self.credential.id
        self.cap = self.credential.max_in_flight
        self.turn = 0
        """Which model of an alias pool comes first."""


class Ring:
    """
    The candidates of one name.

    Args:
        tiers: By priority, best first; each a list of credentials in the strategy's order, each a list of
            candidates.
        strategy: Name of the strategy.
        view: What is held against credentials.
        usable: Whether this scheduler has a credential's material.
    """

    def __init__(
        self,
        tiers: Sequence[Sequence[Sequence[Candidate]]],
        *,
        strategy: str,
        view: PoolView,
        usable: Callable[[ProviderEntry, CredentialEntry], bool],
    ) -> None:
        self._view = view
        self._usable = usable
        self._entries: list[_Entry] = []
        self._tiers: list[strategies.Strategy] = []
        self._priorities: list[int] = []
        for tier in tiers:
            first = len(self._entries)
            for offset, candidates in enumerate(tier):
                self._entries.append(_Entry(first + offset, len(self._tiers), candidates))
            self._tiers.append(strategies.make(strategy, self._members(first)))
            self._priorities.append(self._entries[first].credential.priority)
        self._numbers = {entry.id: entry.number for entry in self._entries}
        self._open = sum(1 << i for i, tier in enumerate(self._tiers) if tier.any())
        self._aside: dict[int, Obstacle] = {}
        self._ends: list[tuple[float, int, Obstacle]] = []
        self._order = itertools.count()
        self._looks: deque[Obstacle] = deque()
        self._due = 0
        self._generation = view.generation
        self._looked = -math.inf
        self._now = 0.0
        self._tried: Collection[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self._entries)

    def _members(self, first: int) -> list[Member]:
        return [
            Member(e.number, e.id, e.provider.name, e.credential.weight)
            for e in self._entries[first:]
        ]

    # -- choosing ---------------------------------------------------------------------------------

    def pick(
        self,
        now: float,
        *,
        exclude: Collection[str] = (),
        tried: Collection[tuple[str, str]] = (),
    ) -> Candidate | None:
        """
        Return the next candidate of the best priority that has one ready; None when there is none.

        Args:
            now: Unix seconds.
            exclude: Ids of credentials to leave out.
            tried: (credential id, upstream model) pairs to leave out.
        """
        self._now, self._tried = now, tried
        if self._aside:
            self._promote()
        skip = self._left_out(exclude, tried) if exclude or tried else 0
        found = self._take(skip)
        while found is None and self._due and self._look(_SEARCH):
            found = self._take(skip)
        return found

    def one(
        self, credential_id: str, now: float, tried: Collection[tuple[str, str]] = ()
    ) -> Candidate | None:
        """Return a candidate of this credential if it is ready, whatever its priority; no turn is used up."""
        number = self._numbers.get(credential_id)
        if number is None:
            return None
        self._now, self._tried = now, tried
        entry = self._entries[number]
        return self._ready(entry)

    def ready(
        self,
        now: float,
        *,
        exclude: Collection[str] = (),
        tried: Collection[tuple[str, str]] = (),
    ) -> list[Candidate]:
        """
        Return all that `pick` could return now, one per credential, ordered by id; no turn is used up.

        Looks at every credential of a priority: not for each choice.
        """
        self._now, self._tried = now, tried
        found: list[Candidate] = []
        for entry in self._entries:
            if found and entry.tier != self._tier_of(found[0]):
                break
            if entry.id in exclude:
                continue
            turn = entry.turn
            if (candidate := self._ready(entry)) is not None:
                found.append(candidate)
            entry.turn = turn
        return sorted(found, key=lambda candidate: candidate.credential.id)

    def _tier_of(self, candidate: Candidate) -> int:
        return self._entries[self._numbers[candidate.credential.id]].tier

    def _take(self, skip: int) -> Candidate | None:
        waiting = self._open
        while waiting:
            low = waiting & -waiting
            waiting ^= low
            tier = self._tiers[low.bit_length() - 1]
            found = tier.take(skip, self._fits)
            if found is not None:
                return found
            if not tier.any():
                self._open &= ~low
        return None

    def _left_out(self, exclude: Collection[str], tried: Collection[tuple[str, str]]) -> int:
        skip = 0
        for id_ in {*exclude, *(id_ for id_, _ in tried)}:
            number = self._numbers.get(id_)
            if number is None:
                continue
            candidates = self._entries[number].candidates
            if id_ in exclude or all((id_, c.upstream_model) in tried for c in candidates):
                skip |= 1 << number
        return skip

    def _fits(self, number: int) -> Candidate | None:
        entry = self._entries[number]
        found = self._ready(entry)
        if found is None and (obstacle := self._obstacle(entry)) is not None:
            self._put_aside(entry, obstacle)
        return found

    def _ready(self, entry: _Entry) -> Candidate | None:
        """Return a candidate that is ready and not tried."""
        if entry.cap and self._view.in_flight(entry.id) >= entry.cap:
            return None
        if not self._usable(entry.provider, entry.credential):
            return None
        candidates = entry.candidates
        count = len(candidates)
        for step in range(entry.turn, entry.turn + count):
            candidate = candidates[step % count]
            if self._tried and (entry.id, candidate.upstream_model) in self._tried:
                continue
            blocked = self._view.blocked(entry.id, candidate.upstream_model)
            if blocked is None or blocked.probe_allowed:
                if count > 1:
                    entry.turn = (step + 1) % count
                return candidate
        return None

    # -- those that are not ready -----------------------------------------------------------------

    def _obstacle(self, entry: _Entry) -> Obstacle | None:
        """Return what keeps the credential from all its models; None when nothing does."""
        soonest: Obstacle | None = None
        for candidate in entry.candidates:
            blocked = self._view.blocked(entry.id, candidate.upstream_model)
            if blocked is None or blocked.probe_allowed:
                soonest = None
                break
            if blocked.until is None:
                found = Obstacle(entry.number, Why.OUT, blocked=blocked)
            else:
                found = Obstacle(entry.number, Why.COOLING, blocked.until, blocked)
            if soonest is None or found.until < soonest.until:
                soonest = found
        if soonest is not None:
            return soonest
        if not self._usable(entry.provider, entry.credential):
            return Obstacle(entry.number, Why.MATERIAL)
        if entry.cap and self._view.in_flight(entry.id) >= entry.cap:
            return Obstacle(entry.number, Why.BUSY)
        return None

    def _put_aside(self, entry: _Entry, obstacle: Obstacle) -> None:
        number = entry.number
        if number not in self._aside:
            self._tiers[entry.tier].remove(number)
        self._aside[number] = obstacle
        self._looks.append(obstacle)
        if obstacle.until < math.inf:
            until = max(obstacle.until, self._now + _AGAIN)
            heapq.heappush(self._ends, (until, next(self._order), obstacle))
            if len(self._ends) > 2 * len(self._aside) + 64:
                self._ends = [e for e in self._ends if self._aside.get(e[2].number) is e[2]]
                heapq.heapify(self._ends)

    def _bring_back(self, number: int) -> None:
        del self._aside[number]
        entry = self._entries[number]
        self._tiers[entry.tier].add(number)
        if self._tiers[entry.tier].any():
            self._open |= 1 << entry.tier

    def _promote(self) -> None:
        """Bring back those whose time is over, and look at a few that may be ready for other reasons."""
        ends, now = self._ends, self._now
        while ends and ends[0][0] <= now:
            obstacle = heapq.heappop(ends)[2]
            if self._aside.get(obstacle.number) is obstacle:
                self._bring_back(obstacle.number)
        generation = self._view.generation
        if generation != self._generation or not 0 <= now - self._looked < _LOOK_EVERY:
            self._generation, self._looked = generation, now
            self._due = len(self._looks)
        if self._due:
            self._look(_LOOKS, search=False)

    def _look(self, limit: int, *, search: bool = True) -> bool:
        """
        Look again at those set aside whose look is due.

        Returns:
            Whether one came back. A *search* goes on beyond *limit* until then, or to the end.
        """
        found = False
        while self._due and (limit > 0 or (search and not found)):
            self._due -= 1
            obstacle = self._looks.popleft()
            number = obstacle.number
            if self._aside.get(number) is not obstacle:
                continue
            limit -= 1
            now = self._obstacle(self._entries[number])
            if now is None:
                self._bring_back(number)
                found = True
            elif now.why is obstacle.why and now.until == obstacle.until:
                obstacle.blocked = now.blocked
                self._looks.append(obstacle)
            else:
                self._put_aside(self._entries[number], now)
        return found

    # -- telling ----------------------------------------------------------------------------------

    def obstacles(self, now: float) -> Mapping[str, Obstacle | None]:
        """Return credential id → what keeps it from serving, None when nothing does; not for each choice."""
        self._now = now
        return {entry.id: self._obstacle(entry) for entry in self._entries}

    def state(self) -> dict[int, Any]:
        """Return where the rotation of each priority stands."""
        return {
            priority: tier.state()
            for priority, tier in zip(self._priorities, self._tiers, strict=True)
        }

    def resume(self, state: Mapping[int, Any]) -> None:
        """Go on where the ring of another snapshot stood."""
        for priority, tier in zip(self._priorities, self._tiers, strict=True):
            if priority in state:
                tier.resume(state[priority])
