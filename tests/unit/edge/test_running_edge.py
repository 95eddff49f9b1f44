"""An edge as a whole, over a Redis and a scheduler in memory: when it is ready, what it says at its end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import msgspec

from patchbay.errors import Unavailable
from patchbay_gateway.edge.main import RunningEdge, running_edge
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import ProcessSettings
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.kernel.lifecycle import Shutdown
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.instances import BEAT_EVERY
from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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


class NoScheduler:
    """One that never answers."""

    async def call(self, *_: object, **__: object) -> Any:
        raise Unavailable("no scheduler", reason="NO_SCHEDULER")


@contextlib.asynccontextmanager
async def edge(
    path: Path, beats: Beats, holder: SnapshotHolder, clock: ManualClock
) -> AsyncIterator[RunningEdge]:
    settings = ProcessSettings(data_dir=path, host="127.0.0.1", port=0)
    async with running_edge(
        settings,
        store=cast("Any", beats),
        holder=holder,
        scheduler=NoScheduler(),
        local={},
        roots=Roots((), (), (b"c" * 32,)),
        clock=clock,
        shutdown=Shutdown(),
    ) as running:
        yield running


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
