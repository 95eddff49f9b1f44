"""Timers of refreshes on a real Valkey: claimed once, returned by the dead, refused to the late."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from patchbay_gateway.kernel.redis import ensure_epoch
from patchbay_gateway.scheduler.timers import Claim, RedisTimers

if TYPE_CHECKING:
    from tests.integration.scheduler.conftest import Gateway


async def test_due_timers_are_claimed_once_by_many(gateway: Gateway) -> None:
    workers = [RedisTimers(gateway.store(), lease=300) for _ in range(8)]
    now = time.time()
    await workers[0].arm({f"c{n}": now - 1 for n in range(700)} | {"later": now + 600})
    claimed: list[str] = []

    async def work(timers: RedisTimers) -> None:
        while claims := (await timers.claim(7)).claims:
            claimed.extend(claim.credential_id for claim in claims)

    await asyncio.gather(*(work(timers) for timers in workers))
    assert sorted(claimed) == sorted(f"c{n}" for n in range(700))
    pause = (await workers[0].claim(1)).pause
    assert pause is not None
    assert 500 < pause <= 600


async def test_finished_timer_fires_again_at_its_next_instant(gateway: Gateway) -> None:
    timers = RedisTimers(gateway.store(), lease=300)
    await timers.arm({"a": 0.0})
    (claim,) = (await timers.claim(5)).claims
    assert not (await timers.claim(5)).claims
    assert await timers.finish(claim, time.time() - 0.1)
    (again,) = (await timers.claim(5)).claims
    assert again.fence != claim.fence
    assert await timers.finish(again, None)
    assert (await timers.claim(5)).pause is None


async def test_claim_of_a_dead_scheduler_returns_and_its_late_end_is_refused(
    gateway: Gateway,
) -> None:
    timers, other = RedisTimers(gateway.store(), lease=0.2), RedisTimers(gateway.store(), lease=300)
    await timers.arm({"a": 0.0})
    (dead,) = (await timers.claim(1)).claims
    async with asyncio.timeout(60):
        while not (claims := (await other.claim(1)).claims):  # noqa: ASYNC110 - the server's clock
            await asyncio.sleep(0.02)
    assert not await timers.finish(dead, 0.0)
    assert await other.finish(claims[0], None)


async def test_armed_timer_of_a_claimed_credential_waits_for_its_claimer(gateway: Gateway) -> None:
    timers = RedisTimers(gateway.store(), lease=300)
    await timers.arm({"a": 0.0})
    (claim,) = (await timers.claim(1)).claims
    await timers.arm({"a": 0.0})
    assert not (await timers.claim(1)).claims
    assert await timers.finish(claim, None)
    await timers.arm({"a": 0.0, "b": 0.0})
    await timers.arm({"a": None})
    assert [c.credential_id for c in (await timers.claim(5)).claims] == ["b"]


async def test_flush_shows_as_another_epoch_and_ends_claims(own_gateway: Gateway) -> None:
    store = own_gateway.store()
    timers = RedisTimers(store, lease=300)
    epoch = await ensure_epoch(store)
    await timers.arm({"a": 0.0})
    found = await timers.claim(1)
    assert found.epoch == epoch
    await store.call("FLUSHALL")
    assert (await timers.claim(1)).epoch == ""
    assert await ensure_epoch(store) != epoch
    assert not await timers.finish(found.claims[0], 0.0)
    assert not await timers.finish(Claim("a", ""), 0.0)
