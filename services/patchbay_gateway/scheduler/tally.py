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
        if (counter := self._counters.get(credential_id)) is not None:
            counter.error = ""

    def of(self, credential_id: str) -> Counter:
        """Return what Redis does not know of one credential."""
        return self._counters.get(credential_id) or Counter()

    def take(self) -> dict[str, Counter]:
        """Take everything, to tell it."""
        counters, self._counters = self._counters, {}
        return counters

    def give_back(self, counters: Mapping[str, Counter]) -> None:
        """It could not be told."""
        for id_, counter in counters.items():
            newer = self._counters.setdefault(id_, Counter())
            newer.succeeded += counter.succeeded
            newer.failed += counter.failed
            newer.error = newer.error or counter.error
            newer.limits = newer.limits or counter.limits
