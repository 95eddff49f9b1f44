"""The usage service on a real Valkey: nothing lost, nothing doubled, whatever is away."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import pytest
from tests.fakes import ledger_check
from tests.fakes.journal_events import START, make_bytes, make_message
from tests.integration.usage.conftest import Bench, eventually

from patchbay.errors import InvalidRequest
from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.methods import GET_PROGRESS, QUERY
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import Snapshot
from patchbay_gateway.usage.main import SERVICE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess

    from patchbay_gateway.usage.service import UsageServicer

TOKENS = {"input_tokens": 10, "output_tokens": 5}


def pair(request: int, sequence: int) -> list[bytes]:
    """Return opened and settled of one attempt."""
    return [
        make_bytes("opened", request, sequence=sequence),
        make_bytes("settled", request, at=1, usage=TOKENS, sequence=sequence + 1),
    ]


async def query(
    servicer: UsageServicer, by: int = usage_pb2.GROUP_BY_MODEL
) -> list[usage_pb2.UsageRow]:
    channel = InProcessChannel({SERVICE: servicer})
    request = usage_pb2.QueryRequest(by=by)  # type: ignore[arg-type]
    try:
        return list((await channel.unary(QUERY, request, deadline=60)).rows)
    finally:
        await channel.close()


async def progress(servicer: UsageServicer) -> usage_pb2.GetProgressResponse:
    channel = InProcessChannel({SERVICE: servicer})
    try:
        return await channel.unary(GET_PROGRESS, usage_pb2.GetProgressRequest(), deadline=60)
    finally:
        await channel.close()


async def test_journal_becomes_rows_and_is_deleted(bench: Bench) -> None:
    async with bench.service() as servicer:
        await bench.send(pair(1, 1))
        await bench.reaches(2)
        (row,) = await query(servicer)
        assert (row.key, row.requests, row.attempts, row.input_tokens) == ("gpt", 1, 1, 10)
        assert row.cost_nano == 10
        (hour,) = await query(servicer, usage_pb2.GROUP_BY_HOUR)
        assert hour.key == "2026-05-28T20:00:00Z"
        assert await bench.store.call("XLEN", bench.store.key("journal")) == 0
        told = await progress(servicer)
        assert dict(told.watermarks) == {"w1": 2}
        assert servicer.health() is None


async def test_clean_stop_leaves_nothing_in_the_journal(bench: Bench, tmp_path: Path) -> None:
    async with bench.service(linger=60.0):
        await bench.send(pair(1, 1))
        await bench.reaches(2)
        await bench.send(pair(2, 3))
    assert await bench.watermark() == 4
    assert ledger_check.check([], tmp_path / "ledger.db").attempts == 2


async def test_query_without_grouping_is_refused(bench: Bench) -> None:
    async with bench.service() as servicer:
        with pytest.raises(InvalidRequest):
            await query(servicer, usage_pb2.GROUP_BY_UNSPECIFIED)


async def test_events_from_before_the_service_are_read(bench: Bench) -> None:
    await bench.send(pair(1, 1))
    async with bench.service():
        await bench.reaches(2)


async def test_batch_larger_than_a_read_is_read_whole(bench: Bench, tmp_path: Path) -> None:
    events = [event for i in range(1200) for event in pair(i, 2 * i + 1)]
    await bench.send(events)
    async with bench.service():
        await bench.reaches(2400)
    report = ledger_check.check([], tmp_path / "ledger.db")
    assert report.attempts == 1200
    assert not report.open


async def test_poison_goes_to_the_dead_letters_and_holds_nothing_up(bench: Bench) -> None:
    newer = make_message("settled", 2, sequence=2)
    newer.schema = 99
    await bench.send(
        [
            b"\xff\xff",
            make_bytes("opened", 1, sequence=1),
            newer.SerializeToString(),
            make_bytes("settled", 3, sequence=3, usage={"input_tokens": 1 << 60}),
            make_bytes("settled", 4, sequence=4, usage=TOKENS),
        ]
    )
    async with bench.service() as servicer:
        await bench.reaches(4)
        told = await progress(servicer)
        (row,) = await query(servicer)
        assert told.dead_letters == 3
        assert (row.attempts, told.open_attempts) == (1, 1)
        dead = await bench.store.call("XRANGE", bench.store.key("journal", "dead"), "-", "+")
        assert {fields[3] for _, fields in dead} >= {
            b"not a journal event",
            b"schema 99 is unknown",
        }


class WatchedHolder(SnapshotHolder):
    """Tells when somebody waits for the first snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = asyncio.Event()

    async def first(self) -> Snapshot:
        self.waited.set()
        return await super().first()


async def test_prices_of_a_snapshot_are_waited_for(bench: Bench) -> None:
    """A usage service that is a second behind must not bill by yesterday's prices."""
    bench.holder = holder = WatchedHolder()
    async with bench.service() as servicer:
        await bench.send([make_bytes("settled", 1, sequence=1, usage=TOKENS, version=7)])
        await asyncio.wait_for(holder.waited.wait(), 60)
        assert await bench.watermark() == 0
        bench.holder.set(Snapshot(version=7, prices=()))
        await bench.reaches(1)
        (row,) = await query(servicer)
        assert row.cost_nano == 0


