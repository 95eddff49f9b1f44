"""Members, readiness and choice over addresses of this process (plugins/registry.py, addresses.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from grpc_health.v1 import health_pb2

from patchbay import errors, keys
from patchbay.executor import Executor, ExecutorRequest, ExecutorResponse
from patchbay.plugin.v1 import executor_pb2
from patchbay.serve import build_servicers
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.plugins.addresses import ABSENCE, CONFIRM, POLL_EVERY
from patchbay_gateway.plugins.breaker import FAILURES
from patchbay_gateway.plugins.dns import StaticResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.registry import PluginRegistry
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, SettingsEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from patchbay_gateway.kernel.clock import ManualClock

KEY = b"a test's plugin key, 32 bytes..."
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Named(Executor):
    id = "named"
    name = "Named"
    version = "1"
    author = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    def __init__(self) -> None:
        self.configured: list[bytes] = []

    async def configure(self, config: bytes) -> None:
        if config == b"bad":
            raise errors.InvalidRequest("bad configuration", reason="CONFIG_INVALID")
        self.configured = [*self.configured, config]

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        return ExecutorResponse(self.configured[-1])


class Other(Named):
    id = "other"


class Process:
    """What listens at an address: a plugin and its health; may die and come back."""

    def __init__(self, key: bytes = KEY, *, several: bool = False) -> None:
        self._key = key
        self._several = several
        self.alive = True
        self.status = SERVING
        self._changed = asyncio.Event()
        self.restart()

    def restart(self) -> None:
        self.plugin = Named()
        plugins = [self.plugin, Other()] if self._several else [self.plugin]
        self.servicers = build_servicers(plugins, {p.id: [self._key] for p in plugins})
        self.servicers["grpc.health.v1.Health"] = self

    def tell(self, status: Any = SERVING, *, alive: bool = True) -> None:
        self.status, self.alive = status, alive
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            if not self.alive:
                raise errors.Unavailable("connection refused", reason="TRANSPORT")
            changed = self._changed
            yield health_pb2.HealthCheckResponse(status=self.status)
            await changed.wait()


class World:
    """Processes by address, a name server's table, and a registry over both."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.processes: dict[str, Process] = {}
        self.resolver = StaticResolver({"many.test": []})
        self.channels: list[InProcessChannel] = []
        self.limits: list[int] = []
        own = [keys.channel_key(KEY)]
        self.keys: dict[str, Sequence[bytes]] = {"named": own, "other": own}
        self.registry = self.make_registry()

    def make_registry(self, **more: Any) -> PluginRegistry:
        async def find(plugin_id: str) -> Sequence[bytes]:
            return self.keys.get(plugin_id, ())

        return PluginRegistry(
            host=Host("host-1", "test"),
            keys=find,
            resolver=self.resolver,
            clock=self.clock,
            connect=self.connect,
            **more,
        )

    def connect(self, address: str, message_limit: int) -> InProcessChannel:
        self.limits.append(message_limit)
        process = self.processes.setdefault(address, Process())
        channel = InProcessChannel(process.servicers, strict=True)
        self.channels.append(channel)
        return channel

    def add(self, address: str, process: Process | None = None) -> Process:
        host = address.rpartition(":")[0]
        self.resolver.names["many.test"] = [*(self.resolver.names["many.test"] or ()), host]
        return self.processes.setdefault(address, process or Process())

    async def apply(self, config: str = "", *targets: AddressEntry, **more: Any) -> None:
        entry = PluginEntry(
            id="named",
            addresses=targets or (AddressEntry("many.test:1"),),
            config=config,
            **more,
        )
        await self.registry.apply(Snapshot(version=1, plugins=(entry,)))
        await self.settle()

    async def settle(self, seconds: float = 0.0) -> None:
        """Turn the clock and let every task come to rest."""
        await self.clock.advance(seconds)
        for _ in range(60):
            await asyncio.sleep(0)


@pytest.fixture
async def world(
    clock: ManualClock,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after the registry is closed
) -> AsyncIterator[World]:
    made = World(clock)
    yield made
    await made.registry.aclose()


def addresses(world: World) -> dict[str, str]:
    (plugin,) = world.registry.status()
    return {a["address"]: a["state"] for a in plugin["addresses"]}


async def call(world: World) -> str:
    member = world.registry.pick("named")
    assert member is not None
    answer = await member.channel.unary(
        methods.EXECUTE,
        executor_pb2.ExecutorRequest(),
        deadline=None,
        metadata=member.metadata(),
    )
    return bytes(answer.payload).decode()


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
        member = world.registry.pick("named")
        assert member is not None
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


async def test_registry_draining_address_gets_no_calls_at_once(world: World) -> None:
    process = world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    process.tell(NOT_SERVING)
    await world.settle()
    assert addresses(world)["10.0.0.1:1"] == "draining"
    assert {member_address(world) for _ in range(20)} == {"10.0.0.2:1"}


def member_address(world: World, *exclude: str) -> str:
    member = world.registry.pick("named", exclude)
    return member.address if member is not None else ""


async def test_registry_answer_draining_stops_calls_before_health_says_so(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    member = world.registry.pick("named")
    assert member is not None
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
    member = world.registry.pick("named")
    assert member is not None
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
    member = world.registry.pick("named")
    assert member is not None
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
    member = world.registry.pick("named")
    assert member is not None
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
    member = world.registry.pick("named")
    assert member is not None
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
    member = world.registry.pick("named")
    assert member is not None
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


async def test_registry_capability_outside_the_allow_list_is_not_used(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply(capabilities=("usage_plugin",))
    assert world.registry.executor("named") is None


async def test_pick_prefers_the_less_loaded(world: World) -> None:
    world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    for _ in range(40):
        member = world.registry.pick("named")
        assert member is not None
        member.begin()
    (plugin,) = world.registry.status()
    assert [a["in_flight"] for a in plugin["addresses"]] == [20, 20]


async def test_pick_passes_excluded_addresses_over(world: World) -> None:
    world.add("10.0.0.1:1")
    world.add("10.0.0.2:1")
    await world.apply()
    assert {member_address(world, "10.0.0.1:1") for _ in range(20)} == {"10.0.0.2:1"}
    assert world.registry.pick("named", ["10.0.0.1:1", "10.0.0.2:1"]) is None


async def test_pick_passes_an_ejected_address_over_until_its_probe(world: World) -> None:
    world.add("10.0.0.1:1")
    await world.apply()
    member = world.registry.pick("named")
    assert member is not None
    for _ in range(FAILURES):
        member.begin()
        member.end(transport_failure=True)
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
    world.add("10.0.0.1:1")
    await world.apply()
    member = world.registry.pick("named")
    assert member is not None
    for _ in range(FAILURES):
        member.begin()
        member.end(transport_failure=True)
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
    member = world.registry.pick("named")
    assert member is not None
    first = member.metadata()
    assert member.metadata() is first
    await world.clock.advance(200.0)
    assert member.metadata() != first


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
