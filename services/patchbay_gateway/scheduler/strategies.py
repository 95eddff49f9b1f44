"""
Who is next among equals: round-robin, fill-first and smooth weighted round-robin over those that are ready.

A strategy knows members by number and keeps only who is ready and whose turn it is. Its cost does not grow
with the number of members: ready ones are bits of one integer, and weighted ones are in heaps, one per
weight. `take` asks `fits` before it moves on; a member that does not fit is either removed by `fits` or left
out of this one choice.

Pure. Not here: who is ready and why not (ring.py).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

ROUND_ROBIN: Final = "round-robin"
WEIGHTED: Final = "weighted-round-robin"
FILL_FIRST: Final = "fill-first"


@dataclass(frozen=True, slots=True)
class Member:
    """One of the equals."""

    number: int
    """Its place in the order of its group, and over all groups."""
    id: str
    group: str
    """Name of its provider."""
    weight: int = 1


class Strategy(Protocol):
    """Who is next among the members of one priority."""

    def add(self, number: int) -> None:
        """A member is ready."""

    def remove(self, number: int) -> None:
        """A member is not ready any more."""

    def any(self) -> bool:
        """Whether somebody is ready."""

    def take(self, skip: int, fits: Callable[[int], T | None]) -> T | None:
        """
        Return what *fits* says of the next member, None when there is none.

        Args:
            skip: Members to leave out, as bits.
            fits: Returns None for a member that cannot be taken now.
        """

    def state(self) -> Any:
        """Return where the rotation stands, for `resume` of a strategy of the same kind."""

    def resume(self, state: Any) -> None:
        """Go on where another rotation stood."""


def make(name: str, members: Sequence[Member]) -> Strategy:
    """Return the strategy of that name over *members*, ordered by group and number; all are ready."""
    if name == WEIGHTED:
        return SmoothWeighted(members)
    return Rotation(members, fill_first=name == FILL_FIRST)


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits of *mask*."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(slots=True)
class _Group:
    """The members of one provider."""

    name: str
    ids: dict[int, str]
    ready: int
    """Bits of the members that are ready."""
    cursor: int = 0
    """The member to look at first."""
    last: str = ""
    """Id of the member taken last."""


class Rotation:
    """
    Round-robin over groups and within them, or the first that is ready.

    A group's turn comes as often as it has ready members.
    """

    def __init__(self, members: Sequence[Member], *, fill_first: bool) -> None:
        self._fill_first = fill_first
        self._groups: list[_Group] = []
        self._turn = 0
        self._of: dict[int, _Group] = {}
        for member in members:
            if not self._groups or self._groups[-1].name != member.group:
                self._groups.append(_Group(member.group, {}, 0))
            group = self._groups[-1]
            group.ids[member.number] = member.id
            group.ready |= 1 << member.number
            self._of[member.number] = group

    def add(self, number: int) -> None:
        """A member is ready."""
        self._of[number].ready |= 1 << number

    def remove(self, number: int) -> None:
        """A member is not ready any more."""
        self._of[number].ready &= ~(1 << number)

    def any(self) -> bool:
        """Whether somebody is ready."""
        return any(group.ready for group in self._groups)

    def take(self, skip: int, fits: Callable[[int], T | None]) -> T | None:
        """Return what *fits* says of the next member."""
        while True:
            group = self._groups[0] if len(self._groups) == 1 else self._next_group(skip)
            left = group.ready & ~skip if skip else group.ready
            if not left:
                return None
            ahead = 0 if self._fill_first else left >> group.cursor
            number = group.cursor + _lowest(ahead) if ahead else _lowest(left)
            found = fits(number)
            if found is not None:
                group.cursor = number + 1
                group.last = group.ids[number]
                self._turn += 1
                return found
            skip |= 1 << number

    def _next_group(self, skip: int) -> _Group:
        left = [(group.ready & ~skip).bit_count() for group in self._groups]
        total = sum(left)
        if not total:
            return self._groups[0]
        slot = 0 if self._fill_first else self._turn % total
        for group, count in zip(self._groups, left, strict=True):
            if slot < count:
                return group
            slot -= count
        raise AssertionError("the slot is below the sum of the counts")

    def state(self) -> Any:
        """Return where the rotation stands."""
        return self._turn, {group.name: group.last for group in self._groups}

    def resume(self, state: Any) -> None:
        """Go on behind the member that was taken last, also when that one is gone."""
        if not isinstance(state, tuple):
            return
        self._turn, last = state
        for group in self._groups:
            group.last = last.get(group.name, "")
            ahead = [number for number, id_ in group.ids.items() if id_ > group.last]
            group.cursor = min(ahead, default=0) if group.last else 0


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


@dataclass(slots=True)
class _Peers:
    """The members of one weight: what one choice adds to the credit of each is the same."""

    weight: int
    added: int = 0
    """What choices added to the credit of each ready member so far."""
    ready: int = 0
    """How many are ready."""
    heap: list[tuple[int, int]] = field(default_factory=list)
    """(-credit without `added`, number); entries that `_base` contradicts are stale."""


class SmoothWeighted:
    """
    Smooth weighted round-robin, as nginx defines it: each choice adds to every ready member its weight, the
    one with the largest credit is chosen (the first of equals) and pays the sum of all weights.

    Members without weight take no part. Credits of members of one weight move together, so a choice looks at
    one member per distinct weight.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = {m.number: m for m in members if m.weight > 0}
        self._peers = {weight: _Peers(weight) for weight in {m.weight for m in members if m.weight}}
        self._credit = dict.fromkeys(self._members, 0)
        self._base: dict[int, int] = {}
        self._total = 0
        for number in self._members:
            self.add(number)

    def add(self, number: int) -> None:
        """A member is ready; it has the credit that it left with."""
        member = self._members.get(number)
        if member is None or number in self._base:
            return
        peers = self._peers[member.weight]
        self._base[number] = base = self._credit[number] - peers.added
        heapq.heappush(peers.heap, (-base, number))
        peers.ready += 1
        self._total += member.weight
        if len(peers.heap) > 2 * peers.ready + 64:
            peers.heap = [entry for entry in peers.heap if self._current(entry)]
            heapq.heapify(peers.heap)

    def remove(self, number: int) -> None:
        """A member is not ready any more."""
        base = self._base.pop(number, None)
        if base is None:
            return
        peers = self._peers[self._members[number].weight]
        self._credit[number] = base + peers.added
        peers.ready -= 1
        self._total -= peers.weight

    def any(self) -> bool:
        """Whether somebody is ready."""
        return bool(self._base)

    def take(self, skip: int, fits: Callable[[int], T | None]) -> T | None:
        """Return what *fits* says of the next member."""
        held = [number for number in bits(skip) if number in self._base]
        for left_out in held:
            self.remove(left_out)
        try:
            while (number := self._best()) is not None:
                found = fits(number)
                if found is not None:
                    self._pay(number)
                    return found
                if number in self._base:
                    self.remove(number)
                    held.append(number)
            return None
        finally:
            for left_out in held:
                self.add(left_out)

    def _current(self, entry: tuple[int, int]) -> bool:
        return self._base.get(entry[1]) == -entry[0]

    def _best(self) -> int | None:
        best: tuple[int, int] | None = None
        for peers in self._peers.values():
            if not peers.ready:
                continue
            while not self._current(peers.heap[0]):
                heapq.heappop(peers.heap)
            base, number = peers.heap[0]
            credit = base - peers.added - peers.weight
            if best is None or (credit, number) < best:
                best = credit, number
        return best[1] if best is not None else None

    def _pay(self, number: int) -> None:
        for peers in self._peers.values():
            if peers.ready:
                peers.added += peers.weight
        peers = self._peers[self._members[number].weight]
        self._base[number] = base = self._base[number] - self._total
        heapq.heappush(peers.heap, (-base, number))

    def state(self) -> Any:
        """Return weights and credits."""
        return {m.id: (m.weight, self._credit_of(number)) for number, m in self._members.items()}

    def _credit_of(self, number: int) -> int:
        base = self._base.get(number)
        if base is None:
            return self._credit[number]
        return base + self._peers[self._members[number].weight].added

    def resume(self, state: Any) -> None:
        """Take the credits over if members and weights are the same; else begin anew."""
        if not isinstance(state, dict):
            return
        weights: Mapping[str, tuple[int, int]] = state
        if {m.id: m.weight for m in self._members.values()} != {
            id_: weight for id_, (weight, _) in weights.items()
        }:
            return
        for number, member in self._members.items():
            self.remove(number)
            self._credit[number] = weights[member.id][1]
            self.add(number)
