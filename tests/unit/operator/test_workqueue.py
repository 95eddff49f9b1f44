"""When a key comes back (workqueue.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class World:
    """A queue, and its work: what was done, when, and what fails."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.start = self.clock.monotonic()
        self.done: list[float] = []
        self.fails = False
        self.queue: WorkQueue[str] = WorkQueue(self.work, clock=self.clock)

    async def work(self, key: str) -> None:
        self.done.append(self.clock.monotonic() - self.start)
        if self.fails:
            raise Unavailable("away", reason="AWAY")

    async def settle(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    running = asyncio.create_task(made.queue.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_key_wanted_soon_does_not_wait_for_the_backoff_of_an_old_failure(
    world: World,
) -> None:
    world.fails = True
    world.queue.add("key")
    while len(world.done) < 12:  # so often that it would come back in minutes
        await world.settle(10.0)
    world.fails = False
    world.queue.add("key")
    await world.settle()
    world.done.clear()
    now = world.clock.monotonic() - world.start
    world.queue.add_later("key", 10.0)
    await world.settle()
    await world.settle(10.0)
    assert world.done == [now + 10.0]


async def test_key_wanted_later_than_it_comes_anyway_comes_once(world: World) -> None:
    world.queue.add_later("key", 10.0)
    world.queue.add_later("key", 20.0)
    await world.settle()
    await world.settle(60.0)
    assert world.done == [10.0]


async def test_key_added_while_it_is_worked_on_comes_again() -> None:
    began: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def work(_: str) -> None:
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began.put_nowait(end)
        await end

    queue: WorkQueue[str] = WorkQueue(work, clock=ManualClock())
    running = asyncio.create_task(queue.run())
    queue.add("key")
    async with asyncio.timeout(60):
        end = await began.get()
        queue.add("key")
        end.set_result(None)
        (await began.get()).set_result(None)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
