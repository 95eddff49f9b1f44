"""Reports wait until a scheduler has them, also over a crash."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.edge import outbox as outbox_module
from patchbay_gateway.edge.outbox import Outbox
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class FakeScheduler:
    """Takes reports when it is up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.down = False
        self.failures: list[errors.PatchbayError] = []
        """Of the next calls, in order."""
        self.poison: dict[str, errors.PatchbayError] = {}
        """Attempts whose reports are refused, alone or among others."""
        self.called = asyncio.Event()

    async def call(self, method: Any, request: Any, *, deadline: float) -> Any:
        self.called.set()
        if self.down:
            raise errors.Unavailable("down")
        if self.failures:
            raise self.failures.pop(0)
        uids = [item.attempt.attempt_uid for item in request.items]
        for uid in uids:
            if uid in self.poison:
                raise self.poison[uid]
        self.batches.append(uids)
        return scheduler_pb2.ReportResponse()

    @property
    def taken(self) -> list[str]:
        return [uid for batch in self.batches for uid in batch]


class FullDisk(AppendLog):
    """A file that refuses while `full`."""

    full = False

    def append(self, payloads: Sequence[bytes]) -> int:
        if self.full:
            raise errors.ResourceExhausted("no space left", reason="APPEND_LOG_FULL")
        return super().append(payloads)


def make_item(n: int) -> scheduler_pb2.ReportItem:
    return scheduler_pb2.ReportItem(attempt=journal_pb2.AttemptInfo(attempt_uid=f"r{n}-1"))


@contextlib.asynccontextmanager
async def running(directory: Path, scheduler: FakeScheduler, clock: ManualClock | None = None):
    log = FullDisk(directory)
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
        assert await outbox.drain(60)
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
        assert await outbox.drain(60)
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
        assert await outbox.drain(60)
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
        assert await outbox.drain(60)
    sent = [uid for batch in scheduler.batches for uid in batch]
    assert sent == [f"r{n}-1" for n in range(limit + 500)]


async def settled() -> None:
    """Let what is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_report_disk_full_keeps_what_waits_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports that found no file do not stand for those in it: none is skipped, none truncated."""
    monkeypatch.setattr(outbox_module, "_IN_MEMORY", 3)
    monkeypatch.setattr(outbox_module, "_BATCH", 2)
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.down = True
    async with running(tmp_path, scheduler, clock) as outbox:
        for n in range(6):
            outbox.report(make_item(n))
        await scheduler.called.wait()
        outbox._file.full = True
        for n in range(6, 9):
            outbox.report(make_item(n))
        await settled()
        outbox._file.full = False
        for n in range(9, 11):
            outbox.report(make_item(n))
        await settled()
        scheduler.down = False
        await clock.advance(5)
        assert await outbox.drain(60)
    assert sorted(scheduler.taken, key=lambda uid: int(uid[1:-2])) == [f"r{n}-1" for n in range(11)]


async def test_report_disk_full_waits_without_a_sequence(tmp_path: Path) -> None:
    """What is not in the file cannot acknowledge what is."""
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.down = True
    async with running(tmp_path, scheduler, clock) as outbox:
        outbox.report(make_item(1))
        await scheduler.called.wait()
        outbox._file.full = True
        outbox.report(make_item(2))
        await settled()
        assert [sequence for sequence, _ in outbox._queue] == [1]
        assert len(outbox._loose) == 1


async def test_report_disk_full_beyond_the_bound_drops_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_LOOSE", 3)
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.down = True
    async with running(tmp_path, scheduler, clock) as outbox:
        outbox.report(make_item(0))
        await scheduler.called.wait()
        outbox._file.full = True
        for n in range(1, 6):
            outbox.report(make_item(n))
            await settled()
        assert outbox.dropped == 2
        scheduler.down = False
        await clock.advance(5)
        assert await outbox.drain(60)
    assert scheduler.taken == ["r0-1", "r3-1", "r4-1", "r5-1"]


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("no attempt"),
        errors.Internal("a bug"),
        errors.ResourceExhausted("large", reason="MESSAGE_TOO_LARGE"),
    ],
    ids=["invalid", "internal", "large"],
)
async def test_report_refused_is_set_aside_and_the_others_go_on(
    tmp_path: Path, error: errors.PatchbayError
) -> None:
    scheduler = FakeScheduler()
    scheduler.poison = {"r1-1": error}
    async with running(tmp_path, scheduler) as outbox:
        for n in range(4):
            outbox.report(make_item(n))
        assert await outbox.drain(60)
        outbox.report(make_item(4))
        outbox.report(make_item(5))
        assert await outbox.drain(60)
        assert outbox.refused == 1
    assert scheduler.batches == [["r0-1"], ["r2-1"], ["r3-1"], ["r4-1", "r5-1"]]


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("gone"),
        errors.DeadlineExceeded("slow"),
        errors.ResourceExhausted("full", reason="APPEND_LOG_FULL"),
        errors.Unauthenticated("keys are being changed"),
    ],
    ids=["gone", "slow", "full", "keys"],
)
async def test_report_failed_on_the_way_is_sent_again(
    tmp_path: Path, error: errors.PatchbayError
) -> None:
    """Also in the midst of looking for the one that is refused."""
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.poison = {"r1-1": errors.InvalidRequest("no attempt")}
    scheduler.failures = [error, errors.InvalidRequest("one of them"), error]
    async with running(tmp_path, scheduler, clock) as outbox:
        for n in range(3):
            outbox.report(make_item(n))
        await scheduler.called.wait()
        await clock.advance(1)
        await clock.advance(1)
        assert await outbox.drain(60)
        assert outbox.refused == 1
    assert scheduler.batches == [["r0-1"], ["r2-1"]]
