"""The rules of marks are written twice, for Redis and for a scheduler alone: both do the same."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.redis import ensure_epoch
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.scheduler.grants import lease_value
from patchbay_gateway.scheduler.health import HealthView
from patchbay_gateway.scheduler.leases import Check, RedisLeases, Special
from patchbay_gateway.scheduler.marks import WHOLE, End, MarkError
from patchbay_gateway.scheduler.pool import Pool

if TYPE_CHECKING:
    from tests.integration.scheduler.conftest import Gateway

REASONS = ("QUOTA", "TRANSIENT", "UNAUTHORIZED", "RATE_LIMIT")


class Rig:
    """Leases and pool of one scheduler, and a view that applies the same ends by itself."""

    def __init__(self, gateway: Gateway, clock: ManualClock) -> None:
        self.clock = clock
        self.store = gateway.store()
        self.leases = RedisLeases(self.store, ttl=60, clock=clock)
        self.view = HealthView(clock=clock)
        self.alone = HealthView(clock=clock)
        self.pool = Pool(self.store, self.view, self.leases, clock=clock, metrics=NoMetrics())
        self.taken = 0

    async def take(self, model: str, **check: Any) -> tuple[str, str | None]:
        """Lease credential c; return uid and the reason of a refusal."""
        self.taken += 1
        uid = f"R{self.taken}-1"
        applied = await self.leases.apply(
            [(uid, lease_value("p", "c", model, 1))],
            [],
            [],
            [],
            Special(takes={1: Check(**check)}),
            self.view.version,
        )
        self.view.learn(applied.changes)
        for id_, busy in applied.counts:
            self.view.count(id_, busy)
        return uid, applied.refused.get(0)

    async def end(self, end: End) -> None:
        """Settle in Redis."""
        applied = await self.leases.apply([], [], [], [], Special(ends=[end]))
        self.view.learn(applied.changes)
        for id_, busy in applied.counts:
            self.view.count(id_, busy)


@pytest.fixture
async def rig(gateway: Gateway) -> Rig:
    made = Rig(gateway, ManualClock())
    made.leases.epoch = await ensure_epoch(made.store)
    await made.pool.sync()
    return made


def random_end(rng: random.Random, uid: str, model: str, opened: int) -> End:
    end = End(uid, "c", model, opened=opened, kind=rng.choice(("ok", "cool", "cool", "free")))
    limited = end.kind == "ok" and rng.random() < 0.2
    if end.kind == "cool" or limited:
        end.scope = rng.choice((WHOLE, model))
        end.reason = "RATE_LIMIT" if limited else rng.choice(REASONS)
        end.early = rng.randint(0, 1)
        end.version = 1
        end.error = rng.choice((None, MarkError(429, "rate_limited", "slow down", opened)))
        if limited or rng.random() < 0.5:
            end.fixed, end.asked = rng.choice((500, 30_000, 3_600_000)), rng.randint(0, 1)
        else:
            end.first, end.cap = 1000, rng.choice((1000, 60_000))
        end.at_least = rng.choice((0, 0, 60_000))
    return end


@pytest.mark.parametrize("seed", range(12))
async def test_redis_and_a_scheduler_alone_agree_on_marks(rig: Rig, seed: int):
    rng = random.Random(seed)
    live: list[tuple[str, str, int]] = []
    for _ in range(80):
        now = int(rig.clock.now() * 1000)
        model = rng.choice(("m", "n"))
        if rng.random() < 0.55:
            uid, refused = await rig.take(model)
            blocked = rig.alone.blocked("c", model)
            assert (refused is None) == (blocked is None or blocked.probe_allowed)
            if refused is None:
                live.append((uid, model, now))
                if blocked is not None:
                    assert rig.alone.probe("c", model, uid)
        elif live:
            uid, model, opened = live.pop(rng.randrange(len(live)))
            end = random_end(rng, uid, model, opened)
            rig.alone.settle(end)
            await rig.end(end)
        else:
            await rig.clock.advance(rng.choice((0.2, 1.1, 31.0, 400.0)))
        assert rig.view.marks("c") == rig.alone.marks("c")
    fresh = HealthView(clock=rig.clock)
    other = Pool(rig.store, fresh, rig.leases, clock=rig.clock, metrics=NoMetrics())
    await other.sync()
    assert fresh.marks("c") == rig.view.marks("c")
    assert fresh.version == rig.view.version


async def test_end_of_an_unknown_lease_changes_nothing(rig: Rig):
    await rig.end(End("R9-1", "c", "m", kind="cool", reason="QUOTA", fixed=1000))
    assert rig.view.blocked("c", "m") is None


async def test_repeated_end_does_not_grow_the_backoff(rig: Rig):
    uid, _ = await rig.take("m")
    end = End(uid, "c", "m", kind="cool", scope="m", reason="QUOTA", first=1000, cap=9000)
    end.opened = int(rig.clock.now() * 1000)
    await rig.end(end)
    await rig.clock.advance(2)
    await rig.end(end)
    assert rig.view.marks("c")["m"].level == 1


async def test_places_under_a_cap_are_counted_and_lost_ones_expire(rig: Rig):
    uids = [await rig.take("m", cap=2) for _ in range(3)]
    assert [refused for _, refused in uids] == [None, None, "BUSY"]
    assert rig.view.in_flight("c") == 2
    await rig.end(End(uids[0][0], "c", "m", capped=2))
    assert rig.view.in_flight("c") == 1
    assert (await rig.take("m", cap=2))[1] is None
    await rig.clock.advance(61)
    assert (await rig.take("m", cap=2))[1] is None
    assert rig.view.in_flight("c") == 1


async def test_lost_probe_lets_the_next_one_come(rig: Rig):
    uid, _ = await rig.take("m")
    await rig.end(End(uid, "c", "m", kind="cool", scope="m", reason="QUOTA", fixed=1000))
    await rig.clock.advance(2)
    assert (await rig.take("m"))[1] is None
    assert (await rig.take("m"))[1] == "PROBING"
    await rig.clock.advance(61)
    assert (await rig.take("m"))[1] is None


async def test_refusal_of_replaced_material_does_not_hold_against_the_new(rig: Rig):
    """Two attempts with one token meet a 401; the first report causes a refresh before the second comes."""
    first, _ = await rig.take("m")
    second, _ = await rig.take("m")
    end = End(first, "c", "m", kind="cool", reason="UNAUTHORIZED", fixed=1_800_000, lifted=1)
    await rig.end(end)
    assert rig.view.blocked("c", "m") is not None
    await rig.pool.renewed("c", 2)
    assert rig.view.blocked("c", "m") is None
    await rig.end(
        End(second, "c", "m", kind="cool", reason="UNAUTHORIZED", fixed=1_800_000, lifted=1)
    )
    assert rig.view.blocked("c", "m") is None
    assert (await rig.take("m"))[1] == "OUTDATED"


async def test_marks_made_alone_are_pushed_and_the_later_window_wins(rig: Rig):
    uid, _ = await rig.take("m")
    await rig.end(End(uid, "c", "m", kind="cool", scope="m", reason="QUOTA", fixed=5000))
    alone = HealthView(clock=rig.clock)
    other = Pool(rig.store, alone, rig.leases, clock=rig.clock, metrics=NoMetrics())
    other.alone([End("L1-1", "c", "m", kind="cool", scope="m", reason="QUOTA", fixed=60_000)])
    other.alone([End("L2-1", "c", "n", kind="cool", scope="n", reason="TRANSIENT", fixed=9000)])
    # The epoch was known before the outage, so nothing is forgotten.
    other._epoch = rig.leases.epoch
    await other.sync()
    await rig.pool.sync()
    now = int(rig.clock.now() * 1000)
    assert rig.view.marks("c")["m"].until == now + 60_000
    assert rig.view.marks("c")["n"].until == now + 9000
    assert alone.marks("c") == rig.view.marks("c")


async def test_another_epoch_forgets_cooldowns_but_not_who_is_disabled(own_gateway: Gateway):
    rig = Rig(own_gateway, ManualClock())
    rig.leases.epoch = await ensure_epoch(rig.store)
    await rig.pool.sync()
    uid, _ = await rig.take("m")
    await rig.end(End(uid, "c", "m", kind="cool", scope="m", reason="QUOTA", fixed=5000))
    rig.pool.disabled = lambda: ["d"]
    await rig.store.call("FLUSHALL")
    rig.leases.epoch = await ensure_epoch(rig.store)
    await rig.pool.sync()
    assert rig.view.blocked("c", "m") is None
    assert rig.view.disabled("d")


async def test_newer_material_lifts_its_marks_here_though_redis_is_away(own_gateway: Gateway):
    rig = Rig(own_gateway, ManualClock())
    rig.pool.alone(
        [
            End("L1-1", "c", "m", kind="cool", reason="UNAUTHORIZED", fixed=60_000, lifted=1),
            End("L2-1", "d", "m", kind="cool", reason="UNAUTHORIZED", fixed=60_000, version=9),
        ]
    )
    assert rig.view.blocked("c", "m") is not None
    rig.pool.want_renewed("c", 2)
    rig.pool.want_renewed("d", 9)
    assert rig.view.blocked("c", "m") is None
    assert rig.view.blocked("d", "m") is not None


async def test_resets_of_two_models_while_redis_is_away_both_reach_it(own_gateway: Gateway):
    rig = Rig(own_gateway, ManualClock())
    rig.leases.epoch = await ensure_epoch(rig.store)
    await rig.pool.sync()
    for model in ("m", "n"):
        uid, _ = await rig.take(model)
        await rig.end(End(uid, "c", model, kind="cool", scope=model, reason="QUOTA", fixed=5000))
    epoch, rig.leases.epoch = rig.leases.epoch, "another"
    for model in ("m", "n"):
        with pytest.raises(Unavailable):
            await rig.pool.reset("c", model)
    rig.leases.epoch = epoch
    await rig.pool.sync()
    assert await rig.store.call("HKEYS", rig.store.key("cred", "c")) == []
