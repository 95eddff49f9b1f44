"""
Reports wait here until a scheduler has them.

`report` never waits and never fails a request: what came in one loop tick is appended to the edge's own
write-ahead file in one write, then sent in order, one Report call at a time, so that batches grow with
load. An acknowledgement truncates the file. After a crash the file is sent again; reports are idempotent.
Memory is bounded: beyond `_IN_MEMORY` items the rest waits in the file only. While the file refuses, reports
wait in memory only, apart from the others; beyond `_LOOSE` the oldest of them are dropped. A report that
schedulers refuse is set aside, so that it does not keep the others.

Not here: what a report says (attempts.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.kernel.appendlog import AppendLog
    from patchbay_gateway.kernel.clock import Clock

_BATCH: Final = 512
_IN_MEMORY: Final = 20_000
_LOOSE: Final = 20_000
_DEADLINE: Final = 5.0
_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

# What speaks of the report itself. All else speaks of the way, of the schedulers or of this edge: it passes
# or somebody mends it, and until then no report may be lost.
_REFUSALS: Final = (errors.InvalidRequest, errors.NotFound, errors.Internal)
_TOO_LARGE: Final = "MESSAGE_TOO_LARGE"

_log = logs.get_logger("edge.outbox")


class Outbox:
    """The outbox of one edge process."""

    def __init__(
        self, log: AppendLog, scheduler: SchedulerCalls, *, edge_id: str, clock: Clock
    ) -> None:
        self._file = log
        self._scheduler = scheduler
        self._edge_id = edge_id
        self._clock = clock
        self._tick: list[scheduler_pb2.ReportItem] = []
        self._queue: deque[tuple[int, scheduler_pb2.ReportItem]] = deque()
        self._loose: deque[scheduler_pb2.ReportItem] = deque()
        """Not in the file; these have no sequence, and say nothing of what may be truncated."""
        self.dropped = 0
        """Reports that found no room anywhere."""
        self.refused = 0
        """Reports that schedulers refused for good."""
        self._sent = 0
        """Highest acknowledged sequence."""
        self._spilled = False
        """Some items after the queue's last are in the file only."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._recover()

    @property
    def waiting(self) -> int:
        """Reports in memory that no scheduler has acknowledged; those only on disk come after them."""
        return len(self._tick) + len(self._queue) + len(self._loose)

    def report(self, item: scheduler_pb2.ReportItem) -> None:
        """Take *item*; it is in the file by the end of this loop tick."""
        if not self._tick:
            asyncio.get_running_loop().call_soon(self._flush)
        self._tick.append(item)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if not self._queue and self._spilled:
                self._reload()
            if not self._queue and not self._loose:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            # The loose first: they are the ones that the end of this process would lose.
            batch = [self._loose.popleft() for _ in range(min(_BATCH, len(self._loose)))]
            filed = min(_BATCH - len(batch), len(self._queue))
            batch.extend(self._queue[i][1] for i in range(filed))
            await self._deliver(batch)
            for _ in range(filed):
                self._sent = self._queue.popleft()[0]
            if filed:
                self._file.truncate(self._sent)

    async def _deliver(self, batch: list[scheduler_pb2.ReportItem]) -> None:
        """Return when each of *batch* was taken, or refused by itself."""
        try:
            await self._send(batch)
        except errors.PatchbayError as error:
            if len(batch) > 1:
                for item in batch:
                    await self._deliver([item])
                return
            self.refused += 1
            _log.error(
                "a report is refused and set aside",
                attempt=batch[0].attempt.attempt_uid,
                reason=error.reason,
                error=str(error),
                refused=self.refused,
            )

    async def _send(self, batch: list[scheduler_pb2.ReportItem]) -> None:
        """
        Return when a scheduler has *batch*.

        Raises:
            PatchbayError: It would be refused for ever.
        """
        request = scheduler_pb2.ReportRequest(edge_id=self._edge_id)
        add = request.items.add
        for item in batch:
            add().CopyFrom(item)
        failures = 0
        while True:
            try:
                await self._scheduler.call(methods.REPORT, request, deadline=_DEADLINE)
            except errors.PatchbayError as error:
                if isinstance(error, _REFUSALS) or error.reason == _TOO_LARGE:
                    raise
                pause = _BACKOFF[min(failures, len(_BACKOFF) - 1)]
                failures += 1
                if failures == 1:
                    waiting = len(self._queue) + len(self._loose)
                    _log.warning("reports wait", reason=error.reason, waiting=waiting)
                await self._clock.sleep(pause)
            else:
                return

    async def drain(self, limit: float) -> bool:
        """Wait up to *limit* seconds until nothing waits; return whether that was reached."""
        self._flush()
        try:
            async with asyncio.timeout(limit):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def emptied(self) -> None:
        """Return when schedulers have all that there was."""
        await self._idle.wait()

    def _flush(self) -> None:
        items, self._tick = self._tick, []
        if not items:
            return
        try:
            sequence = self._file.append([item.SerializeToString() for item in items])
        except errors.PatchbayError as error:
            # A full disk must not stop traffic. Without the file these reports are as safe as this
            # process; if it dies, their attempts settle as lost.
            _log.error("reports are kept in memory only", reason=error.reason, error=str(error))
            self._keep_loose(items)
        else:
            room = 0 if self._spilled else _IN_MEMORY - len(self._queue)
            self._queue.extend((sequence + i, item) for i, item in enumerate(items[:room]))
            self._spilled = self._spilled or room < len(items)
        self._idle.clear()
        self._wake.set()

    def _keep_loose(self, items: list[scheduler_pb2.ReportItem]) -> None:
        self._loose.extend(items)
        excess = len(self._loose) - _LOOSE
        if excess <= 0:
            return
        for _ in range(excess):
            self._loose.popleft()
        self.dropped += excess
        _log.error(
            "reports are dropped; their attempts settle as lost", now=excess, dropped=self.dropped
        )

    def _recover(self) -> None:
        """Queue what an earlier life of this edge left behind."""
        self._spilled = True
        self._reload()
        if self._queue:
            self._idle.clear()

    def _reload(self) -> None:
        self._spilled = False
        last = self._queue[-1][0] if self._queue else self._sent
        for sequence, payload in self._file.read(last):
            if len(self._queue) >= _IN_MEMORY:
                self._spilled = True
                return
            self._queue.append((sequence, scheduler_pb2.ReportItem.FromString(payload)))
