"""What keeps a registry going, and what ends it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.plugins.registry_world import World, member_of

from patchbay import errors
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from patchbay_gateway.kernel.clock import ManualClock

ENTRY = PluginEntry(id="named", addresses=(AddressEntry("many.test:1"),))


@pytest.fixture
async def world(
    clock: ManualClock,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after the registry is closed
) -> Any:
    made = World(clock)
    made.add("10.0.0.1:1")
    yield made
    await made.registry.aclose()


async def ready_after(world: World, seconds: float) -> bool:
    for _ in range(int(seconds)):
        await world.settle(1.0)
    return world.registry.pick("named") is not None


async def test_name_whose_look_up_crashed_is_looked_up_again(world: World) -> None:
    resolve = world.resolver.resolve

    async def crash(host: str) -> frozenset[str]:
        world.resolver.resolve = resolve  # type: ignore[method-assign]
        raise ValueError(host)

    world.resolver.resolve = crash  # type: ignore[method-assign]
    await world.apply()
    assert "ValueError" in world.registry.states()["named"]
    assert await ready_after(world, 3)


@pytest.mark.parametrize("target", ["many.test:1", "10.0.0.1:1"])
async def test_address_to_which_no_channel_could_be_made_is_tried_again(
    world: World, target: str
) -> None:
    """Certificates may be missing for a moment."""
    connect = world.connect
    crashed: list[str] = []

    def crash(address: str, message_limit: int) -> Any:
        if not crashed:
            crashed.append(address)
            raise OSError(address)
        return connect(address, message_limit)

    world.connect = crash  # type: ignore[method-assign]
    world.registry = world.make_registry()
    await world.apply("", AddressEntry(target))
    assert await ready_after(world, 3)


async def test_address_whose_handshake_crashed_is_registered_later(world: World) -> None:
    found = world.keys

    class Broken(dict[str, "Sequence[bytes]"]):
        def get(self, plugin_id: str, *_: Any) -> Any:
            raise ValueError(plugin_id)

    world.keys = Broken()
    await world.apply()
    assert "ValueError" in world.registry.states()["named"]
    world.keys = found
    assert await ready_after(world, 5)


async def test_address_whose_watch_crashed_is_watched_again(world: World) -> None:
    connect = world.connect

    def broken(address: str, message_limit: int) -> Any:
        channel: Any = connect(address, message_limit)
        stream = channel.stream

        def crash(*args: Any, **more: Any) -> Any:
            channel.stream = stream
            return Crashing(stream(*args, **more))

        channel.stream = crash
        return channel

    world.registry = world.make_registry()
    world.connect = broken  # type: ignore[method-assign]
    world.registry = world.make_registry()
    await world.apply()
    assert world.registry.pick("named") is None
    assert await ready_after(world, 5)


class Crashing:
    """A stream that ends as none should."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        raise ValueError("not an error of ours")

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_snapshot_that_comes_after_the_end_opens_nothing(world: World) -> None:
    await world.registry.aclose()
    await world.registry.apply(Snapshot(version=2, plugins=(ENTRY,)))
    await world.settle(2.0)
    assert world.channels == []
    assert world.registry.status() == []


EXECUTOR = Hook(
    "named", "executor", ENTRY, dataclasses.replace(policy("executor"), other_address=True)
)


def forget(world: World, address: str) -> None:
    """Have the plugin at *address* know nothing any more, on a connection that stays."""
    process = world.processes[address]
    process.restart()
    for channel in world.channels:
        if channel._servicers.get("grpc.health.v1.Health") is process:
            channel._servicers = dict(process.servicers)
            channel._handlers.clear()


async def ask(world: World) -> str:
    """Call the plugin as its hooks are, and return what it is configured with."""
    calls = PluginCalls(world.registry, timer=world.clock.monotonic)
    request = executor_pb2.ExecutorRequest()
    answer = await calls.unary(EXECUTOR, methods.EXECUTE, request, deadline=None)
    return bytes(answer.payload).decode()


async def test_plugin_that_forgot_its_registration_is_registered_again(world: World) -> None:
    """It keeps two configurations, from whichever hosts they came; two that lag push out the newest."""
    await world.apply("a: 1")
    assert await ask(world) == "a: 1"
    forget(world, "10.0.0.1:1")
    with pytest.raises(errors.Unavailable) as refused:
        await ask(world)
    assert refused.value.reason == "NOT_REGISTERED"
    assert world.registry.pick("named") is None
    await world.settle()
    assert await ask(world) == "a: 1"


async def test_call_that_an_address_knows_nothing_of_goes_to_another(world: World) -> None:
    world.add("10.0.0.2:1")
    await world.apply("a: 1")
    forget(world, "10.0.0.1:1")
    forget(world, "10.0.0.2:1")
    await world.settle()
    with pytest.raises(errors.Unavailable):
        await ask(world)
    await world.settle()
    forget(world, "10.0.0.1:1")
    assert [await ask(world) for _ in range(20)] == ["a: 1"] * 20


async def test_late_answer_does_not_undo_a_newer_registration(world: World) -> None:
    await world.apply("a: 1")
    member = member_of(world)
    before = member.registration
    await world.apply("a: 2")
    member.forgotten(before)
    assert world.registry.pick("named") is member


async def test_plugin_that_always_forgets_is_registered_once_a_second(world: World) -> None:
    await world.apply("a: 1")
    member = member_of(world)
    member.forgotten(member.registration)
    await world.settle()
    again = member.registration
    assert again is not None
    member.forgotten(again)
    assert member.registration is again
    await world.settle(1.0)
    member.forgotten(again)
    assert member.registration is None
