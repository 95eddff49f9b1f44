"""
Replicas come, go and die under load, found by names alone, and no client notices.

Executors, schedulers, the usage service and edges are real processes. What is asserted is who was called
and what clients saw. The name server's cache never ends: what is found nevertheless was found by other ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import redis
from tests.harness.load import Load, Verdict
from tests.harness.observing import until_meanwhile
from tests.harness.scaled import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.harness.name_server import NameServer
    from tests.harness.scaled import Replica, Scaled

CLIENTS = 8


@contextlib.asynccontextmanager
async def load_on(gateway: Scaled, edge: Replica) -> AsyncIterator[Load]:
    """Streams of 0.2 s and plain answers, all the time."""
    headers = {**gateway.headers(), "x-echo-chunks": "10", "x-echo-delay-ms": "20"}
    load = Load(edge.base_url, headers, model="echo", clients=CLIENTS)
    async with load.running():
        await until_meanwhile(lambda: load.verdicts[Verdict.COMPLETE] >= CLIENTS, "the load begins")
        yield load


def failures(load: Load) -> dict[Verdict, int]:
    """Return what clients saw that was no complete answer."""
    return {verdict: n for verdict, n in load.verdicts.items() if verdict is not Verdict.COMPLETE}


def calls(gateway: Scaled, edge: Replica) -> dict[str, int]:
    """Return executor address → calls of *edge* there that ended."""
    return {a: entry["calls"] for a, entry in gateway.executors(edge).items()}


async def all_called(gateway: Scaled, edge: Replica, replicas: Sequence[Replica]) -> None:
    """Wait until each of *replicas* was called anew."""
    before = await asyncio.to_thread(calls, gateway, edge)

    def called() -> bool:
        now = calls(gateway, edge)
        return all(now.get(r.address, 0) > before.get(r.address, 0) for r in replicas)

    await until_meanwhile(called, f"load on all of {[r.address for r in replicas]}")


async def only(gateway: Scaled, edge: Replica, count: int) -> list[Replica]:
    """Have exactly *count* executors running, in their name and known to *edge*."""
    having = gateway.running("executor")
    for extra in having[count:]:
        await asyncio.to_thread(extra.kill)
    having = having[:count]
    fresh = gateway.make("executor", count - len(having))
    await asyncio.to_thread(run, fresh)
    having += fresh
    gateway.name(having)
    await asyncio.to_thread(gateway.wait_ready, edge, having)
    return having


@contextlib.asynccontextmanager
async def streams(
    load: Load, count: int, seconds: float
) -> AsyncIterator[list[asyncio.Task[Verdict]]]:
    """Open *count* streams of about *seconds* and give their verdicts to come."""
    import aiohttp  # noqa: PLC0415 - only here

    words = int(seconds / 0.1)
    headers = {**load.headers, "x-echo-chunks": str(words), "x-echo-delay-ms": "100"}
    long = Load(load.base_url, headers, model="echo")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        opened = [asyncio.create_task(long.one(session, stream=True)) for _ in range(count)]
        try:
            yield opened
        finally:
            for task in opened:
                task.cancel()
            await asyncio.gather(*opened, return_exceptions=True)


def in_flight(gateway: Scaled, edge: Replica, replicas: Sequence[Replica]) -> dict[str, int]:
    """Return executor address → calls of *edge* that run there."""
    wanted = {r.address for r in replicas}
    found = gateway.executors(edge)
    return {a: entry["in_flight"] for a, entry in found.items() if a in wanted}


async def test_executors_from_one_to_five_to_two_no_request_fails(gateway: Scaled) -> None:
    """New ones take load; ending ones finish their streams and get nothing new."""
    edge = gateway.running("edge")[0]
    (first,) = await only(gateway, edge, 1)
    added = gateway.make("executor", 4)
    await asyncio.to_thread(run, added)
    async with load_on(gateway, edge) as load:
        gateway.name([first, *added])
        await all_called(gateway, edge, [first, *added])
        leaving, staying = added[:3], [first, added[3]]
        async with streams(load, 20, 6.0) as opened:
            await until_meanwhile(
                lambda: min(in_flight(gateway, edge, leaving).values()) > 1, "streams on each"
            )
            # As kubelet and DNS do: the signal first, the record some time later.
            for replica in leaving:
                replica.signal(signal.SIGTERM)
            await until_meanwhile(
                lambda: (
                    not {"ready"} & {gateway.executors(edge)[r.address]["state"] for r in leaving}
                ),
                "the edge knows that they end",
            )
            told = await asyncio.to_thread(gateway.executors, edge)
            await all_called(gateway, edge, staying)
            assert set(await asyncio.gather(*opened)) == {Verdict.COMPLETE}
        ended = await asyncio.gather(*(asyncio.to_thread(r.wait, 90) for r in leaving))
        assert ended == [0, 0, 0]
        now = await asyncio.to_thread(calls, gateway, edge)
        # Every call that ended there since was under way before.
        for address in (r.address for r in leaving):
            assert now[address] <= told[address]["calls"] + told[address]["in_flight"]
        gateway.name(staying)
        await all_called(gateway, edge, staying)
    assert not failures(load), (load.verdicts, load.statuses, load.lies)


async def test_executors_behind_a_cache_are_found_by_endpoints(
    gateway: Scaled, names: NameServer
) -> None:
    """What the resolver has in its cache is old; what the operator tells in Redis is not."""
    edge = gateway.running("edge")[0]
    old, leaving = await only(gateway, edge, 2)
    names.cache(True)
    (new,) = gateway.make("executor")
    await asyncio.to_thread(run, [new])
    try:
        async with load_on(gateway, edge) as load:
            gateway.name([old, new])
            await asyncio.to_thread(gateway.tell, [old, new])
            await all_called(gateway, edge, [old, new])
            # It ends while the cache still names it.
            leaving.signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.wait, 90) == 0
            await all_called(gateway, edge, [old, new])
            assert leaving.address in await asyncio.to_thread(gateway.executors, edge)
        assert not failures(load), (load.verdicts, load.statuses, load.lies)
    finally:
        with redis.Redis.from_url(gateway.redis_url) as client:
            client.hdel(gateway.key("endpoints"), f"{gateway.service_names['executor']}.")


async def test_killed_executor_costs_only_what_it_streamed(gateway: Scaled) -> None:
    """Answers of which the client has seen nothing are given by another; no other client notices."""
    edge = gateway.running("edge")[0]
    doomed, staying = await only(gateway, edge, 2)
    async with load_on(gateway, edge) as load:
        await all_called(gateway, edge, [doomed, staying])
        await asyncio.to_thread(doomed.kill)
        await until_meanwhile(
            lambda: gateway.executors(edge)[doomed.address]["state"] == "unreachable",
            "the edge has noticed",
        )
        await all_called(gateway, edge, [staying])
        complete = load.verdicts[Verdict.COMPLETE]
        await until_meanwhile(
            lambda: load.verdicts[Verdict.COMPLETE] > complete + 2 * CLIENTS, "it goes on"
        )
    assert set(failures(load)) <= {Verdict.TERMINAL_ERROR}, (load.verdicts, load.lies)
    # No client streams more than one answer at a time.
    assert sum(failures(load).values()) <= CLIENTS


async def test_schedulers_come_go_and_die_no_request_fails(gateway: Scaled) -> None:
    """Behind one name, as executors; what one leased another settles."""
    edge = gateway.running("edge")[0]
    await only(gateway, edge, 1)
    having = gateway.running("scheduler")
    added = gateway.make("scheduler", 3 - len(having))
    await asyncio.to_thread(run, added)
    everyone = [*having, *added]

    def leased(replicas: Sequence[Replica]) -> Callable[[], bool]:
        before = [r.metrics()["patchbay_scheduler_leases_total"] for r in replicas]
        return lambda: all(
            r.metrics()["patchbay_scheduler_leases_total"] > b
            for r, b in zip(replicas, before, strict=True)
        )

    async with load_on(gateway, edge) as load:
        gateway.name(everyone)
        await until_meanwhile(await asyncio.to_thread(leased, everyone), "each scheduler leases")
        leaving, doomed, staying = everyone
        leaving.signal(signal.SIGTERM)
        assert await asyncio.to_thread(leaving.wait, 90) == 0
        await asyncio.to_thread(doomed.kill)
        await until_meanwhile(await asyncio.to_thread(leased, [staying]), "the last one leases")
        gateway.name([staying])
        await until_meanwhile(
            await asyncio.to_thread(leased, [staying]), "the last one leases alone"
        )
    assert not failures(load), (load.verdicts, load.statuses, load.lies)


async def test_usage_service_is_replaced_under_load(gateway: Scaled) -> None:
    """Nobody waits for the ledger, and what happened meanwhile is in it."""
    edge = gateway.running("edge")[0]
    await only(gateway, edge, 1)

    def booked() -> int:
        found = gateway.managed(edge, "usage")
        # An error while the service is away.
        return sum(row["requests"] for row in found) if isinstance(found, list) else 0

    before = await asyncio.to_thread(booked)
    async with load_on(gateway, edge) as load:
        gateway.usage.signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.usage.wait, 90) == 0
        complete = load.verdicts[Verdict.COMPLETE]
        await until_meanwhile(
            lambda: load.verdicts[Verdict.COMPLETE] > complete + CLIENTS, "it goes on"
        )
        await asyncio.to_thread(run, [gateway.usage])
    assert not failures(load), (load.verdicts, load.statuses, load.lies)
    answered = load.verdicts[Verdict.COMPLETE]
    await until_meanwhile(lambda: booked() - before >= answered, f"{answered} answers are booked")


async def test_edge_ends_its_streams_while_another_serves(gateway: Scaled) -> None:
    staying, leaving = gateway.running("edge")[0], gateway.make("edge")[0]
    await only(gateway, staying, 1)
    await asyncio.to_thread(run, [leaving])
    async with load_on(gateway, staying) as load:
        there = Load(leaving.base_url, gateway.headers(), model="echo")
        async with streams(there, 8, 6.0) as opened:
            await until_meanwhile(
                lambda: sum(in_flight(gateway, leaving, gateway.running("executor")).values()) >= 8,
                "streams run",
            )
            leaving.signal(signal.SIGTERM)
            assert set(await asyncio.gather(*opened)) == {Verdict.COMPLETE}
        assert await asyncio.to_thread(leaving.wait, 90) == 0
    assert not failures(load), (load.verdicts, load.statuses, load.lies)
