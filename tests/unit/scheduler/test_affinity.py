"""Sessions and their credentials over a store in memory; tests/integration has the real one."""

from __future__ import annotations

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.scheduler.affinity import NONE, Affinity, Wanted


class MemoryStore:
    """What of a Store affinity uses, by the meaning of its script."""

    def __init__(self):
        self.values = {}
        self.calls = []
        self.away = False

    def key(self, *parts):
        return ":".join(parts)

    async def call(self, *command):
        self._answer("MGET")
        return [self.values[key].encode() if key in self.values else None for key in command[1:]]

    async def script(self, script, keys, args):
        self._answer("script")
        for index, key in enumerate(keys):
            verb, expected, value, _ = args[4 * index : 4 * index + 4]
            found = self.values.get(key)
            if verb == "b" and found in {None, expected, value}:
                self.values[key] = value
            elif verb == "d" and found == value:
                del self.values[key]
        return len(keys)

    def _answer(self, call):
        if self.away:
            raise Unavailable("away")
        self.calls.append(call)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def affinity(store, clock):
    return Affinity(store, clock=clock)


async def session(affinity, *identifiers, tenant="t", model="m", ttl=3600.0):
    (found,) = await affinity.sessions([Wanted(tenant, model, identifiers, ttl)])
    return found


async def bind(affinity, credential, *identifiers, uid="r-1", **more):
    affinity.leased(uid, await session(affinity, *identifiers, **more), credential)
    await affinity.flush()


async def test_session_is_bound_to_what_it_was_leased(affinity):
    assert (await session(affinity, "s")).bound == ""
    await bind(affinity, "x", "s")
    assert (await session(affinity, "s")).bound == "x"


@pytest.mark.parametrize("more", [{"tenant": "other"}, {"model": "n"}])
async def test_binding_is_of_one_tenant_and_model(affinity, more):
    await bind(affinity, "x", "s")
    assert (await session(affinity, "s", **more)).bound == ""


async def test_keys_show_neither_tenant_nor_session(affinity, store):
    await bind(affinity, "x", "my-session", tenant="my-tenant")
    (key,) = store.values
    assert "my-" not in key


async def test_every_identifier_of_a_request_is_bound(affinity):
    await bind(affinity, "x", "strong", "weak")
    assert (await session(affinity, "weak")).bound == "x"


async def test_strongest_binding_decides(affinity):
    await bind(affinity, "x", "weak")
    await bind(affinity, "y", "strong", uid="r-2")
    assert (await session(affinity, "strong", "weak")).bound == "y"
    assert (await session(affinity, "new", "weak")).bound == "x"


async def test_lease_elsewhere_moves_the_binding(affinity, store):
    await bind(affinity, "x", "s")
    await bind(affinity, "y", "s", uid="r-2")
    assert list(store.values.values()) == ["y"]


async def test_credential_that_is_merely_busy_keeps_the_session(affinity, store):
    await bind(affinity, "x", "s")
    affinity.leased("r-2", await session(affinity, "s"), "y", keep=True)
    await affinity.flush()
    assert list(store.values.values()) == ["x"]


async def test_penalised_failure_ends_the_binding(affinity, store):
    await bind(affinity, "x", "s")
    affinity.failed("r-1")
    await affinity.flush()
    assert store.values == {}
    assert (await session(affinity, "s")).bound == ""


async def test_fault_of_the_request_keeps_the_binding(affinity, store):
    await bind(affinity, "x", "s")
    affinity.ended("r-1")
    affinity.failed("r-1")
    await affinity.flush()
    assert list(store.values.values()) == ["x"]


async def test_failure_ends_no_binding_that_moved_on(affinity, store):
    await bind(affinity, "x", "s")
    await bind(affinity, "y", "s", uid="r-2")
    affinity.failed("r-1")
    await affinity.flush()
    assert list(store.values.values()) == ["y"]


async def test_success_extends_no_more_often_than_it_must(affinity, store, clock):
    await bind(affinity, "x", "s")
    store.calls.clear()
    affinity.succeeded("r-1")
    await affinity.flush()
    assert store.calls == []
    await clock.advance(600)
    affinity.leased("r-2", await session(affinity, "s"), "x")
    affinity.succeeded("r-2")
    await affinity.flush()
    assert store.calls == ["MGET", "script"]


async def test_batch_shares_one_read_and_one_write(affinity, store):
    wanted = [Wanted("t", "m", [f"s{n}"], 60.0) for n in range(50)]
    for index, found in enumerate(await affinity.sessions(wanted)):
        affinity.leased(f"r{index}-1", found, "x")
    await affinity.flush()
    assert store.calls == ["MGET", "script"]
    assert len(store.values) == 50


async def test_session_seen_lately_costs_no_call(affinity, store):
    await bind(affinity, "x", "s")
    store.calls.clear()
    assert (await session(affinity, "s")).bound == "x"
    assert store.calls == []


async def test_change_at_another_scheduler_is_seen_within_seconds(affinity, store, clock):
    await bind(affinity, "x", "s")
    other = Affinity(store, clock=clock)
    await bind(other, "y", "s")
    await clock.advance(2.0)
    assert (await session(affinity, "s")).bound == "y"


async def test_first_of_two_schedulers_wins(store, clock):
    one, two = Affinity(store, clock=clock), Affinity(store, clock=clock)
    first, second = await session(one, "s"), await session(two, "s")
    one.leased("r-1", first, "x")
    two.leased("r-2", second, "y")
    await one.flush()
    await two.flush()
    assert list(store.values.values()) == ["x"]


async def test_redis_away_known_sessions_go_on_and_nothing_waits(affinity, store, clock):
    await bind(affinity, "x", "s")
    await clock.advance(60)
    store.away = True
    assert (await session(affinity, "s")).bound == "x"
    affinity.leased("r-2", await session(affinity, "new"), "y")
    await affinity.flush()
    assert not affinity._writes


async def test_request_without_identifier_has_no_session(affinity, store):
    found = await session(affinity)
    assert (found.digests, found.bound) == ((), "")
    affinity.leased("r-1", found, "x")
    affinity.leased("r-2", NONE, "x")
    affinity.succeeded("r-1")
    affinity.failed("never seen")
    await affinity.flush()
    assert store.calls == []
