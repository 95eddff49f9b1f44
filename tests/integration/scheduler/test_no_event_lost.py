"""Attempts without pause while Redis suffers: a reader that may lose its place still gets every event."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from typing import TYPE_CHECKING

import pytest
from tests.integration.scheduler.conftest import USUAL, acquire, eventually, report

from patchbay.errors import PatchbayError
from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from tests.conftest import ValkeyProcess
    from tests.integration.scheduler.conftest import Gateway

    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.scheduler.service import SchedulerServicer


class Ledger:
    """Reads the journal as the ledger does: commit, delete, publish how far each writer is complete."""

    def __init__(self, store: Store):
        self._store = store
        self.seen: set[tuple[str, int]] = set()
        self._sequences: dict[str, set[int]] = {}
        self.gaps: list[tuple[str, int]] = []

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            with contextlib.suppress(PatchbayError):
                await self.step()
            await asyncio.sleep(0.02)

    async def step(self) -> None:
        """Take what is there."""
        journal = self._store.key("journal")
        entries = await self._store.call("XRANGE", journal, "-", "+", "COUNT", 500)
        if not entries:
            return
        for _, fields in entries:
            event = journal_pb2.JournalEvent.FromString(fields[1])
            self.seen.add((event.attempt.attempt_uid, event.kind))
            known = self._sequences.setdefault(event.writer, set())
            if event.sequence > 1 and event.sequence - 1 not in known:
                self.gaps.append((event.writer, event.sequence))
            known.add(event.sequence)
        await self._store.call("XDEL", journal, *[id_ for id_, _ in entries])
        for writer, known in self._sequences.items():
            complete = next(n for n in itertools.count(1) if n not in known) - 1
            await self._store.call(
                "HSET", self._store.key("journal", "watermark"), writer, complete
            )


async def hurt(how: str, valkey: ValkeyProcess, store: Store) -> None:
    """Do to the server what *how* says, until it is well again."""
    if how == "flushed":
        await store.call("FLUSHALL")
    elif how == "restarted empty":
        valkey.kill()
        await asyncio.sleep(0.3)  # the outage
        await asyncio.to_thread(valkey.start)
    else:
        valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(1.2)  # the outage
        valkey.signal(signal.SIGCONT)


@pytest.mark.parametrize("how", ["flushed", "restarted empty", "hung"])
async def test_every_event_arrives(own_gateway: Gateway, own_valkey: ValkeyProcess, how: str):
    ledger = Ledger(own_gateway.store())
    if how == "hung":
        own_gateway.timeout = USUAL
    made: set[tuple[str, int]] = set()
    stop = asyncio.Event()

    async def worker(scheduler: SchedulerServicer, version: int, name: str) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            uid = f"{name}{number}-1"
            result = (await scheduler.Acquire(acquire(version, uid))).results[0]
            assert result.HasField("lease"), result
            await scheduler.Report(report(result.lease))
            made.update({(uid, 1), (uid, 3)})
            await asyncio.sleep(0.002)

    async def traffic() -> None:
        """Return when each worker has come round some times more, before an outage and after it."""
        enough = len(made) + 300

        async def came() -> bool:
            return len(made) >= enough

        await eventually(came, 60)

    async with (
        own_gateway.scheduler("a") as (first, holder),
        own_gateway.scheduler("b") as (second, _),
    ):
        assert holder.current is not None
        version = holder.current.version
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(ledger.run())
            workers = [
                group.create_task(worker(scheduler, version, f"{name}{i}."))
                for name, scheduler in (("a", first), ("b", second))
                for i in range(3)
            ]
            for _ in range(2):
                await traffic()
                await hurt(how, own_valkey, own_gateway.store())
            await traffic()
            stop.set()
            await asyncio.gather(*workers)

            async def complete() -> bool:
                return ledger.seen >= made

            await eventually(complete, 60)
            reading.cancel()
    assert ledger.seen == made
    # No writer's event ever came before all its earlier ones, so a highest sequence means all.
    assert ledger.gaps == []
