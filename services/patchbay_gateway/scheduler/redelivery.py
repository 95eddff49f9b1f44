"""
Redelivery: brings what waits in the write-ahead file to Redis, and forgets what the ledger has.

Looks each second at the server's identity (epoch and run id), the ledger's watermark for this writer and the
length of the journal:
- The same server, and the journal is behind: what was not sent is sent, oldest first, until the end of the
  file is reached; from there on events go with the lease calls again.
- A new epoch (flushed) or another run id (restarted or failed over, so its newest writes may be gone):
  everything above the watermark that the former server showed is sent again.
- The journal in Redis is longer than `stream_bound`, because the ledger does not follow: events stay in the
  file until it has shrunk.
A backlog is announced in the hash `journal:backlog` (writer → number of events) for as long as it lasts, so
that the sweeper does not take silence for death.

Not here: what is sent for whom (booking.py), the file (kernel/appendlog.py).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.kernel.redis import ensure_epoch
from patchbay_gateway.scheduler.leases import EpochChanged

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.leases import RedisLeases

_log = logs.get_logger("scheduler.journal")

LOOK_EVERY: Final = 1.0
_RETRY_EVERY: Final = 0.25
_CHUNK: Final = 256
_ANNOUNCED_MS: Final = 60_000
STREAM_BOUND: Final = 200_000
"""Entries of the journal in Redis, about 100 MB, above which events wait in the files."""


class Redelivery:
    """
    The keeper of one journal's position.

    Args:
        store: Redis.
        journal: Whose file it is.
        leases: Sends events, and demands the epoch that is told to it.
        clock: Paces it.
        behind: Set by who finds that the journal fell behind; wakes this.
        nudge: Called when events wait in memory again.
        metrics: Where the backlog shows.
        stream_bound: See the module.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        leases: RedisLeases,
        *,
        clock: Clock,
        behind: asyncio.Event,
        nudge: Callable[[], None],
        metrics: Metrics,
        stream_bound: int = STREAM_BOUND,
    ) -> None:
        self._store = store
        self._journal = journal
        self._leases = leases
        self._clock = clock
        self._behind = behind
        self._nudge = nudge
        self._bound = stream_bound
        self._run_id = ""
        self._watermark = 0
        self._announced = True  # perhaps by an earlier life of this writer
        self._away = False
        self._backlog = metrics.gauge(
            "scheduler_journal_backlog_events", "Events that wait in the write-ahead file."
        )

    @property
    def watermark(self) -> int:
        """Sequence up to which the ledger has everything, as far as is known."""
        return self._watermark

    async def run(self) -> None:
        """Look and send until cancelled."""
        while True:
            self._behind.clear()
            try:
                await self.look()
            except EpochChanged:
                pass  # the next look meets the new one
            except PatchbayError as error:
                self._journal.fall_behind()
                if not self._away:
                    self._away = True
                    tell = _log.warning if isinstance(error, Unavailable) else _log.error
                    tell("Redis is away; events wait in the write-ahead file", why=str(error))
            else:
                if self._away:
                    self._away = False
                    _log.info("Redis is back", backlog=self._journal.backlog)
            self._backlog.set(self._journal.backlog)
            if self._journal.live:
                await self._pause(LOOK_EVERY)
            else:
                await self._clock.sleep(_RETRY_EVERY)

    async def look(self) -> None:
        """
        Compare, forget what the ledger has, and send what is behind.

        Raises:
            Unavailable: Redis is away.
            EpochChanged: It was flushed just now.
        """
        epoch = await ensure_epoch(self._store)
        mark, length, info = await self._store.pipeline(
            [
                ["HGET", self._store.key("journal", "watermark"), self._journal.writer],
                ["XLEN", self._store.key("journal")],
                ["INFO", "server"],
            ]
        )
        run_id = _run_id(info)
        if epoch != self._leases.epoch or run_id != self._run_id:
            first = not self._run_id
            self._leases.epoch, self._run_id = epoch, run_id
            if first:
                # The mark is the ledger's word whoever the server was before.
                self._watermark = int(mark or 0)
            else:
                _log.warning("another Redis or a flushed one; sending again", above=self._watermark)
            self._journal.rewind(self._watermark)
        elif mark is not None and int(mark) > self._watermark:
            self._watermark = int(mark)
            self._journal.forget(self._watermark)
        if length > self._bound:
            if self._journal.live:
                _log.warning("the ledger does not follow; events wait in the file", stream=length)
            self._journal.fall_behind()
            await self._announce()
        elif not self._journal.live:
            await self._send()

    async def _send(self) -> None:
        await self._announce()
        room = self._bound
        while not self._journal.live and room > 0:
            room -= await self._pass(room)
        if self._journal.live:
            self._nudge()
            await self._announce()

    async def _pass(self, room: int) -> int:
        """Read the file once from the first unsent event on; return how many were sent."""
        sent = 0
        unsent = self._journal.unsent()
        while True:
            chunk = list(itertools.islice(unsent, _CHUNK))
            events = [payload for _, payload in chunk]
            # Nothing was awaited since the file was read: at its end the rest can go with live events.
            at_end = chunk[-1][0] >= self._journal.last if chunk else not sent
            if at_end:
                self._journal.rejoin(events)
                return sent
            if not chunk:
                return sent
            parcel = self._journal.parcel(events, chunk[-1][0])
            await self._leases.apply([], [], [], events)
            self._journal.delivered(parcel)
            sent += len(chunk)
            if sent >= room:
                return sent

    async def _announce(self) -> None:
        """Tell whether a backlog waits."""
        key = self._store.key("journal", "backlog")
        if not self._journal.live and self._journal.backlog:
            await self._store.pipeline(
                [
                    ["HSET", key, self._journal.writer, self._journal.backlog],
                    # A writer that died with its disk must not keep the sweeper waiting for ever.
                    ["PEXPIRE", key, _ANNOUNCED_MS],
                ]
            )
            self._announced = True
        elif self._announced:
            await self._store.call("HDEL", key, self._journal.writer)
            self._announced = False

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when the journal falls behind."""
        await pause(self._clock, seconds, self._behind)


def _run_id(info: bytes) -> str:
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return line[7:].decode()
    return ""
