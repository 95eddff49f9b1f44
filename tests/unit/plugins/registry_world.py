"""
A registry over processes of this process: plugins at addresses that die and come back.

Not here: tests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from grpc_health.v1 import health_pb2

from patchbay import errors, keys
from patchbay.executor import Executor, ExecutorRequest, ExecutorResponse
from patchbay.plugin.v1 import executor_pb2
from patchbay.serve import build_servicers
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.plugins.dns import StaticResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.registry import PluginRegistry
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from patchbay_gateway.kernel.clock import ManualClock
    from patchbay_gateway.plugins.members import Member


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


def addresses(world: World) -> dict[str, str]:
    (plugin,) = world.registry.status()
    return {a["address"]: a["state"] for a in plugin["addresses"]}


def member_of(world: World) -> Member:
    """Return the member that a call would go to; there must be one."""
    member = world.registry.pick("named")
    assert member is not None
    return member


async def call(world: World) -> str:
    member = member_of(world)
    answer = await member.channel.unary(
        methods.EXECUTE,
        executor_pb2.ExecutorRequest(),
        deadline=None,
        metadata=member.metadata(),
    )
    return bytes(answer.payload).decode()


def member_address(world: World, *exclude: str) -> str:
    member = world.registry.pick("named", exclude)
    return member.address if member is not None else ""
