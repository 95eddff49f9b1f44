"""Schedulers behind a name: whom a call goes to, and when it goes on to another (edge/schedulers.py)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge.schedulers import PooledCalls
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.plugins.dns import StaticResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.clock import ManualClock

NAME = "schedulers.test"


class Scheduler:
    """What listens at an address: health, and Report; may fail as told."""

    def __init__(self) -> None:
        self.status: Any = health_pb2.HealthCheckResponse.SERVING
        self.fails: errors.PatchbayError | None = None
        self.refresh_fails: errors.PatchbayError | None = errors.Unavailable(
            "the provider does not answer", reason="REFRESH_FAILED"
        )
        self.calls = self.refreshes = 0
        self.deadlines: list[float] = []
        self._changed = asyncio.Event()

    def tell(self, status: Any) -> None:
        self.status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            changed = self._changed
            yield health_pb2.HealthCheckResponse(status=self.status)
            await changed.wait()

    async def Report(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        self.deadlines.append(context.time_remaining())
        if self.fails is not None:
            raise self.fails
        return scheduler_pb2.ReportResponse()

    async def RefreshCredential(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.refreshes += 1
        self.deadlines.append(context.time_remaining())
        if self.refresh_fails is not None:
            raise self.refresh_fails
        return scheduler_pb2.RefreshCredentialResponse()


class World:
    """Schedulers by host, a name server's table, and the edge's calls over both."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.resolver = StaticResolver({NAME: []})
        self.schedulers: dict[str, Scheduler] = {}
        self.calls = PooledCalls(
            [f"{NAME}:7001"], resolver=self.resolver, connect=self._connect, clock=clock
        )

    def _connect(self, address: str) -> InProcessChannel:
        scheduler = self.schedulers[address.rpartition(":")[0]]
        return InProcessChannel(
            {
                "patchbay.scheduler.v1.SchedulerService": scheduler,
                "grpc.health.v1.Health": scheduler,
            }
        )

    async def add(self, *hosts: str) -> None:
        for host in hosts:
            self.schedulers[host] = Scheduler()
        self.resolver.names[NAME] = list(self.schedulers)
        await self.settle(1.0)

    async def settle(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        for _ in range(60):
            await asyncio.sleep(0)

    async def report(self, deadline: float = 6.0) -> Any:
        return await self.calls.call(
            methods.REPORT, scheduler_pb2.ReportRequest(), deadline=deadline
        )

    async def refresh(self) -> Any:
        return await self.calls.call(
            methods.REFRESH_CREDENTIAL, scheduler_pb2.RefreshCredentialRequest(), deadline=6.0
        )

    def counts(self) -> Counter[str]:
        return Counter({host: s.calls for host, s in self.schedulers.items() if s.calls})


@pytest.fixture
async def world(clock: ManualClock) -> AsyncIterator[World]:
    made = World(clock)
    await made.calls.start()
    yield made
    await made.calls.aclose()


async def test_call_every_address_of_the_name_is_used(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    for _ in range(40):
        await world.report()
    assert set(world.counts()) == {"10.0.0.1", "10.0.0.2"}


async def test_call_new_address_is_used_a_second_after_it_is_named(world: World) -> None:
    await world.add("10.0.0.1")
    await world.report()
    await world.add("10.0.0.2")
    for _ in range(40):
        await world.report()
    assert world.counts()["10.0.0.2"] > 0


async def test_call_draining_address_gets_none(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    world.schedulers["10.0.0.1"].tell(health_pb2.HealthCheckResponse.NOT_SERVING)
    await world.settle()
    for _ in range(20):
        await world.report()
    assert world.counts() == {"10.0.0.2": 20}


async def test_call_failed_address_is_shunned_and_asked_again_later(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    dead = world.schedulers["10.0.0.1"]
    dead.fails = errors.DeadlineExceeded("silent", reason="CALL_DEADLINE")
    for _ in range(30):
        await world.report()
    assert dead.calls == 1
    dead.fails = None
    await world.settle(6.0)
    for _ in range(40):
        await world.report()
    assert dead.calls > 1


async def test_call_failure_of_a_provider_shuns_no_scheduler(world: World) -> None:
    """A refresh that fails says nothing of the scheduler that told so; leases keep both."""
    await world.add("10.0.0.1", "10.0.0.2")
    failing, other = world.schedulers.values()
    other.refresh_fails = None
    for _ in range(200):
        await world.refresh()
        if failing.refreshes:
            break
    assert failing.refreshes == 1
    for _ in range(40):
        await world.report()
    assert set(world.counts()) == {"10.0.0.1", "10.0.0.2"}


async def test_call_failure_of_a_provider_is_not_asked_for_twice(world: World) -> None:
    await world.add("10.0.0.1")
    with pytest.raises(errors.Unavailable, match="the provider"):
        await world.refresh()
    assert world.schedulers["10.0.0.1"].refreshes == 1


async def test_call_silent_address_leaves_time_for_the_other(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    for scheduler in world.schedulers.values():
        scheduler.fails = errors.DeadlineExceeded("silent", reason="CALL_DEADLINE")
    with pytest.raises(errors.DeadlineExceeded):
        await world.report(6.0)
    asked = sorted(d for s in world.schedulers.values() for d in s.deadlines)
    assert len(asked) == 2
    assert asked[0] <= 3.0


async def test_call_that_waits_for_a_provider_has_all_of_its_time(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    for scheduler in world.schedulers.values():
        scheduler.refresh_fails = None
    await world.refresh()
    (given,) = (d for s in world.schedulers.values() for d in s.deadlines)
    assert 3.5 < given <= 6.0, "half of it would be 3"


async def test_call_the_only_address_is_tried_once_more(world: World) -> None:
    await world.add("10.0.0.1")
    world.schedulers["10.0.0.1"].fails = errors.Unavailable("gone", reason="TRANSPORT")
    with pytest.raises(errors.Unavailable):
        await world.report()
    assert world.schedulers["10.0.0.1"].calls == 2


async def test_call_refused_is_not_tried_elsewhere(world: World) -> None:
    await world.add("10.0.0.1", "10.0.0.2")
    for scheduler in world.schedulers.values():
        scheduler.fails = errors.InvalidRequest("wrong")
    with pytest.raises(errors.InvalidRequest):
        await world.report()
    assert sum(world.counts().values()) == 1


async def test_call_waits_for_the_first_address(world: World) -> None:
    """A request that comes before the name was asked is not refused."""
    asking = asyncio.create_task(world.report())
    await world.settle()
    assert not asking.done()
    await world.add("10.0.0.1")
    assert isinstance(await asking, scheduler_pb2.ReportResponse)


async def test_call_name_without_addresses_says_so(world: World) -> None:
    world.calls._found.set()
    with pytest.raises(errors.Unavailable) as caught:
        await world.report()
    assert caught.value.reason == "NO_SCHEDULER"
