"""Journals and outboxes without a process are brought home, once, by whoever runs on their data directory."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tests.fakes import ledger_check
from tests.fakes.journal_events import make_bytes
from tests.integration.usage.conftest import eventually

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway import adoption as adoption_module
from patchbay_gateway.adoption import Adoption
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.clock import ManualClock, SystemClock
from patchbay_gateway.kernel.redis import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from tests.conftest import ValkeyProcess
    from tests.integration.usage.conftest import Bench

    from patchbay_gateway.kernel.clock import Clock

TOKENS = {"input_tokens": 10, "output_tokens": 5}


class FakeScheduler:
    """Takes reports when it is up."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.down = False
        self.called = asyncio.Event()

    async def call(self, method: Any, request: Any, *, deadline: float) -> Any:
        self.called.set()
        if self.down:
            raise errors.Unavailable("down")
        self.taken.extend(item.attempt.attempt_uid for item in request.items)
        return scheduler_pb2.ReportResponse()


@contextlib.asynccontextmanager
async def running(
    data_dir: Path,
    store: Store,
    scheduler: FakeScheduler | None = None,
    *,
    own: Iterable[Path] = (),
    clock: Clock | None = None,
) -> AsyncIterator[None]:
    """Run an adoption until the block ends."""
    adoption = Adoption(
        data_dir,
        own=own,
        store=store,
        scheduler=scheduler or FakeScheduler(),
        clock=clock or SystemClock(),
    )
    task = asyncio.create_task(adoption.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def leave_journal(directory: Path, first: int, count: int) -> str:
    """Leave what a killed scheduler leaves that could not send: *count* attempts; return its writer's id."""
    log = AppendLog(directory)
    events = []
    for i in range(count):
        more: dict[str, Any] = {"request": first + i, "writer": log.writer_id}
        events.append(make_bytes("opened", sequence=2 * i + 1, **more))
        events.append(make_bytes("settled", sequence=2 * i + 2, usage=TOKENS, **more))
    log.append(events)
    log.close()
    return log.writer_id


def leave_outbox(directory: Path, *uids: str) -> None:
    log = AppendLog(directory)
    items = [
        scheduler_pb2.ReportItem(attempt=journal_pb2.AttemptInfo(attempt_uid=uid)) for uid in uids
    ]
    log.append([item.SerializeToString() for item in items])
    log.close()


def left(data_dir: Path) -> list[str]:
    """Return what is there of journals and outboxes."""
    return sorted(
        str(path.parent.relative_to(data_dir))
        for path in data_dir.glob("**/lock")
        if path.is_file()
    )


def counted(directory: Path) -> tuple[int, int]:
    """Return how many attempts the ledger has that have ended, and how many others."""
    report = ledger_check.check([], directory / "ledger.db")
    return report.attempts, report.open


async def gone(data_dir: Path) -> None:
    async def nothing() -> bool:
        return not left(data_dir)

    await eventually(nothing)


async def test_left_journals_and_outboxes_arrive_and_are_removed(
    bench: Bench, store: Store, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    writers = [
        leave_journal(data / "workers" / f"data-{n}" / "journal", n * 300, 300) for n in (1, 2)
    ]
    leave_outbox(data / "workers" / "data-1" / "outbox", "a-1", "b-1")
    leave_outbox(data / "outbox", "c-1")
    scheduler = FakeScheduler()
    async with bench.service(), running(data, store, scheduler):
        await gone(data)
    assert sorted(scheduler.taken) == ["a-1", "b-1", "c-1"]
    assert counted(tmp_path) == (600, 0)
    assert [await bench.watermark(writer) for writer in writers] == [600, 600]
    assert not (data / "workers" / "data-1").exists()


async def test_journal_whose_events_redis_has_already_counts_once(
    bench: Bench, store: Store, tmp_path: Path
) -> None:
    """It was killed after it had sent; the ledger has them, the file does not know."""
    data = tmp_path / "data"
    directory = data / "workers" / "data-1" / "journal"
    writer = leave_journal(directory, 0, 20)
    log = AppendLog(directory)
    sent = [payload for _, payload in log.read()]
    log.close()
    await bench.send(sent)
    async with bench.service():
        await bench.reaches(40, writer)
        async with running(data, store):
            await gone(data)
        assert counted(tmp_path) == (20, 0)


async def test_journal_waits_while_redis_is_away(
    own_valkey: ValkeyProcess, bench: Bench, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    leave_journal(data / "workers" / "data-1" / "journal", 0, 5)
    own_valkey.kill()
    own = Store(own_valkey.url, installation="adoption", clock=SystemClock())
    bench.store = own
    try:
        async with running(data, own):
            await asyncio.sleep(0.5)  # it tries, and nothing tells
            assert len(left(data)) == 1
            await asyncio.to_thread(own_valkey.start)
            async with bench.service():
                await gone(data)
                assert counted(tmp_path) == (5, 0)
    finally:
        await own.aclose()


async def test_adoption_that_ended_early_is_taken_up_by_the_next(
    bench: Bench, store: Store, tmp_path: Path
) -> None:
    """Without a ledger and without a scheduler nothing may go."""
    data = tmp_path / "data"
    leave_journal(data / "workers" / "data-3" / "journal", 0, 5)
    leave_outbox(data / "workers" / "data-3" / "outbox", "a-1")
    down = FakeScheduler()
    down.down = True
    async with running(data, store, down):
        await asyncio.wait_for(down.called.wait(), 60)
    assert [name.rpartition("-")[0] for name in left(data)] == [
        "workers/adopted/journal",
        "workers/adopted/outbox",
    ]
    scheduler = FakeScheduler()
    async with bench.service(), running(data, store, scheduler):
        await gone(data)
        assert counted(tmp_path) == (5, 0)
    assert scheduler.taken == ["a-1"]


async def test_file_that_is_no_outbox_harms_nobody(store: Store, tmp_path: Path) -> None:
    """It is left where it is; the others arrive."""
    data = tmp_path / "data"
    log = AppendLog(data / "workers" / "data-1" / "outbox")
    log.append([b"\xff no message"])
    log.close()
    leave_outbox(data / "workers" / "data-2" / "outbox", "a-1")
    scheduler = FakeScheduler()
    async with running(data, store, scheduler):

        async def one_left() -> bool:
            return scheduler.taken == ["a-1"] and len(left(data)) == 1

        await eventually(one_left)


async def test_held_directories_are_left_alone(store: Store, tmp_path: Path) -> None:
    """Two adopt at once, and a process still has its outbox: each is one's alone."""
    data = tmp_path / "data"
    leave_outbox(data / "outbox", "a-1", "b-1")
    busy = AppendLog(data / "workers" / "data-1" / "outbox")
    first, second = FakeScheduler(), FakeScheduler()
    async with running(data, store, first), running(data, store, second):

        async def one_left() -> bool:
            return left(data) == ["workers/data-1/outbox"]

        await eventually(one_left)
    assert sorted(first.taken + second.taken) == ["a-1", "b-1"]
    busy.close()


async def test_directory_of_process_that_shall_run_is_taken_only_when_it_stays_away(
    store: Store, tmp_path: Path
) -> None:
    """And the process gets a new one when it comes all the same."""
    data = tmp_path / "data"
    directory = data / "workers" / "data-1" / "outbox"
    leave_outbox(directory, "a-1")
    clock, scheduler = ManualClock(), FakeScheduler()
    scheduler.down = True
    async with running(data, store, scheduler, own=[directory], clock=clock):
        for _ in range(int(adoption_module.PATIENCE / adoption_module.LOOK_EVERY)):
            await asyncio.sleep(0)
            assert left(data) == ["workers/data-1/outbox"]
            await clock.advance(adoption_module.LOOK_EVERY)
        await asyncio.wait_for(scheduler.called.wait(), 60)
        assert left(data) != ["workers/data-1/outbox"]
        AppendLog(directory).close()
