"""
From the journal's stream into the ledger, for ever.

Read a batch, commit it, acknowledge it and publish the watermark: in this order, so a death anywhere leaves
entries that come again and change nothing. While batches are small the next one is left to gather for
`linger`, so load makes them larger, not more frequent. Entries that cannot be counted go to the dead
letters; one that the database refuses is found by halving its batch.

Redis or the database away: wait, then begin with what was given to us and not acknowledged. A new epoch, or a
missing group, means that Redis was flushed: watermarks are published again, writers send what is above.

Not here: what an event does (reduce.py), the transaction (ledger.py), keys (stream.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from patchbay.errors import InvalidRequest, PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.usage.events import Malformed, decode
from patchbay_gateway.usage.stream import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.usage.events import Event
    from patchbay_gateway.usage.ledger import Ledger
    from patchbay_gateway.usage.stream import Entry, Stream
    from patchbay_gateway.usage.watermarks import Progress

COUNT: Final = 1000
"""Entries of a batch at most."""
LINGER: Final = 0.25
"""Seconds between the beginnings of two batches that were not full."""

_BLOCK_MS: Final = 1000
_RETRY_EVERY: Final = 0.25
# Events decoded in one go, about half a millisecond.
_SLICE: Final = 64
_UPKEEP_EVERY: Final = 1.0
_CLAIM_EVERY: Final = 5.0
# Longer than any batch takes; a live consumer's share that is claimed all the same is only counted in vain.
_CLAIM_IDLE_MS: Final = 10_000
# A writer sends in order and again after a flush, so a gap that outlives this was lost where the writer
# lost its file. Holding its watermark longer would only let the file grow.
_GAP_PATIENCE: Final = 600.0

_log = logs.get_logger("usage.consumer")


class Prices(Protocol):
    """Who knows what snapshots ask."""

    async def ready(self, version: int) -> None:
        """Return when attempts of snapshot *version* can be priced."""
        ...


class Consumer:
    """
    One reader of the group.

    Args:
        stream: The journal.
        ledger: Where it goes.
        prices: Asked before each batch.
        clock: Paces retries and lingering.
        linger: See `LINGER`.
    """

    def __init__(
        self,
        stream: Stream,
        ledger: Ledger,
        prices: Prices,
        *,
        clock: Clock,
        linger: float = LINGER,
    ) -> None:
        self._stream = stream
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._linger = linger
        self._epoch = ""
        self._upkeep_at = self._claim_at = 0.0
        self._gaps: dict[str, tuple[int, float]] = {}
        self.caught_up_at: float | None = None
        """Unix seconds before which everything in the stream is committed; None after an outage."""
        self.steady_since: float | None = None
        """Unix seconds since when Redis and the database have answered and Redis was not flushed."""
        self.taken = self.dead = 0
        """Events that were taken, and those of them that cannot be counted."""
        self.trouble = "has not read yet"
        """Why nothing is consumed, for people; empty when all is well."""

    async def run(self) -> None:
        """Consume until cancelled."""
        while True:
            try:
                await self._resume()
                while True:
                    await self._turn()
            except PatchbayError as error:
                if error.message != self.trouble:
                    _log.warning("the ledger waits", why=error.message)
                self.trouble = error.message
                self.caught_up_at = self.steady_since = None
                if not isinstance(error, Unavailable):
                    _log.error("unexpected", why=error.message, reason=error.reason)
            await self._clock.sleep(_RETRY_EVERY)

    async def finish(self, limit: float) -> None:
        """
        Take what is in the stream now, for at most *limit* seconds; after `run` was cancelled.

        A clean stop leaves nothing to the next start, if Redis and the database are there.
        """
        with contextlib.suppress(PatchbayError, TimeoutError):
            async with asyncio.timeout(limit):
                while entries := await self._stream.unacknowledged(COUNT):
                    await self._take(entries)
                while entries := await self._stream.read(COUNT, 0):
                    await self._take(entries)

    async def _resume(self) -> None:
        """Begin, or begin again: make the group, and finish what was begun."""
        self._epoch = ""
        self._upkeep_at = 0.0
        await self._upkeep()
        while entries := await self._stream.unacknowledged(COUNT):
            await self._take(entries)
        if self.trouble and self.steady_since is None:
            _log.info("the ledger reads the journal")
        self.trouble = ""
        self.steady_since = self._clock.now()

    async def _turn(self) -> None:
        """Read one batch and take it; look after the rest when it is time."""
        began, at = self._clock.monotonic(), self._clock.now()
        entries = await self._stream.read(COUNT, _BLOCK_MS)
        if entries:
            await self._take(entries)
        full = len(entries) >= COUNT
        if not full:
            self.caught_up_at = at
        await self._upkeep()
        if entries and not full:
            await self._clock.sleep(max(0.0, self._linger - (self._clock.monotonic() - began)))

    async def _take(self, entries: Sequence[Entry]) -> None:
        good: list[tuple[Event, bytes]] = []
        dead: list[DeadLetter] = []
        skipped: list[tuple[str, int]] = []
        for index, entry in enumerate(entries):
            if index % _SLICE == _SLICE - 1:
                # In `patchbay up` the same loop forwards tokens.
                await asyncio.sleep(0)
            if entry.data is None:
                continue
            try:
                good.append((decode(entry.data), entry.data))
            except Malformed as error:
                dead.append(DeadLetter(entry.data, error.message))
                skipped.append((error.writer, error.sequence))
        await self._prices.ready(max((e.described.snapshot_version for e, _ in good), default=0))
        progress = await self._record(good, skipped, dead)
        self.taken += len(entries)
        self.dead += len(dead)
        if dead:
            _log.error("events cannot be counted", dead=len(dead), first=dead[0].reason)
        await self._stream.acknowledge(
            [entry.id for entry in entries], dead, self._published(progress)
        )

    async def _record(
        self,
        good: list[tuple[Event, bytes]],
        skipped: list[tuple[str, int]],
        dead: list[DeadLetter],
    ) -> dict[str, Progress]:
        """Commit *good* and return the progress; what the database refuses is added to *dead*."""
        try:
            return await self._ledger.record([event for event, _ in good], skipped=skipped)
        except InvalidRequest as error:
            if not good:
                raise
            if len(good) == 1:
                event, data = good[0]
                dead.append(DeadLetter(data, error.message))
                return await self._record([], [*skipped, (event.writer, event.sequence)], dead)
        half = len(good) // 2
        progress = await self._record(good[:half], skipped, dead)
        return progress | await self._record(good[half:], [], dead)

    def _published(self, progress: dict[str, Progress]) -> dict[str, int]:
        now = self._clock.monotonic()
        for writer, reached in progress.items():
            known = self._gaps.get(writer)
            if not reached.ahead:
                self._gaps.pop(writer, None)
            elif known is None or known[0] != reached.sequence:
                self._gaps[writer] = (reached.sequence, now)
        return {writer: reached.sequence for writer, reached in progress.items()}

    # -- once in a while --------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        now = self._clock.monotonic()
        if now < self._upkeep_at:
            return
        self._upkeep_at = now + _UPKEEP_EVERY
        epoch = await self._stream.epoch()
        if epoch != self._epoch:
            # The group is made by the next read; what was given to us before is gone with the old life.
            await self._stream.publish(self._published(await self._ledger.watermarks()))
            if self._epoch:
                _log.warning("Redis was flushed; watermarks are published again")
                self.steady_since = self._clock.now()
            self._epoch = epoch
        if now < self._claim_at:
            return
        self._claim_at = now + _CLAIM_EVERY
        while entries := await self._stream.claim(COUNT, _CLAIM_IDLE_MS):
            await self._take(entries)
        await self._skip_gaps(now)

    async def _skip_gaps(self, now: float) -> None:
        old = {w: s for w, (s, since) in self._gaps.items() if now - since >= _GAP_PATIENCE}
        if not old or await self._stream.held_by_others():
            return
        moved = await self._ledger.skip_gaps(old)
        for writer in old:
            self._gaps.pop(writer, None)
        for writer, reached in moved.items():
            _log.warning("a gap in a journal is given up", writer=writer, after=old[writer])
            await self._stream.publish({writer: reached.sequence})
