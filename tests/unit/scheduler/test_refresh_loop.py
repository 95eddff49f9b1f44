"""Timers become refreshes; without timers only what has run out is refreshed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.scheduler.refresh_loop import ALONE_EVERY, ARM_EVERY, NOT_HERE, RefreshLoop
from patchbay_gateway.scheduler.timers import Claim, Claims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence


class FakeTimers:
    """Timers of one scheduler, in memory."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.due: dict[str, float] = {}
        self.claimed: set[str] = set()
        self.epoch = "first"
        self.away = False
        self.armings = 0

    async def claim(self, most: int) -> Claims:
        self.look()
        now = self.clock.now()
        fired = [id_ for id_, at in self.due.items() if at <= now][:most]
        for id_ in fired:
            del self.due[id_]
            self.claimed.add(id_)
        left = min(self.due.values(), default=None)
        pause = max(left - now, 0.0) if left is not None else None
        return Claims([Claim(id_, "f") for id_ in fired], pause, self.epoch)

    async def finish(self, claim: Claim, due: float | None) -> bool:
        self.look()
        self.claimed.discard(claim.credential_id)
        if due is not None:
            self.due[claim.credential_id] = due
        return True

    async def arm(self, due: Mapping[str, float | None]) -> None:
        self.look()
        self.armings += 1
        for id_, at in due.items():
            if at is not None and id_ not in self.claimed:
                self.due[id_] = at

    def look(self) -> None:
        if self.away:
            raise Unavailable("away")

    def flush(self) -> None:
        self.due.clear()
        self.claimed.clear()
        self.epoch = "second"


class FakeRefresher:
    """A refresher whose credentials are due when the test says."""

    def __init__(self, clock: ManualClock, ids: Sequence[str]) -> None:
        self.clock = clock
        self.known = dict.fromkeys(ids)
        self.dues: dict[str, float | None] = dict.fromkeys(ids, clock.now() + 100.0)
        self.here = True
        self.flown: list[str] = []
        self.run_out: list[str] = []
        self.answered = asyncio.Event()
        self.answered.set()

    def able(self, credential_id: str) -> bool:
        return self.here

    def due(self, credential_id: str) -> float | None:
        return self.dues[credential_id]

    async def fly(self, credential_id: str) -> bool:
        self.flown.append(credential_id)
        await self.answered.wait()
        if self.here:
            self.dues[credential_id] = self.clock.now() + 100.0
        return True

    def urgent(self) -> list[str]:
        return self.run_out

    def count_lost(self) -> None:
        pass


class World:
    """A loop that runs."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.timers = FakeTimers(self.clock)
        self.refresher = FakeRefresher(self.clock, ["a", "b"])
        self.loop = RefreshLoop(self.refresher, self.timers, clock=self.clock)  # type: ignore[arg-type] # as much of one as it needs

    async def turn(self, seconds: float = 0.0) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        if seconds:
            await self.clock.advance(seconds)
            await self.turn()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    running = asyncio.create_task(made.loop.run())
    await made.turn()
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_timer_that_fires_becomes_a_flight_and_is_set_again(world: World) -> None:
    assert world.refresher.flown == []
    await world.turn(101)
    assert sorted(world.refresher.flown) == ["a", "b"]
    assert all(at > world.clock.now() + 90 for at in world.timers.due.values())
    assert world.timers.claimed == set()


async def test_change_of_a_record_moves_its_timer(world: World) -> None:
    world.refresher.dues["a"] = world.clock.now() + 1
    world.loop.changed("a")
    await world.turn(1.1)
    assert world.refresher.flown == ["a"]


async def test_timers_that_were_lost_are_armed_again(world: World) -> None:
    world.timers.flush()
    await world.turn(6)
    assert set(world.timers.due) == {"a", "b"}
    world.timers.due.clear()
    await world.turn(ARM_EVERY + 6)
    assert set(world.timers.due) == {"a", "b"}


async def test_without_timers_only_what_has_run_out_is_refreshed(world: World) -> None:
    world.timers.away = True
    world.refresher.run_out = ["b"]
    world.loop.changed_all()
    await world.turn(ALONE_EVERY / 2)
    assert world.refresher.flown == ["b"]
    world.refresher.run_out = []
    await world.turn(200)
    assert world.refresher.flown == ["b"]
    world.timers.away = False
    world.timers.flush()
    await world.turn(2)
    assert "a" in world.refresher.flown


async def test_who_cannot_refresh_claims_nothing(world: World) -> None:
    world.refresher.here = False
    await world.turn(150)
    assert world.refresher.flown == []
    assert world.timers.claimed == set()


async def test_timer_that_cannot_be_served_here_pauses(world: World) -> None:
    """A claim made for one credential may be of another that this process lacks the secrets of."""
    world.refresher.dues["a"] = world.clock.now()
    fly = world.refresher.fly

    async def unable(credential_id: str) -> bool:
        world.refresher.here = False
        return await fly(credential_id)

    world.refresher.fly = unable  # type: ignore[method-assign] # it loses its plugin meanwhile
    world.loop.changed("a")
    await world.turn()
    assert world.timers.due["a"] == world.clock.now() + NOT_HERE


async def test_slow_refreshes_without_timers_hold_up_neither_others_nor_timers(
    world: World,
) -> None:
    """They were begun again each second, and for as long no timer was claimed."""
    world.timers.away = True
    world.refresher.answered.clear()
    world.refresher.run_out = ["a"]
    for _ in range(20):
        await world.turn(ALONE_EVERY)
    assert world.refresher.flown == ["a"]
    world.refresher.run_out = ["a", "b"]
    await world.turn(ALONE_EVERY)
    assert world.refresher.flown == ["a", "b"]
    world.timers.away = False
    world.refresher.flown.clear()
    world.refresher.dues["b"] = world.clock.now()
    world.loop.changed("b")
    await world.turn(ALONE_EVERY)
    assert world.refresher.flown == ["b"]
    world.refresher.answered.set()
    await world.turn()


async def test_scheduler_that_stops_gives_back_the_timers_of_its_flights() -> None:
    """They would fire nowhere for two minutes: a token that lives shorter would run out."""
    world = World()
    world.refresher.answered.clear()
    world.refresher.dues["a"] = world.clock.now()
    running = asyncio.create_task(world.loop.run())
    await world.turn()
    assert world.timers.claimed == {"a"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.timers.claimed == set()
    assert world.timers.due["a"] <= world.clock.now() + ALONE_EVERY
