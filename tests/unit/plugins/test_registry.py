"""Which addresses become members, and with what registration (plugins/registry.py, addresses.py)."""

from __future__ import annotations

import pytest
from tests.unit.plugins.registry_world import KEY, Process, World, addresses, call, member_of

from patchbay import errors, keys
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.plugins.addresses import POLL_EVERY
from patchbay_gateway.plugins.breaker import FAILURES
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, SettingsEntry, Snapshot


async def test_registry_plugin_at_an_address_becomes_ready(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply("a: 1")
    assert addresses(world) == {"10.0.0.1:1": "ready"}
    assert await world.registry.wait_ready(["named"], 0.0) == frozenset()
    capability = world.registry.executor("named")
    assert capability is not None
    assert list(capability.input_formats) == ["openai"]
    assert await call(world) == "a: 1"


async def test_registry_unknown_plugin_has_no_member(world: World) -> None:
    assert world.registry.pick("named") is None
    assert world.registry.executor("named") is None
    assert await world.registry.wait_ready(["named"], 0.0) == {"named"}


async def test_registry_local_builtin_is_a_member_like_any_other(
    world: World,
) -> None:
    process = Process()
    channel = InProcessChannel(process.servicers, strict=True)
    world.registry = world.make_registry(local={"named": channel})
    await world.registry.apply(
        Snapshot(version=1, plugins=(PluginEntry(id="named", builtin=True, config="x"),))
    )
    await world.settle()
    assert addresses(world) == {"inprocess:named": "ready"}
    assert await call(world) == "x"


async def test_registry_local_builtin_is_never_ejected(world: World) -> None:
    """There is no other address to go to."""
    channel = InProcessChannel(Process().servicers, strict=True)
    world.registry = world.make_registry(local={"named": channel})
    await world.apply(builtin=True)
    for _ in range(3 * FAILURES):
        member = member_of(world)
        member.begin()
        member.end(transport_failure=True)


async def test_registry_builtin_elsewhere_is_looked_for_at_its_address(world: World) -> None:
    world.registry = world.make_registry(builtin_address="many.test:1")
    world.add("10.0.0.1:1")
    await world.apply(builtin=True)
    assert addresses(world) == {"10.0.0.1:1": "ready"}


async def test_registry_builtin_at_several_addresses_uses_all(world: World) -> None:
    world.registry = world.make_registry(builtin_address="10.0.0.1:1, 10.0.0.2:1")
    await world.apply(builtin=True)
    assert addresses(world) == {"10.0.0.1:1": "ready", "10.0.0.2:1": "ready"}


async def test_registry_builtin_without_an_address_says_what_to_set(world: World) -> None:
    await world.apply(builtin=True)
    assert "PATCHBAY_EXECUTORS_ADDRESS" in world.registry.states()["named"]


async def test_registry_address_that_is_none_costs_nobody_else(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply("", AddressEntry("no-port"), AddressEntry("many.test:1"))
    assert addresses(world) == {"10.0.0.1:1": "ready"}
    await world.apply("", AddressEntry("no-port"))
    assert world.registry.states() == {"named": "'no-port' is no address; write host:port"}


async def test_registry_new_record_becomes_a_member(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    world.add("10.0.0.2:1")
    await world.settle(POLL_EVERY)
    assert addresses(world) == {"10.0.0.1:1": "ready", "10.0.0.2:1": "ready"}


async def test_registry_new_configuration_reaches_the_plugin_and_calls_name_it(
    world: World,
) -> None:
    world.add("10.0.0.1:1")
    await world.apply("one")
    old = world.registry.pick("named")
    assert old is not None
    before = old.metadata()
    await world.apply("two")
    assert await call(world) == "two"
    answer = await old.channel.unary(
        methods.EXECUTE, executor_pb2.ExecutorRequest(), deadline=None, metadata=before
    )
    assert answer.payload == b"one", "a call in flight keeps its configuration"
    await world.apply("three")
    with pytest.raises(errors.Unavailable) as caught:
        await old.channel.unary(
            methods.EXECUTE, executor_pb2.ExecutorRequest(), deadline=None, metadata=before
        )
    assert caught.value.reason == "NOT_REGISTERED"


async def test_registry_configuration_that_the_plugin_refuses_leaves_the_old_one(
    world: World,
) -> None:
    world.add("10.0.0.1:1")
    await world.apply("good")
    await world.apply("bad")
    assert await call(world) == "good"
    assert "bad configuration" in world.registry.status()[0]["addresses"][0]["reasons"][0]


async def test_registry_process_with_another_key_is_refused(world: World) -> None:
    world.add("10.0.0.1:1", Process(b"another key that is 32 bytes too"))
    await world.apply()
    assert addresses(world) == {"10.0.0.1:1": "refused"}
    assert "does not know the key" in world.registry.states()["named"]


async def test_registry_key_that_comes_late_is_tried_again(world: World) -> None:
    found, world.keys = world.keys, {}
    world.add("10.0.0.1:1")
    await world.apply()
    assert addresses(world) == {"10.0.0.1:1": "refused"}
    world.keys = found
    await world.settle(60.0)
    assert addresses(world) == {"10.0.0.1:1": "ready"}


async def test_registry_previous_key_generation_is_accepted(world: World) -> None:
    world.keys["named"] = [b"n" * 32, keys.channel_key(KEY)]
    world.add("10.0.0.1:1")
    await world.apply()
    assert addresses(world) == {"10.0.0.1:1": "ready"}


async def test_registry_capability_outside_the_allow_list_is_not_used(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply(capabilities=("usage_plugin",))
    assert world.registry.executor("named") is None


@pytest.mark.parametrize(("body_mib", "message_mib"), [(64, 65), (32, 33), (1, 33)])
async def test_channels_take_the_bodies_of_the_snapshot(
    world: World, body_mib: int, message_mib: int
) -> None:
    """A small limit of requests leaves answers their room."""
    world.add("10.0.0.1:1")
    entry = PluginEntry(id="named", addresses=(AddressEntry("many.test:1"),))
    settings = SettingsEntry(body_limit=body_mib << 20)
    await world.registry.apply(Snapshot(version=1, settings=settings, plugins=(entry,)))
    await world.settle()
    assert world.limits == [message_mib << 20]
