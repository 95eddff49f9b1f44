"""
What happened to each credential since Redis was last told: counters, the newest error, the newest limits.

Told once a second with the look at the pool's state, so that a success costs no write of its own. An edge
that repeats a Report is counted again: these are for people. Not here: marks, which are exact (marks.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.scheduler.marks import MarkError


class Counter(msgspec.Struct, array_like=True):
    """One credential's; in this order on its way to Redis."""

    succeeded: int = 0
    failed: int = 0
    error: str = ""
    """JSON of the newest `MarkError`."""
    limits: str = ""
    """JSON of the newest limits: a list of (unit, limit, remaining, reset at in Unix milliseconds or 0)."""


class Tally:
    """Counters of this scheduler that Redis does not have yet."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._going: dict[str, Counter] = {}
        """On the way to Redis."""

    def succeeded(self, credential_id: str) -> None:
        """Count a success. Hot."""
        counter = self._counters.get(credential_id)
        if counter is None:
            counter = self._counters[credential_id] = Counter()
        counter.succeeded += 1

    def failed(self, credential_id: str, error: MarkError | None) -> None:
        """Count a failure."""
        counter = self._counters.setdefault(credential_id, Counter())
        counter.failed += 1
        if error is not None:
            counter.error = msgspec.json.encode(error).decode()

    def limited(self, credential_id: str, limits: Sequence[Sequence[str | int]]) -> None:
        """Keep what a provider said of its limits."""
        counter = self._counters.setdefault(credential_id, Counter())
        counter.limits = msgspec.json.encode(limits).decode()

    def forget_error(self, credential_id: str) -> None:
        """Forget the newest error."""
        for counters in (self._counters, self._going):
            if (counter := counters.get(credential_id)) is not None:
                counter.error = ""

    def of(self, credential_id: str) -> Counter:
        """Return what is not known to have reached Redis of one credential."""
        counter, going = self._counters.get(credential_id), self._going.get(credential_id)
        if counter is None or going is None:
            return counter or going or Counter()
        return _sum(counter, going)

    def take(self) -> Mapping[str, Counter]:
        """Take everything, to tell it; then `told` or `give_back`."""
        self._going, self._counters = self._counters, {}
        return self._going

    def told(self) -> None:
        """What was taken is in Redis."""
        self._going = {}

    def give_back(self) -> None:
        """What was taken could not be told, or nobody knows."""
        going, self._going = self._going, {}
        for id_, counter in going.items():
            self._counters[id_] = _sum(self._counters.get(id_) or Counter(), counter)


def _sum(newer: Counter, older: Counter) -> Counter:
    return Counter(
        newer.succeeded + older.succeeded,
        newer.failed + older.failed,
        newer.error or older.error,
        newer.limits or older.limits,
    )
