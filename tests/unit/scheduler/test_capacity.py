"""The queue for credentials at their cap: order, limits, and what happens to those who left."""

from __future__ import annotations

import asyncio

import pytest

from patchbay_gateway.plugins.snapshot import QueueEntry
from patchbay_gateway.scheduler.capacity import BUSY, HOLD, QUEUED, Capacity

LIMITS = QueueEntry(length=3, wait=5.0)
KEY = ("m", ("a",))


class Desk:
    """Attempts, and one place that they wait for."""

    def __init__(self, clock):
        self.clock = clock
        self.capacity = Capacity(clock=clock)
        self.free = 0
        self.served = []
        self.refused = []
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, uid, limits=LIMITS):
        """Do what Acquire does with one attempt; return the reason of its refusal."""
        if self.capacity.may_try(KEY, uid) and self.free:
            self.free -= 1
            self.capacity.leave(uid)
            self.served.append(uid)
            return None
        reason = self.capacity.refusal(KEY, uid, limits).reason
        if reason == BUSY:
            self.refused.append(uid)
        return reason

    async def wait(self, uid):
        """Do what the edge does: ask again, alone, until it is served or refused."""
        while self.ask(uid) == QUEUED:
            await self.capacity.turn(uid)

    def release(self):
        self.free += 1
        self.capacity.wake()


@pytest.fixture
async def desk(clock):
    made = Desk(clock)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def queued(desk, *uids):
    for uid in uids:
        desk.tasks.append(asyncio.create_task(desk.wait(uid)))
        await settled()


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_nobody_waits_everybody_may_try(desk):
    assert desk.capacity.may_try(KEY, "a")
    desk.free = 1
    assert desk.ask("a") is None
    assert len(desk.capacity) == 0


async def test_first_come_first_served(desk):
    await queued(desk, "a", "b", "c")
    for _ in range(3):
        desk.release()
        await settled()
    assert desk.served == ["a", "b", "c"]
    assert len(desk.capacity) == 0


async def test_places_that_become_free_together_serve_as_many(desk):
    await queued(desk, "a", "b", "c")
    desk.free = 1
    desk.release()
    await settled()
    assert desk.served == ["a", "b"]


async def test_newcomer_does_not_overtake(desk):
    await queued(desk, "a")
    desk.free = 1
    assert desk.ask("late") == QUEUED
    desk.capacity.wake()
    await settled()
    assert desk.served == ["a"]


async def test_other_credentials_have_another_queue(desk):
    await queued(desk, "a")
    assert desk.capacity.may_try(("m", ("b",)), "x")
    assert not desk.capacity.may_try(KEY, "x")


async def test_wait_ends_after_its_time(desk, clock):
    await queued(desk, "a")
    await clock.advance(4.9)
    assert desk.refused == []
    await clock.advance(0.2)
    assert desk.refused == ["a"]
    assert len(desk.capacity) == 0


async def test_call_is_held_no_longer_than_an_edge_waits(desk, clock):
    patient = QueueEntry(wait=60.0)
    await queued(desk, "a")
    desk.ask("b", patient)
    turn = asyncio.create_task(desk.capacity.turn("b"))
    await settled()
    await clock.advance(HOLD - 0.1)
    assert not turn.done()
    await clock.advance(0.2)
    assert turn.done()
    assert HOLD < 5.0 / 4
    assert desk.ask("b", patient) == QUEUED


async def test_full_queue_refuses_at_once(desk):
    await queued(desk, "a", "b", "c")
    assert desk.ask("d") == BUSY
    assert desk.ask("a") == QUEUED


@pytest.mark.parametrize("limits", [QueueEntry(length=0), QueueEntry(wait=0.0)])
async def test_queue_switched_off_refuses_at_once(desk, limits):
    assert desk.ask("a", limits) == BUSY
    assert len(desk.capacity) == 0


async def test_cancelled_call_gives_its_place_up(desk):
    await queued(desk, "a", "b")
    desk.tasks[0].cancel()
    await settled()
    desk.release()
    await settled()
    assert desk.served == ["b"]


async def test_attempt_that_nobody_asks_for_is_forgotten(desk, clock):
    assert desk.ask("gone") == QUEUED
    await queued(desk, "a")
    desk.free = 1
    await clock.advance(2.0)
    assert desk.served == ["a"]
    assert len(desk.capacity) == 0


async def test_first_looks_by_itself_where_nobody_tells(desk, clock):
    await queued(desk, "a")
    desk.free = 1
    await clock.advance(0.5)
    assert desk.served == ["a"]


async def test_turn_of_an_attempt_that_does_not_wait_is_now(desk):
    await desk.capacity.turn("never seen")


async def test_place_freed_before_the_attempt_asks_again_is_not_missed(desk):
    assert desk.ask("a") == QUEUED
    desk.release()
    await asyncio.wait_for(desk.capacity.turn("a"), 30)
    assert desk.ask("a") is None
