"""
Reports wait here until a scheduler has them.

`report` never waits and never fails a request: what came in one loop tick is appended to the edge's own
write-ahead file in one write, then sent in order, one Report call at a time, so that batches grow with
load. An acknowledgement truncates the file. After a crash the file is sent again; reports are idempotent.
Memory is bounded: beyond `_IN_MEMORY` items the rest waits in the file only.

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
_DEADLINE: Final = 5.0
_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

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
        self._sent = 0
        """Highest acknowledged sequence."""
        self._spilled = False
        """Some items after the queue's last are in the file only."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._recover()

    def report(self, item: scheduler_pb2.ReportItem) -> None:
        """Take *item*; it is in the file by the end of this loop tick."""
        if not self._tick:
            asyncio.get_running_loop().call_soon(self._flush)
        self._tick.append(item)

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            if not self._queue and self._spilled:
                self._reload()
            if not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = [self._queue[i] for i in range(min(_BATCH, len(self._queue)))]
            request = scheduler_pb2.ReportRequest(
                edge_id=self._edge_id, items=[item for _, item in batch]
            )
            try:
                await self._scheduler.call(methods.REPORT, request, deadline=_DEADLINE)
            except errors.PatchbayError as error:
                pause = _BACKOFF[min(failures, len(_BACKOFF) - 1)]
                failures += 1
                if failures == 1:
                    _log.warning("reports wait", reason=error.reason, waiting=len(self._queue))
                await self._clock.sleep(pause)
                continue
            failures = 0
            for _ in batch:
                self._queue.popleft()
            self._sent = batch[-1][0]
            self._file.truncate(self._sent)

    async def drain(self, limit: float) -> bool:
        """Wait up to *limit* seconds until nothing waits; return whether that was reached."""
        self._flush()
        try:
            async with asyncio.timeout(limit):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

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
            self._queue.extend((self._file.last_sequence, item) for item in items)
            self._idle.clear()
            self._wake.set()
            return
        room = 0 if self._spilled else _IN_MEMORY - len(self._queue)
        self._queue.extend((sequence + i, item) for i, item in enumerate(items[:room]))
        self._spilled = self._spilled or room < len(items)
        self._idle.clear()
        self._wake.set()

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
