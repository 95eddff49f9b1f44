"""The file of the last snapshot, while several look for a newer one at once (plugins/distribution.py)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, cast

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder, SnapshotWatcher
from patchbay_gateway.plugins.sections import read_file
from patchbay_gateway.plugins.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Gate(concurrent.futures.ThreadPoolExecutor):
    """Runs in threads what a test lets go, and counts what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Queue[threading.Event] = asyncio.Queue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Keep it back."""
        let_go = threading.Event()
        self.waiting.put_nowait(let_go)

        def run() -> Any:
            assert let_go.wait(60)
            return fn(*args, **kwargs)

        return super().submit(run)


class Nothing:
    """A Redis that has no snapshot."""

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *_: object) -> None:
        return None


class Counting(Nothing):
    """Counts who looks."""

    def __init__(self) -> None:
        self.looks = 0

    async def call(self, *_: object) -> None:
        self.looks += 1


async def test_who_knows_of_a_newer_one_waits_for_a_look_of_its_own() -> None:
    """A look of a moment ago cannot have found it: the request would be refused for its version."""
    clock, redis = ManualClock(), Counting()
    watcher = SnapshotWatcher(cast("Any", redis), SnapshotHolder(), None, clock)
    await watcher.refresh()
    assert redis.looks == 1
    await clock.advance(0.05)
    waiting = [asyncio.create_task(watcher.refresh()) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert redis.looks == 1
    await clock.advance(0.05)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    assert redis.looks == 2


async def test_one_at_a_time_writes_the_file_and_the_newest_stays(tmp_path: Path) -> None:
    """Both would write the same draft of it; half of one and half of the other is no snapshot."""
    gate, holder, path = Gate(), SnapshotHolder(), tmp_path / "snapshot.json"
    asyncio.get_running_loop().set_default_executor(gate)
    clock = ManualClock()
    watcher = SnapshotWatcher(cast("Any", Nothing()), holder, path, clock)
    holder.set(Snapshot(version=1))
    async with asyncio.timeout(60):
        first = asyncio.create_task(watcher.boot())
        writing = await gate.waiting.get()
        holder.set(Snapshot(version=2))
        second = asyncio.create_task(watcher.refresh())
        for _ in range(10):
            await asyncio.sleep(0)
        assert gate.waiting.empty()
        writing.set()
        await first
        (await gate.waiting.get()).set()
        await second
    assert gate.waiting.empty()
    kept = read_file(path)
    assert kept is not None
    assert kept.version == 2
