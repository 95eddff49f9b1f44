"""What happens to a request while interceptors look at it, between its lease and its call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.harness.pipeline import (
    Edge,
    FakeChannel,
    FakeExchange,
    FakeMember,
    FakeRegistry,
    Script,
    pool,
)

from patchbay.plugin.v1 import request_interceptor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.snapshot import PluginEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

GUARD = PluginEntry("guard", capabilities=("request_interceptor",))


class GuardChannel:
    """An interceptor that looks at each attempt for as long as a test wants."""

    def __init__(self) -> None:
        self.looking = asyncio.Event()
        self.enough = asyncio.Event()

    async def unary(self, method: Any, request: Any, **_: Any) -> Any:
        if method is methods.INTERCEPT_REQUEST_AFTER_AUTH:
            self.looking.set()
            await self.enough.wait()
        return request_interceptor_pb2.RequestInterceptResponse()


class Addresses(FakeRegistry):
    """An interceptor, and an executor at several addresses, of which the first that is ready is called."""

    def __init__(self, guard: FakeMember, *members: FakeMember) -> None:
        super().__init__(guard)
        self._members = members

    def declared(self, plugin_id: str) -> frozenset[str]:
        return frozenset({"request_interceptor" if plugin_id == "guard" else "executor"})

    def pick_able(self, plugin_id: str, capability: str, avoid: Sequence[str]) -> FakeMember | None:
        if plugin_id == "guard":
            return self._member
        return next((m for m in self._members if m.ready and m.address not in avoid), None)


class World:
    """An edge with them."""

    def __init__(self, count: int = 1, **provider: Any) -> None:
        self.guard = GuardChannel()
        self.scripts = [Script() for _ in range(count)]
        self.members = [FakeMember(FakeChannel(script)) for script in self.scripts]
        for number, member in enumerate(self.members):
            member.address = f"address-{number}"
        guard: Any = self.guard
        self.edge = Edge(
            Script(),
            pool("a", **provider),
            plugins=(GUARD,),
            registry=Addresses(FakeMember(guard), *self.members),
        )


async def test_address_that_left_while_interceptors_looked_is_not_called() -> None:
    """Its channel may be closed by then: nothing was under way on it."""
    world = World(2)
    asking = asyncio.ensure_future(world.edge.ask())
    async with asyncio.timeout(60):
        await world.guard.looking.wait()
        world.members[0].ready = False
        world.guard.enough.set()
        client = await asking
    assert client.status == 200
    assert client.headers[b"x-patchbay-attempts"] == b"1"
    assert [len(script.called) for script in world.scripts] == [0, 1]


async def test_client_that_leaves_while_interceptors_look_has_nothing_asked_for_it() -> None:
    """Where tokens of an answer that nobody reads are counted, that is no reason to make one."""
    world = World(drain=30.0)
    client = FakeExchange(b'{"model":"m"}', [])
    asking = asyncio.ensure_future(world.edge.ask(exchange=client))
    async with asyncio.timeout(60):
        await world.guard.looking.wait()
        client.leave()
        for _ in range(5):
            await asyncio.sleep(0)
        world.guard.enough.set()
        await asking
    assert world.scripts[0].called == []
    (report,) = world.edge.script.reports
    assert report.settlement.reason == "CLIENT_GONE"
