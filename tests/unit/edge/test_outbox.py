"""Reports wait until a scheduler has them, also over a crash."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.edge import outbox as outbox_module
from patchbay_gateway.edge.outbox import Outbox
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.clock import ManualClock

if TYPE_CHECKING:
    from pathlib import Path


class FakeScheduler:
    """Takes reports when it is up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.down = False
        self.called = asyncio.Event()

    async def call(self, method: Any, request: Any, *, deadline: float) -> Any:
        self.called.set()
        if self.down:
            raise errors.Unavailable("down")
        self.batches.append([item.attempt.attempt_uid for item in request.items])
        return scheduler_pb2.ReportResponse()


def make_item(n: int) -> scheduler_pb2.ReportItem:
    return scheduler_pb2.ReportItem(attempt=journal_pb2.AttemptInfo(attempt_uid=f"r{n}-1"))


@contextlib.asynccontextmanager
async def running(directory: Path, scheduler: FakeScheduler, clock: ManualClock | None = None):
    log = AppendLog(directory)
    outbox = Outbox(log, scheduler, edge_id="e", clock=clock or ManualClock())
    task = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        log.close()


async def test_report_of_one_tick_goes_out_together(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    async with running(tmp_path, scheduler) as outbox:
        for n in range(3):
            outbox.report(make_item(n))
        assert await outbox.drain(5)
    assert scheduler.batches == [["r0-1", "r1-1", "r2-1"]]


async def test_report_scheduler_down_waits_and_keeps_order(tmp_path: Path) -> None:
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.down = True
    async with running(tmp_path, scheduler, clock) as outbox:
        outbox.report(make_item(1))
        await scheduler.called.wait()
        outbox.report(make_item(2))
        await asyncio.sleep(0)
        scheduler.down = False
        await clock.advance(0.2)
        assert await outbox.drain(5)
    assert [uid for batch in scheduler.batches for uid in batch] == ["r1-1", "r2-1"]


async def test_report_unsent_survives_the_process(tmp_path: Path) -> None:
    """What an earlier life could not send is sent by the next one."""
    scheduler = FakeScheduler()
    scheduler.down = True
    async with running(tmp_path, scheduler) as outbox:
        outbox.report(make_item(1))
        await scheduler.called.wait()
    scheduler.down = False
    async with running(tmp_path, scheduler) as outbox:
        assert await outbox.drain(5)
    assert scheduler.batches == [["r1-1"]]


async def test_report_beyond_memory_waits_in_the_file(tmp_path: Path) -> None:
    """More than memory may hold: nothing is lost and the order stays."""
    limit = outbox_module._IN_MEMORY
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.down = True
    async with running(tmp_path, scheduler, clock) as outbox:
        for n in range(limit + 500):
            outbox.report(make_item(n))
        await scheduler.called.wait()
        assert len(outbox._queue) == limit
        scheduler.down = False
        await clock.advance(5)
        assert await outbox.drain(20)
    sent = [uid for batch in scheduler.batches for uid in batch]
    assert sent == [f"r{n}-1" for n in range(limit + 500)]