async def test_entries_of_a_dead_consumer_are_claimed(bench: Bench) -> None:
    store, journal = bench.store, bench.store.key("journal")
    await bench.send(pair(1, 1))
    await store.read_group(journal, "ledger", "gone", 10, 0)
    await store.pipeline(
        [
            ["XCLAIM", journal, "ledger", "gone", 0, entry, "IDLE", 60_000]
            for entry, _ in await store.call("XRANGE", journal, "-", "+")
        ]
    )
    async with bench.service():
        await bench.reaches(2)
    assert (await store.call("XPENDING", journal, "ledger"))[0] == 0


async def test_own_entries_are_taken_up_again(bench: Bench) -> None:
    """Killed between reading and acknowledging: the next life of the same name begins there."""
    await bench.send(pair(1, 1))
    await bench.store.read_group(bench.store.key("journal"), "ledger", "me", 10, 0)
    async with bench.service(consumer="me"):
        await bench.reaches(2)


async def test_flushed_redis_gets_watermarks_and_group_again(bench: Bench) -> None:
    async with bench.service() as servicer:
        await bench.send(pair(1, 1))
        await bench.reaches(2)
        keys = await bench.store.call("KEYS", bench.store.prefix + "*")
        await bench.store.call("DEL", *keys)
        await bench.reaches(2)
        await bench.send([*pair(1, 1), *pair(2, 3)])
        await bench.reaches(4)
        (row,) = await query(servicer)
        assert row.attempts == 2


async def test_redis_that_dies_and_comes_back_is_waited_for(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    store = Store(
        own_valkey.url, installation=f"t-{secrets.token_hex(6)}", clock=SystemClock(), timeout=5.0
    )
    bench = Bench(store, tmp_path)
    async with bench.service() as servicer:
        await bench.send(pair(1, 1))
        await bench.reaches(2)
        own_valkey.kill()

        async def noticed() -> bool:
            return servicer.health() is not None

        await eventually(noticed)
        own_valkey.start()

        async def back() -> bool:
            return store.available and servicer.health() is None

        await eventually(back)
        await bench.reaches(2)
        await bench.send(pair(2, 3))
        await bench.reaches(4)
    await store.aclose()


# -- sweeping -------------------------------------------------------------------------------------


@pytest.fixture
async def swept(bench: Bench) -> AsyncIterator[tuple[Bench, UsageServicer]]:
    """A service whose leases a test can outlive."""
    bench.lease = 0.4
    async with bench.service() as servicer:
        yield bench, servicer


def now() -> float:
    """Return the present as `make_message` counts."""
    return time.time() - START


async def lost(servicer: UsageServicer) -> int:
    return sum(row.lost for row in await query(servicer))


async def test_silent_attempt_is_lost_after_lease_and_grace(
    swept: tuple[Bench, UsageServicer],
) -> None:
    bench, servicer = swept
    at = now()
    await bench.send(
        [
            make_bytes("opened", opened=at, at=at, sequence=1),
            make_bytes("renewed", n=1, opened=at, at=at, usage=TOKENS, sequence=2),
        ]
    )

    async def is_lost() -> bool:
        return await lost(servicer) == 1

    await eventually(is_lost)
    assert now() - at >= 0.8
    (row,) = await query(servicer)
    assert (row.estimated, row.output_tokens) == (1, 5)
    await bench.send([make_bytes("settled", opened=at, at=at + 2, usage=TOKENS, sequence=3)])
    await bench.reaches(3)
    assert await lost(servicer) == 0


@pytest.mark.parametrize("sign", ["lease", "backlog", "consumer"])
async def test_attempt_that_may_live_is_not_lost(bench: Bench, sign: str) -> None:
    """A lease renewed without news, a writer that is behind, a consumer that holds entries."""
    store, journal, at = bench.store, bench.store.key("journal"), now()
    bench.lease = 0.4
    message = make_message("opened", opened=at, at=at, sequence=1)
    lease = store.key("lease", message.attempt.attempt_uid)
    if sign == "lease":
        await store.call("SET", lease, "x")
    elif sign == "backlog":
        await store.call("HSET", store.key("journal", "backlog"), "w2", 3)
    else:
        await bench.send([make_bytes("opened", 9, sequence=1, writer="w9")])
        ((held, _),) = await store.read_group(journal, "ledger", "busy", 10, 0)
    async with bench.service() as servicer:
        await bench.send([message.SerializeToString()])
        await bench.reaches(1)
        await asyncio.sleep(1.4)  # lease and grace pass, and two sweeps
        assert await lost(servicer) == 0
        if sign == "consumer":
            await store.pipeline([["XACK", journal, "ledger", held], ["XDEL", journal, held]])
        await store.call("DEL", lease, store.key("journal", "backlog"))

        async def is_lost() -> bool:
            return await lost(servicer) == 1

        await eventually(is_lost)
