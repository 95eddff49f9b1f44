"""Caps, queues and sessions through whole schedulers on a real Valkey."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.integration.scheduler.conftest import acquire, eventually, report

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from tests.integration.scheduler.conftest import Gateway

CAPPED = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m]
    credentials:
      - {id: one, api_key: test-key-one, max_in_flight: 2}
      - {id: two, api_key: test-key-two, max_in_flight: 2}
      - {id: three, api_key: test-key-three, max_in_flight: 2}
routing: {strategy: STRATEGY, queue: {length: 4, wait: 60s}}
"""
SESSIONS = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m]
    credentials:
      - {id: one, api_key: test-key-one}
      - {id: two, api_key: test-key-two, priority: 5}
      - {id: three, api_key: test-key-three}
routing: {affinity: {enabled: true, ttl: 600s}}
"""


def leased(response):
    return [r.lease.attempt.credential_id for r in response.results if r.HasField("lease")]


def reasons(response):
    return [r.refusal.reason for r in response.results if r.HasField("refusal")]


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "weighted-round-robin"])
async def test_batch_beyond_the_caps_fills_them_and_queues_the_rest(gateway: Gateway, strategy):
    config = CAPPED.replace("STRATEGY", strategy)
    async with gateway.scheduler(config=config) as (servicer, holder):
        version = (await holder.first()).version
        uids = [f"R{n:02}-1" for n in range(12)]
        response = await servicer.Acquire(acquire(version, *uids))
        assert Counter(leased(response)) == {"one": 2, "two": 2, "three": 2}
        assert Counter(reasons(response)) == {"CREDENTIALS_QUEUED": 4, "CREDENTIALS_BUSY": 2}


async def test_batch_fills_many_small_caps_in_order(gateway: Gateway):
    """Choices of one batch count each other in, before Redis has answered."""
    entries = [f"{{id: c{n:02}, api_key: test-key-{n}, max_in_flight: 1}}" for n in range(20)]
    head, _, tail = CAPPED.replace("STRATEGY", "fill-first").partition("    credentials:")
    routing = tail[tail.index("routing:") :]
    config = f"{head}    credentials: [{', '.join(entries)}]\n{routing}"
    async with gateway.scheduler(config=config) as (servicer, holder):
        version = (await holder.first()).version
        response = await servicer.Acquire(acquire(version, *[f"R{n:02}-1" for n in range(25)]))
        assert leased(response) == [f"c{n:02}" for n in range(20)]
        assert len(reasons(response)) == 5


async def test_freed_places_go_to_those_who_wait_in_their_order(gateway: Gateway):
    config = CAPPED.replace("STRATEGY", "round-robin")
    async with gateway.scheduler(config=config) as (servicer, holder):
        version = (await holder.first()).version
        first = await servicer.Acquire(acquire(version, *[f"R{n}-1" for n in range(9)]))
        waiting = ["R6-1", "R7-1", "R8-1"]
        served: list[str] = []

        async def wait(uid):
            while True:
                response = await servicer.Acquire(acquire(version, uid))
                if leased(response):
                    served.append(uid)
                    return
                assert reasons(response) == ["CREDENTIALS_QUEUED"]

        async with asyncio.TaskGroup() as tasks:
            for uid in waiting:
                tasks.create_task(wait(uid))
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert served == []
            for result in first.results[:3]:
                await servicer.Report(report(result.lease))
        assert served == waiting


async def test_wait_in_vain_ends_busy(gateway: Gateway):
    config = CAPPED.replace("STRATEGY", "round-robin").replace("wait: 60s", "wait: 200ms")
    async with gateway.scheduler(config=config) as (servicer, holder):
        version = (await holder.first()).version
        await servicer.Acquire(acquire(version, *[f"R{n}-1" for n in range(7)]))
        async with asyncio.timeout(60):
            response = await servicer.Acquire(acquire(version, "R6-1"))
        assert reasons(response) == ["CREDENTIALS_BUSY"]
        assert response.results[0].refusal.HasField("retry_after")


async def test_place_freed_at_another_scheduler_is_taken(gateway: Gateway):
    config = CAPPED.replace("STRATEGY", "round-robin")
    async with (
        gateway.scheduler("a", config) as (one, holder),
        gateway.scheduler("b", config) as (two, other),
    ):
        version = (await holder.first()).version
        await eventually(lambda: _knows(other, version))
        first = await one.Acquire(acquire(version, *[f"R{n}-1" for n in range(6)]))
        assert len(leased(first)) == 6
        freed = False
        response = await two.Acquire(acquire(version, "S1-1"))
        while reasons(response) == ["CREDENTIALS_QUEUED"]:
            if not freed:
                await one.Report(report(first.results[0].lease))
                freed = True
            response = await two.Acquire(acquire(version, "S1-1"))
        assert len(leased(response)) == 1


async def test_session_stays_on_its_credential_at_every_scheduler(gateway: Gateway):
    async with (
        gateway.scheduler("a", SESSIONS) as (one, holder),
        gateway.scheduler("b", SESSIONS) as (two, other),
    ):
        version = (await holder.first()).version
        await eventually(lambda: _knows(other, version))

        async def ask(servicer, uid, *sessions, **more):
            request = acquire(version, uid, session_ids=sessions, **more)
            response = await servicer.Acquire(request)
            return response.results[0].lease

        first = await ask(one, "R1-1", "s", exclude_credential_ids=["two"])
        bound = first.attempt.credential_id
        assert bound in {"one", "three"}
        await one.Report(report(first))
        # The better credential is back, and the session stays where its cache is.
        for n in range(3):
            again = await ask(one, f"R2{n}-1", "s")
            assert again.attempt.credential_id == bound
        await _bound(gateway)
        there = await ask(two, "R3-1", "s", "alias")
        assert there.attempt.credential_id == bound
        assert (await ask(one, "R4-1", "another")).attempt.credential_id == "two"


async def test_sessions_of_a_batch_are_told_apart_beside_a_refused_attempt(gateway: Gateway):
    async with gateway.scheduler(config=SESSIONS) as (servicer, holder):
        version = (await holder.first()).version
        request = acquire(version, "R1-1", "R2-1", "R3-1")
        request.items[0].attempt.snapshot_version = 1
        request.items[1].session_ids.append("first")
        request.items[1].exclude_credential_ids.append("two")
        request.items[2].session_ids.append("second")
        response = await servicer.Acquire(request)
        assert reasons(response) == ["SNAPSHOT_UNKNOWN"]
        again = acquire(version, "R4-1", "R5-1")
        again.items[0].session_ids.append("first")
        again.items[1].session_ids.append("second")
        assert leased(await servicer.Acquire(again)) == leased(response)


async def test_penalised_failure_moves_the_session(gateway: Gateway):
    async with gateway.scheduler(config=SESSIONS) as (servicer, holder):
        version = (await holder.first()).version

        async def ask(uid):
            response = await servicer.Acquire(acquire(version, uid, session_ids=["s"]))
            return response.results[0].lease

        first = await ask("R1-1")
        assert first.attempt.credential_id == "two"
        failed = report(first)
        failed.items[0].settlement.outcome = journal_pb2.OUTCOME_FAILED
        failed.items[0].fault.kind = scheduler_pb2.FAULT_KIND_QUOTA
        failed.items[0].fault.scope = error_pb2.FAULT_SCOPE_MODEL
        failed.items[0].fault.retry_after.FromSeconds(600)
        await servicer.Report(failed)
        second = await ask("R2-1")
        assert second.attempt.credential_id != "two"
        await servicer.Report(report(second))
        assert (await ask("R3-1")).attempt.credential_id == second.attempt.credential_id


async def _knows(holder, version):
    return holder.get(version) is not None


async def _bound(gateway: Gateway):
    """Wait until the binding is in Redis."""
    store = gateway.store()

    async def found():
        reply = await store.call("KEYS", store.key("affinity", "*"))
        return bool(reply)

    await eventually(found)
