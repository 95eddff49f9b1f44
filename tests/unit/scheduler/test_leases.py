"""Calls are shared, failures make leases local, and events keep their order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from patchbay.errors import ResourceExhausted, Unavailable
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.scheduler.alone import Local
from patchbay_gateway.scheduler.booking import LeaseBook
from patchbay_gateway.scheduler.health import HealthView
from patchbay_gateway.scheduler.journal import Draft, Journal
from patchbay_gateway.scheduler.leases import Applied, EpochChanged


class MemoryLog:
    """A write-ahead file in memory."""

    writer_id = "w"

    def __init__(self):
        self.payloads = []
        self.synced = 0
        self.full = False

    @property
    def last_sequence(self):
        return len(self.payloads)

    def append(self, payloads):
        if self.full:
            raise ResourceExhausted("full")
        self.payloads.extend(payloads)
        return len(self.payloads) - len(payloads) + 1

    async def sync(self):
        self.synced = len(self.payloads)

    def truncate(self, up_to):
        raise AssertionError("not called here")

    def read(self, after=0):
        for index in range(after, len(self.payloads)):
            yield index + 1, self.payloads[index]


class MemoryLeases:
    """A lease store whose calls the test lets through or fails."""

    def __init__(self):
        self.calls = []
        self.leases = {}
        self.events = []
        self.failure = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def apply(self, take, renew, end, events, special=None, version=0):
        self.calls.append((list(take), list(renew), list(end), len(events)))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        standing = {}
        for index, (uid, value) in enumerate(take):
            if uid in self.leases:
                standing[index] = self.leases[uid]
            else:
                self.leases[uid] = value
        ended = {index for index, (uid, _) in enumerate(renew) if uid not in self.leases}
        self.leases |= dict(renew)
        for uid in end:
            self.leases.pop(uid, None)
        self.events.extend(events)
        return Applied(standing=standing, ended=ended)


class Rig:
    """A book over memory."""

    def __init__(self, clock):
        self.clock = clock
        self.log = MemoryLog()
        self.store = MemoryLeases()
        self.journal = Journal(self.log, clock=clock, installation="i")
        self.journal.rejoin([])
        self.local = Local(clock=clock, ttl=60)
        self.behind = asyncio.Event()
        self.view = HealthView(clock=clock)
        self.alone: list[Any] = []
        self.book = LeaseBook(
            self.store,
            self.journal,
            self.local,
            on_behind=self.behind,
            view=self.view,
            on_alone=self.alone.extend,
        )

    def record(self, uid):
        self.journal.record([self.draft(uid)])

    def draft(self, uid):
        return Draft(journal_pb2.EVENT_KIND_OPENED, journal_pb2.AttemptInfo(attempt_uid=uid))

    def sequences(self):
        return [journal_pb2.JournalEvent.FromString(e).sequence for e in self.store.events]


@pytest.fixture
async def rig(clock):
    made = Rig(clock)
    task = asyncio.create_task(made.book.run())
    await asyncio.sleep(0)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_attempts_of_one_turn_share_a_call(rig):
    found = await asyncio.gather(*[rig.book.take([(f"{i}", "v")]) for i in range(5)])
    assert found == [[None] for _ in range(5)]
    assert [len(take) for take, *_ in rig.store.calls] == [5]


async def test_what_comes_while_a_call_is_under_way_shares_the_next(rig):
    rig.store.gate.clear()
    first = asyncio.create_task(rig.book.take([("a", "v")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(rig.book.take([(f"{i}", "v")])) for i in range(3)]
    await asyncio.sleep(0)
    rig.store.gate.set()
    await asyncio.gather(first, *others)
    assert [len(take) for take, *_ in rig.store.calls] == [1, 3]


async def test_lease_of_a_call_that_was_given_up_is_not_taken(rig):
    """An edge that went to another scheduler must not leave a second lease behind, which nobody ends."""
    rig.store.gate.clear()
    first = asyncio.create_task(rig.book.take([("a", "v")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    given_up = asyncio.create_task(rig.book.take([("b", "v")]))
    third = asyncio.create_task(rig.book.take([("c", "v")]))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    rig.store.gate.set()
    assert list(await asyncio.gather(first, third)) == [[None], [None]]
    assert set(rig.store.leases) == {"a", "c"}


async def test_standing_leases_are_told_to_those_who_asked(rig):
    rig.store.leases = {"b": "theirs"}
    first, second = await asyncio.gather(
        rig.book.take([("a", "v"), ("b", "v")]), rig.book.take([("c", "v")])
    )
    assert first == [None, "theirs"]
    assert second == [None]


async def test_events_travel_with_leases_in_their_order(rig):
    for uid in "abc":
        rig.record(uid)
        await rig.book.take([(uid, "v")])
    assert rig.sequences() == [1, 2, 3]
    assert rig.journal.sent == 3


async def test_ends_wait_for_company(rig):
    await rig.book.take([("a", "v")])
    rig.record("a")
    rig.book.end(["a"])
    await rig.book.take([("b", "v")])
    assert rig.store.calls[-1] == ([("b", "v")], [], ["a"], 1)
    assert rig.store.leases == {"b": "v"}


async def test_ends_without_company_go_soon(rig):
    rig.book.end(["a"])
    async with asyncio.timeout(30):
        while not rig.store.calls:  # noqa: ASYNC110 - the loop's own timer
            await asyncio.sleep(0.001)
    assert rig.store.calls == [([], [], ["a"], 0)]


async def test_failure_makes_leases_local_and_syncs_the_file(rig):
    rig.store.failure = Unavailable("away")
    assert await rig.book.take([("a", "mine")]) == [None]
    rig.book.opened([rig.draft("a")])
    await rig.book.durable()
    assert await rig.book.take([("a", "other")]) == ["mine"]
    assert rig.log.synced == 1
    assert not rig.journal.live
    assert rig.behind.is_set()
    assert rig.journal.backlog == 1


async def test_local_lease_stands_when_redis_is_back(rig):
    rig.store.failure = Unavailable("away")
    await rig.book.take([("a", "mine")])
    rig.store.failure = None
    assert await rig.book.take([("a", "other")]) == ["mine"]
    assert await rig.book.renew([("a", "mine"), ("b", "v")]) == [True, False]
    assert rig.store.leases == {"a": "mine", "b": "v"}
    assert len(rig.local) == 0
    assert await rig.book.renew([("a", "mine"), ("b", "v")]) == [True, True]


async def test_behind_a_call_without_events_does_not_count_as_delivery(rig):
    """Leases are taken again before the file is sent; its events still wait."""
    rig.store.failure = EpochChanged()
    rig.record("a")
    await rig.book.take([("a", "v")])
    rig.store.failure = None
    await rig.book.take([("b", "v")])
    assert rig.journal.sent == 0
    assert rig.journal.backlog == 1
    assert [sequence for sequence, _ in rig.journal.unsent()] == [1]


async def test_call_delivered_after_a_rewind_does_not_move_the_position(rig):
    rig.store.gate.clear()
    rig.record("a")
    waiting = asyncio.create_task(rig.book.take([("a", "v")]))
    for _ in range(3):
        await asyncio.sleep(0)
    rig.journal.rewind(0)
    rig.store.gate.set()
    await waiting
    assert rig.journal.sent == 0


async def test_local_leases_expire(clock):
    local = Local(clock=clock, ttl=60)
    local.take("a", "v")
    await clock.advance(61)
    assert local.standing("a") is None
    local.renew("a")
    assert not local.end("a")
    local.take("b", "v")
    assert len(local) == 1


async def test_end_of_the_worker_ends_those_who_wait(clock):
    rig = Rig(clock)
    task = asyncio.create_task(rig.book.run())
    await asyncio.sleep(0)
    rig.store.gate.clear()
    waiting = [asyncio.create_task(rig.book.take([(uid, "v")])) for uid in "ab"]
    for _ in range(3):
        await asyncio.sleep(0)
    late = asyncio.create_task(rig.book.take([("c", "v")]))
    await asyncio.sleep(0)
    task.cancel()
    results = await asyncio.gather(task, *waiting, late, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    with pytest.raises(Unavailable):
        rig.book.admit()
    with pytest.raises(Unavailable):
        await rig.book.take([("d", "v")])


async def test_worker_that_ends_in_the_middle_of_a_call_leaves_what_it_carried_to_the_last_one(
    clock,
):
    """A process that stops under load would take ends and events with it, and its file perhaps too."""
    rig = Rig(clock)
    task = asyncio.create_task(rig.book.run())
    await asyncio.sleep(0)
    await rig.book.take([("a", "v"), ("b", "v")])
    rig.store.gate.clear()
    for uid in "ab":
        rig.record(uid)
    rig.book.end(["a"])
    taking = asyncio.create_task(rig.book.take([("c", "v")]))
    while len(rig.store.calls) < 2:  # noqa: ASYNC110 - a few turns of the loop
        await asyncio.sleep(0)
    rig.record("c")
    rig.book.end(["b"])
    task.cancel()
    await asyncio.gather(task, taking, return_exceptions=True)
    rig.store.gate.set()
    await rig.book.flush()
    assert rig.store.leases == {}
    assert rig.sequences() == [1, 2, 3]
    assert rig.journal.sent == 3


async def test_full_file_refuses(rig):
    rig.log.full = True
    with pytest.raises(ResourceExhausted):
        rig.record("a")
    assert not rig.journal.waiting


async def test_events_are_whole_messages(clock):
    log = MemoryLog()
    journal = Journal(log, clock=clock, installation="i")
    attempt = journal_pb2.AttemptInfo(attempt_uid="a", model="m" * 300, number=1)
    draft = Draft(journal_pb2.EVENT_KIND_RENEWED, attempt, n=300)
    draft.usage = journal_pb2.JournalEvent().usage
    draft.usage.items.add(unit="output_tokens", quantity=5)
    draft.settlement = journal_pb2.Settlement(http_status=200)
    journal.record([draft])
    event = journal_pb2.JournalEvent.FromString(log.payloads[0])
    assert (event.schema, event.kind, event.n) == (1, journal_pb2.EVENT_KIND_RENEWED, 300)
    assert (event.writer, event.sequence) == ("w", 1)
    assert event.at.seconds == int(clock.now())
    assert event.attempt.installation == "i"
    assert event.attempt.model == attempt.model
    assert event.usage == draft.usage
    assert event.settlement == draft.settlement
    # The attempt is the caller's own object.
    assert not attempt.installation


async def test_too_many_waiting_are_refused(rig):
    rig.store.gate.clear()
    crowd = [(str(i), "v") for i in range(16_384)]
    first = asyncio.create_task(rig.book.take([("a", "v")]))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting = asyncio.create_task(rig.book.take(crowd))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted):
        rig.book.admit()
    rig.store.gate.set()
    await asyncio.gather(first, waiting)
    rig.book.admit()
