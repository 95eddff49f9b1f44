"""Addresses that drain, die or lose their record, and the calls that are on their way to them."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.plugins.registry_world import (
    NOT_SERVING,
    Process,
    World,
    addresses,
    member_address,
    member_of,
)

from patchbay_gateway.plugins.addresses import ABSENCE, CONFIRM, POLL_EVERY
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot


async def test_registry_draining_address_gets_no_calls_at_once(world: World) -> None:
    process = world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    process.tell(NOT_SERVING)
    await world.settle()
    assert addresses(world)["10.0.0.1:1"] == "draining"
    assert {member_address(world) for _ in range(20)} == {"10.0.0.2:1"}


async def test_registry_answer_draining_stops_calls_before_health_says_so(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    member.begin()
    member.end(draining=True)
    assert world.registry.pick("named") is None


async def test_registry_answer_draining_to_one_plugin_holds_for_all_at_the_address(
    world: World,
) -> None:
    """The built-in executors are many plugins of one process."""
    process = world.add("10.0.0.1:1", Process(several=True))
    at = (AddressEntry("many.test:1"),)
    plugins = (PluginEntry(id="named", addresses=at), PluginEntry(id="other", addresses=at))
    await world.registry.apply(Snapshot(version=1, plugins=plugins))
    await world.settle()
    assert world.registry.pick("other") is not None
    member = member_of(world)
    member.begin()
    member.end(draining=True)
    assert world.registry.pick("other") is None
    process.tell(NOT_SERVING)
    await world.settle()
    assert world.registry.pick("other") is None


async def test_registry_address_that_passed_on_draining_of_somebody_else_serves_again(
    world: World,
) -> None:
    """A plugin may hand on what it was answered itself; its own health never changed."""
    world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    member.begin()
    member.end(draining=True)
    await world.settle(CONFIRM / 2)
    assert addresses(world) == {"10.0.0.1:1": "draining"}
    await world.settle(CONFIRM)
    assert addresses(world) == {"10.0.0.1:1": "ready"}


async def test_registry_address_that_serves_and_refuses_all_calls_is_asked_by_one_at_a_time(
    world: World,
) -> None:
    """Each refusal that its health contradicts would else add somebody who asks every two seconds."""
    world.add("10.0.0.1:1")
    await world.apply()
    refused = 0
    for _ in range(40):
        if (member := world.registry.pick("named")) is not None:
            member.begin()
            member.end(draining=True)
            refused += 1
        await world.settle()
        await world.settle(0.15 * CONFIRM)
        asking = [t for t in asyncio.all_tasks() if t.get_name().startswith("confirm ")]
        assert len(asking) == 1
    assert refused > 2


async def test_registry_address_whose_health_agrees_that_it_drains_gets_nothing(
    world: World,
) -> None:
    process = world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    member.begin()
    process.status = NOT_SERVING  # said to who asks; the watch has not got it yet
    member.end(draining=True)
    await world.settle(10 * CONFIRM)
    assert addresses(world) == {"10.0.0.1:1": "draining"}


async def test_registry_process_that_died_and_came_back_is_registered_again(world: World) -> None:
    process = world.add("10.0.0.1:1")
    await world.apply("a")
    process.tell(alive=False)
    await world.settle()
    assert addresses(world) == {"10.0.0.1:1": "unreachable"}
    process.restart()
    world.channels[-1]._servicers = dict(process.servicers)
    world.channels[-1]._handlers.clear()
    process.tell()
    await world.settle(10.0)
    assert addresses(world) == {"10.0.0.1:1": "ready"}
    assert process.plugin.configured == [b"a"]


async def test_registry_serving_address_outlives_its_record_by_a_minute(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    world.resolver.names["many.test"] = []
    for _ in range(int(ABSENCE / POLL_EVERY) - 1):
        await world.clock.advance(POLL_EVERY)
    assert addresses(world) == {"10.0.0.1:1": "ready"}
    await world.settle(2 * POLL_EVERY)
    assert addresses(world) == {}


async def test_registry_name_server_that_fails_keeps_every_address(world: World) -> None:
    process = world.add("10.0.0.1:1")
    await world.apply()
    process.tell(alive=False)
    world.resolver.names["many.test"] = None
    await world.settle(10 * POLL_EVERY)
    assert addresses(world) == {"10.0.0.1:1": "unreachable"}
    assert any("many.test fails here" in r for r in world.registry.status()[0]["reasons"])


async def test_registry_member_in_flight_keeps_its_channel_until_the_call_ends(
    world: World,
) -> None:
    process = world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    member.begin()
    process.tell(NOT_SERVING)
    world.resolver.names["many.test"] = []
    await world.settle()
    await world.settle(POLL_EVERY)
    assert addresses(world) == {}
    channel = world.channels[0]
    assert not channel._closed
    member.end()
    await world.settle()
    assert channel._closed


async def test_registry_plugin_gone_from_the_snapshot_is_forgotten(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    await world.registry.apply(Snapshot(version=2))
    assert world.registry.pick("named") is None
    assert world.registry.status() == []
    await world.settle()
    assert world.channels[0]._closed


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_registry_call_in_flight_ends_before_its_plugin_is_let_go(
    world: World, *, elsewhere: bool
) -> None:
    """Whether the plugin went with a new configuration, or is now at another address."""
    world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    member.begin()
    if elsewhere:
        await world.apply("", AddressEntry("127.0.0.9:1"))
    else:
        await world.registry.apply(Snapshot(version=2))
    await world.settle()
    channel = world.channels[0]
    assert not channel._closed
    assert world.registry.pick("named") is not member
    member.end()
    await world.settle()
    assert channel._closed
