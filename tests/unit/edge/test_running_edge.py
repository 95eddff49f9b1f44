"""An edge as a whole, over a Redis and a scheduler in memory: when it is ready, what it says at its end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import msgspec

from patchbay.errors import Unavailable
from patchbay.keys import channel_key
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.serve import build_servicers
from patchbay_gateway.edge.main import running_edge
from patchbay_gateway.edge.running import PATIENCE
from patchbay_gateway.executors.echo import EchoExecutor
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import ProcessSettings
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.kernel.lifecycle import Shutdown
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.instances import BEAT_EVERY
from patchbay_gateway.plugins.snapshot import PluginEntry, ProviderEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from patchbay_gateway.edge.running import RunningEdge


KEY = b"a test's plugin key, 32 bytes..."
ECHO = PluginEntry("echo", builtin=True)


class Beats:
    """A Redis that keeps what is said of the edge: whether it lives, each time."""

    def __init__(self, clock: ManualClock) -> None:
        self.said: list[bool] = []
        self.first = asyncio.Event()
        self._clock = clock

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *_: object) -> None:
        return None

    async def script(self, script: Any, keys: Any, args: list[Any]) -> int:
        msgspec.json.decode(args[1])
        self.said.append(args[2] > 0)
        self.first.set()
        if not self.said[-1]:
            # What comes after the last word takes a while.
            await self._clock.advance(2 * BEAT_EVERY)
        return 1


class Keys:
    """A scheduler that takes reports, and knows keys of plugins once it is told that it may say them."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.reports: list[str] = []

    async def call(self, method: Any, request: Any, **more: object) -> Any:
        if method is methods.REPORT:
            for _ in range(500):  # turns of the loop, as of a scheduler elsewhere
                await asyncio.sleep(0)
            self.reports += [item.attempt.attempt_uid for item in request.items]
            return scheduler_pb2.ReportResponse()
        if method is not methods.LIST_CHANNEL_KEYS:
            raise Unavailable("no scheduler", reason="NO_SCHEDULER")
        await self.known.wait()
        answer = scheduler_pb2.ListChannelKeysResponse()
        for plugin_id in request.plugin_ids:
            answer.keys.add(plugin_id=plugin_id, key=channel_key(KEY))
        return answer


@contextlib.asynccontextmanager
async def edge(
    path: Path,
    beats: Beats,
    holder: SnapshotHolder,
    clock: ManualClock,
    *,
    port: int = 0,
    keys: Keys | None = None,
    shutdown: Shutdown | None = None,
) -> AsyncIterator[RunningEdge]:
    """Run one; on a *port*, as one of several processes that share it."""
    settings = ProcessSettings(data_dir=path, host="127.0.0.1", port=port)
    executors = InProcessChannel(build_servicers([EchoExecutor()], {"echo": [KEY]}))
    async with running_edge(
        settings,
        store=cast("Any", beats),
        holder=holder,
        scheduler=keys or Keys(),
        local={"echo": executors},
        roots=Roots((), (), (b"c" * 32,)),
        clock=clock,
        shutdown=shutdown or Shutdown(),
        reuse_port=port > 0,
    ) as running:
        yield running
    await executors.close()


async def test_edge_that_has_said_goodbye_is_not_heard_again(tmp_path: Path) -> None:
    """Who reads the list would count it among the living for a quarter of a minute."""
    clock = ManualClock()
    beats = Beats(clock)
    async with asyncio.timeout(60), edge(tmp_path, beats, SnapshotHolder(), clock):
        await beats.first.wait()
    assert beats.said == [True, False]


async def test_edge_is_not_ready_before_plugins_can_call_back(tmp_path: Path) -> None:
    clock, holder = ManualClock(), SnapshotHolder()
    granted = PluginEntry("p", host_access={"models": True})
    async with asyncio.timeout(60), edge(tmp_path, Beats(clock), holder, clock) as running:
        ready = running.checks()["callbacks"]
        assert ready() is None, "nobody is granted anything"
        holder.set(Snapshot(version=1, plugins=(granted,)))
        assert ready() is not None
        running.scopes.address = "127.0.0.1:7000"
        assert ready() is None


async def connects(port: int) -> bool:
    """Whether somebody listens on *port*."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_edge_that_shares_its_port_takes_no_connections_before_it_can_serve(
    tmp_path: Path, free_port: int
) -> None:
    """The other processes serve meanwhile; what the kernel gave to this one would be refused."""
    clock, holder, keys = ManualClock(), SnapshotHolder(), Keys()
    holder.set(Snapshot(version=1, plugins=(ECHO,), providers=(ProviderEntry("p", "echo"),)))
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        shared = edge(tmp_path, Beats(clock), holder, clock, port=free_port, keys=keys)
        starting = asyncio.create_task(stack.enter_async_context(shared))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not await connects(free_port)
        keys.known.set()
        running = await starting
        assert running.checks()["executors"]() is None
        assert await connects(free_port)


async def test_edge_that_shares_its_port_waits_once_for_an_executor_that_never_comes(
    tmp_path: Path, free_port: int
) -> None:
    """What it waited before it opened its port counts: it is not unready as long again."""
    clock, holder, keys, shutdown = ManualClock(), SnapshotHolder(), Keys(), Shutdown()
    keys.known.set()
    plugins = (ECHO, PluginEntry("absent"))
    providers = (ProviderEntry("p", "echo"), ProviderEntry("q", "absent"))
    holder.set(Snapshot(version=1, plugins=plugins, providers=providers))
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        shared = edge(
            tmp_path, Beats(clock), holder, clock, port=free_port, keys=keys, shutdown=shutdown
        )
        starting = asyncio.create_task(stack.enter_async_context(shared))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not starting.done()
        await clock.advance(PATIENCE + 1.0)
        shutdown.drain()
        running = await starting
        await running.registry.wait_ready({"echo"}, 60.0)
        assert running.checks()["executors"]() is None


async def test_edge_that_is_told_to_end_before_it_can_serve_does_not_wait(
    tmp_path: Path, free_port: int
) -> None:
    clock, shutdown = ManualClock(), Shutdown()
    shutdown.drain()
    async with asyncio.timeout(60):
        async with edge(
            tmp_path, Beats(clock), SnapshotHolder(), clock, port=free_port, shutdown=shutdown
        ) as running:
            assert running.server.active == 0


async def test_reports_of_what_is_cut_after_the_drain_are_handed_over(tmp_path: Path) -> None:
    """Model calls of plugins are no connections: they end when the port for callbacks closes."""
    clock, keys = ManualClock(), Keys()

    def report(uid: str) -> scheduler_pb2.ReportItem:
        item = scheduler_pb2.ReportItem()
        item.attempt.attempt_uid = uid
        return item

    async with asyncio.timeout(60):
        async with edge(tmp_path, Beats(clock), SnapshotHolder(), clock, keys=keys) as running:
            running.outbox.report(report("a client's"))
            await running.drain()
            running.outbox.report(report("a plugin's"))
    assert keys.reports == ["a client's", "a plugin's"]
