"""Which member a call gets: by load, weight, what is passed over; and what goes with the call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.unit.plugins.registry_world import World, addresses, member_address, member_of

from patchbay_gateway.plugins.breaker import FAILURES
from patchbay_gateway.plugins.snapshot import AddressEntry

if TYPE_CHECKING:
    from patchbay_gateway.plugins.members import Member


async def test_pick_prefers_the_less_loaded(world: World) -> None:
    world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    for _ in range(40):
        member = member_of(world)
        member.begin()
    (plugin,) = world.registry.status()
    assert [a["in_flight"] for a in plugin["addresses"]] == [20, 20]


async def test_pick_passes_excluded_addresses_over(world: World) -> None:
    world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    assert {member_address(world, "10.0.0.1:1") for _ in range(20)} == {"10.0.0.2:1"}
    assert world.registry.pick("named", ["10.0.0.1:1", "10.0.0.2:1"]) is None


async def ejected(world: World) -> Member:
    """Return the only member, to which so many calls failed that it is passed over."""
    world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    for _ in range(FAILURES):
        member.begin()
        member.end(transport_failure=True)
    return member


async def test_pick_passes_an_ejected_address_over_until_its_probe(world: World) -> None:
    await ejected(world)
    assert addresses(world) == {"10.0.0.1:1": "ejected"}
    assert world.registry.pick("named") is None
    await world.clock.advance(5.0)
    probe = world.registry.pick("named")
    assert probe is not None
    probe.begin()
    assert world.registry.pick("named") is None, "one probe at a time"
    probe.end()
    assert world.registry.pick("named") is not None


async def test_pick_does_not_wait_for_the_end_of_a_probe_that_has_an_answer(world: World) -> None:
    """A stream may last for hours."""
    member = await ejected(world)
    await world.clock.advance(5.0)
    member.begin()
    assert world.registry.pick("named") is None
    member.answered()
    assert world.registry.pick("named") is member


async def test_pick_follows_the_weights_of_revisions(world: World) -> None:
    """A canary's share is its weight's, however many addresses it has."""
    world.resolver.names |= {"stable.test": ["10.0.0.1"], "canary.test": ["10.0.1.1", "10.0.1.2"]}
    await world.apply(
        "",
        AddressEntry("stable.test:1", "stable", 90),
        AddressEntry("canary.test:1", "canary", 10),
    )
    picked = [member_address(world) for _ in range(2000)]
    assert 100 < sum(a.startswith("10.0.1.") for a in picked) < 320


async def test_pick_weight_of_zero_gets_nothing(world: World) -> None:
    world.resolver.names |= {"stable.test": ["10.0.0.1"], "canary.test": ["10.0.1.1"]}
    await world.apply(
        "",
        AddressEntry("stable.test:1", "stable", 100),
        AddressEntry("canary.test:1", "canary", 0),
    )
    assert {member_address(world) for _ in range(50)} == {"10.0.0.1:1"}


async def test_member_token_is_renewed_while_it_lives(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    member = member_of(world)
    first = member.metadata()
    assert member.metadata() is first
    await world.clock.advance(200.0)
    assert member.metadata() != first
