"""Redis hung, killed, emptied, and schedulers killed: attempts go on and no event is lost."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

from tests.integration.scheduler.conftest import USUAL, acquire, events, eventually, report

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.clock import ManualClock, SystemClock
from patchbay_gateway.plugins.distribution import SnapshotHolder, SnapshotWatcher

if TYPE_CHECKING:
    from tests.conftest import ValkeyProcess
    from tests.integration.scheduler.conftest import Gateway

    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.scheduler.service import SchedulerServicer


async def attempt(scheduler: SchedulerServicer, version: int, uid: str) -> str:
    """Make one attempt; return its credential."""
    lease = (await scheduler.Acquire(acquire(version, uid))).results[0].lease
    assert lease.attempt.credential_id
    await scheduler.Report(report(lease))
    return lease.attempt.credential_id


def expected(uids: list[str]) -> set[tuple[str, int]]:
    kinds = (journal_pb2.EVENT_KIND_OPENED, journal_pb2.EVENT_KIND_SETTLED)
    return {(uid, kind) for uid in uids for kind in kinds}


async def journaled(store: Store) -> set[tuple[str, int]]:
    return {(event.attempt.attempt_uid, event.kind) for event in await events(store)}


async def until_journaled(store: Store, uids: list[str]) -> None:
    async def complete() -> bool:
        return await journaled(store) == expected(uids)

    await eventually(complete)


async def looked(store: Store) -> None:
    """Wait until the only scheduler has looked at what is in Redis now: each look counts the journal."""

    async def looks() -> int:
        found = re.search(rb"cmdstat_xlen:calls=(\d+)", await store.call("INFO", "commandstats"))
        return int(found[1]) if found else 0

    # One look may be under way; when another comes, the first that began after this is over.
    wanted = await looks() + 3

    async def enough() -> bool:
        return await looks() >= wanted

    await eventually(enough)


async def in_order(store: Store) -> bool:
    """Whether no event came before all earlier ones had come at least once."""
    highest = 0
    for event in await events(store):
        if event.sequence > highest + 1:
            return False
        highest = max(highest, event.sequence)
    return True


async def test_hung_redis_delays_attempts_briefly_and_gets_all_events_later(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    store = own_gateway.store()
    own_gateway.timeout = USUAL
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        uids = [f"R{i}-1" for i in range(20)]
        await attempt(scheduler, version, uids[0])
        own_valkey.signal(signal.SIGSTOP)
        slowest = 0.0
        for uid in uids[1:]:
            began = time.monotonic()
            await attempt(scheduler, version, uid)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 20  # a timeout of 250 ms, and a machine that others use too
        own_valkey.signal(signal.SIGCONT)
        await until_journaled(store, uids)
        assert await in_order(store)

        async def announced_nothing() -> bool:
            return not await store.call("HGETALL", store.key("journal", "backlog"))

        await eventually(announced_nothing)
        after = [*uids, "after-1"]
        await attempt(scheduler, version, "after-1")
        await until_journaled(store, after)
        assert await store.call("KEYS", store.key("lease", "after*")) == []


async def test_repeated_attempt_while_redis_is_away_gets_the_same_lease(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        own_valkey.kill()
        first = await scheduler.Acquire(acquire(version, "R-1"))
        await scheduler.Acquire(acquire(version, "S-1"))
        again = await scheduler.Acquire(acquire(version, "R-1"))
        assert (
            first.results[0].lease.attempt.credential_id
            == again.results[0].lease.attempt.credential_id
        )


async def test_restarted_empty_redis_is_filled_again(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    store = own_gateway.store()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        uids = [f"R{i}-1" for i in range(6)]
        for uid in uids[:3]:
            await attempt(scheduler, version, uid)
        own_valkey.kill()
        for uid in uids[3:]:
            await attempt(scheduler, version, uid)
        own_valkey.start()
        await until_journaled(store, uids)

        async def published() -> bool:
            found = await store.call("GET", store.key("snapshot", "version"))
            return found is not None and int(found) == version

        await eventually(published)
        assert holder.current.version == version


async def test_flushed_redis_gets_what_is_above_the_watermark_again(own_gateway: Gateway):
    store = own_gateway.store()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        for i in range(4):
            await attempt(scheduler, version, f"R{i}-1")
        await until_journaled(store, [f"R{i}-1" for i in range(4)])
        writer = (await events(store))[0].writer
        await store.call("HSET", store.key("journal", "watermark"), writer, 4)
        await looked(store)
        await store.call("FLUSHALL")
        await attempt(scheduler, version, "after-1")

        async def complete() -> bool:
            return await journaled(store) == expected(["R2-1", "R3-1", "after-1"])

        await eventually(complete)
        sequences = [event.sequence for event in await events(store)]
        assert sequences[0] == 5

        async def published() -> bool:
            found = await store.call("GET", store.key("snapshot", "version"))
            return found is not None and int(found) == version

        await eventually(published)


async def test_scheduler_begins_without_redis_and_publishes_when_it_comes(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    own_valkey.kill()
    store = own_gateway.store()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        await attempt(scheduler, version, "R-1")
        own_valkey.start()
        await until_journaled(store, ["R-1"])

        async def published() -> bool:
            return bool(await store.call("EXISTS", store.key("snapshot", "manifest")))

        await eventually(published)
        follower = SnapshotHolder()
        watcher = SnapshotWatcher(store, follower, None, SystemClock())
        await watcher.boot()
        assert follower.current is not None
        assert holder.get(follower.current.version) is not None


async def test_snapshot_on_disk_serves_while_redis_is_away(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    async with own_gateway.scheduler() as (_, holder):
        first = holder.current

        async def kept() -> bool:
            return (own_gateway.directory / "a" / "snapshot.json").exists()

        await eventually(kept)
    own_valkey.kill()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current == first
        assert first is not None
        await attempt(scheduler, first.version, "R-1")


async def test_events_of_an_ended_scheduler_are_sent_by_its_next_life(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    store = own_gateway.store()
    own_valkey.kill()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        await attempt(scheduler, holder.current.version, "R-1")
    own_valkey.start()
    async with own_gateway.scheduler():
        await until_journaled(store, ["R-1"])


async def test_long_stream_keeps_events_in_the_file(own_gateway: Gateway):
    """When the ledger does not follow, the journal in Redis stops growing, and nothing is lost."""
    store = own_gateway.store()
    async with own_gateway.scheduler(stream_bound=10) as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        uids = [f"R{i}-1" for i in range(10)]
        for uid in uids:
            await attempt(scheduler, version, uid)

        async def held() -> bool:
            return bool(await store.call("HGETALL", store.key("journal", "backlog")))

        async def one_more() -> bool:
            uids.append(f"R{len(uids)}-1")
            await attempt(scheduler, version, uids[-1])
            return await held()

        await eventually(one_more)
        assert len(await journaled(store)) < 2 * len(uids)
        seen: set[tuple[str, int]] = set()

        async def complete() -> bool:
            entries = await store.call("XRANGE", store.key("journal"), "-", "+")
            for id_, fields in entries:
                event = journal_pb2.JournalEvent.FromString(fields[1])
                seen.add((event.attempt.attempt_uid, event.kind))
                await store.call("XDEL", store.key("journal"), id_)
            return seen == expected(uids) and not await held()

        await eventually(complete)


async def test_lease_renewed_after_a_flush_stands_again(own_gateway: Gateway):
    store = own_gateway.store()
    async with own_gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        lease = (await scheduler.Acquire(acquire(holder.current.version, "R-1"))).results[0].lease
        await store.call("FLUSHALL")
        request = scheduler_pb2.RenewRequest(edge_id="edge")
        request.items.add(attempt=lease.attempt)

        async def stands() -> bool:
            await scheduler.Renew(request)
            return bool(await store.call("EXISTS", store.key("lease", "R-1")))

        await eventually(stands)
        again = await scheduler.Acquire(acquire(holder.current.version, "R-1"))
        assert again.results[0].lease.attempt.credential_id == lease.attempt.credential_id


async def test_scheduler_that_stops_brings_what_waits_in_its_file(
    own_gateway: Gateway, own_valkey: ValkeyProcess
) -> None:
    """The file may go with the process, and with it the ends of attempts."""
    own_gateway.timeout = 1.0  # the last look is the only one
    # Nothing is looked at again by itself on a clock that stands.
    async with own_gateway.scheduler(clock=ManualClock()) as (scheduler, holder):
        assert holder.current is not None
        own_valkey.signal(signal.SIGSTOP)
        try:
            await attempt(scheduler, holder.current.version, "a-1")
            await attempt(scheduler, holder.current.version, "b-1")
        finally:
            own_valkey.signal(signal.SIGCONT)

        async def back() -> bool:
            return own_gateway.stores[-1].available

        await eventually(back)
    assert await journaled(own_gateway.store()) == expected(["a-1", "b-1"])
