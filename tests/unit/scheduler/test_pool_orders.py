"""What a scheduler tells Redis of the pool: changes in their order, counters that are never out of sight."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.scheduler.health import HealthView
from patchbay_gateway.scheduler.marks import MarkError
from patchbay_gateway.scheduler.pool import Pool
from patchbay_gateway.scheduler.pool_scripts import CHANGE, SYNC


class Redis:
    """Takes orders, at once or when the test lets it."""

    prefix = ""

    def __init__(self) -> None:
        self.orders: list[tuple[Any, ...]] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def script(self, script: object, _: Any, args: list[Any]) -> Any:
        if self.away:
            raise Unavailable("away")
        if script is SYNC:
            await self.gate.wait()
            if self.away:
                raise Unavailable("away")
            return [0, 1, [], []]
        if script is CHANGE:
            self.orders.append(tuple(args[2:]))
            await self.gate.wait()
        return []


class Scene:
    def __init__(self) -> None:
        self.redis = Redis()
        self.view = HealthView(clock=ManualClock())
        self.pool = Pool(
            cast("Any", self.redis),
            self.view,
            cast("Any", SimpleNamespace(epoch="e")),
            clock=ManualClock(),
            metrics=NoMetrics(),
        )


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_switch_that_waited_for_redis_does_not_come_after_a_newer_one(scene: Scene) -> None:
    """The look that pushes what waited is up to a second away when Redis is back."""
    scene.redis.away = True
    with pytest.raises(Unavailable):
        await scene.pool.switch("c", off=True)
    scene.redis.away = False
    await scene.pool.switch("c", off=False)
    await scene.pool.sync()
    assert [order[0] for order in scene.redis.orders] == ["on"]


async def test_switch_that_is_overtaken_while_others_are_pushed_is_not_pushed(scene: Scene) -> None:
    scene.pool.want_renewed("a", 2)
    scene.pool.want_switched("c", off=True)
    scene.redis.gate.clear()
    pushing = asyncio.create_task(scene.pool.sync())
    await asyncio.sleep(0)
    switching = asyncio.create_task(scene.pool.switch("c", off=False))
    await asyncio.sleep(0)
    scene.redis.gate.set()
    await asyncio.gather(pushing, switching)
    assert [order[0] for order in scene.redis.orders] == ["version", "on"]


async def test_record_switched_off_and_on_between_two_looks_stays_on(scene: Scene) -> None:
    scene.pool.want_switched("c", off=True)
    scene.pool.want_switched("c", off=False)
    await scene.pool.sync()
    assert [order[0] for order in scene.redis.orders][-1:] == ["on"]


async def test_other_material_lifts_all_though_a_newer_version_comes_before_the_look(
    scene: Scene,
) -> None:
    """A quota of the former account would be held against the new one."""
    scene.pool.want_renewed("c", 3, replaced=True)
    scene.pool.want_renewed("c", 4)
    await scene.pool.sync()
    assert ("version", "c", 3, "all") in scene.redis.orders
    assert scene.redis.orders[-1] == ("version", "c", 4, "")


async def test_order_whose_caller_has_gone_is_given_again_and_none_before_it(scene: Scene) -> None:
    scene.pool.want_switched("c", off=True)
    scene.redis.gate.clear()
    switching = asyncio.create_task(scene.pool.switch("c", off=False))
    await asyncio.sleep(0)
    switching.cancel()
    await asyncio.gather(switching, return_exceptions=True)
    scene.redis.gate.set()
    await scene.pool.sync()
    assert [order[0] for order in scene.redis.orders] == ["on", "on"]


@pytest.mark.parametrize("heard", [True, False])
async def test_counters_on_their_way_are_still_counted(scene: Scene, heard: bool) -> None:
    """A list of credentials that is made in that moment would miss them."""
    tally = scene.pool.tally
    tally.succeeded("c")
    scene.redis.gate.clear()
    telling = asyncio.create_task(scene.pool.sync())
    for _ in range(5):
        await asyncio.sleep(0)
    tally.succeeded("c")
    assert tally.of("c").succeeded == 2
    scene.redis.away = not heard
    scene.redis.gate.set()
    await asyncio.gather(telling, return_exceptions=True)
    assert tally.of("c").succeeded == (1 if heard else 2)


async def test_error_that_is_forgotten_while_it_is_told_does_not_come_back(scene: Scene) -> None:
    tally = scene.pool.tally
    tally.failed("c", MarkError(429, "QUOTA", "no more"))
    scene.redis.gate.clear()
    telling = asyncio.create_task(scene.pool.sync())
    for _ in range(5):
        await asyncio.sleep(0)
    assert tally.of("c").error
    tally.forget_error("c")
    scene.redis.away = True
    scene.redis.gate.set()
    await asyncio.gather(telling, return_exceptions=True)
    assert not tally.of("c").error
    assert tally.of("c").failed == 1
