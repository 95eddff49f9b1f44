"""The operator's process: what it waits for, and what it notices of its own files (run.py)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.lifecycle import Shutdown
from patchbay_operator import run

if TYPE_CHECKING:
    from pathlib import Path


async def test_wait_for_the_lease_that_crashes_is_no_lease() -> None:
    """A replica that took it for one would work without leading, and nobody would know."""

    async def broken() -> None:
        raise ValueError("a lease that nobody can read")

    with pytest.raises(ValueError, match="nobody can read"):
        await run._until(broken(), Shutdown())


async def test_wait_for_the_lease_ends_with_the_process() -> None:
    shutdown = Shutdown()
    waiting = asyncio.create_task(run._until(asyncio.Event().wait(), shutdown))
    await asyncio.sleep(0)
    shutdown.drain()
    assert not await waiting


async def test_values_that_change_before_the_first_look_are_read_again(tmp_path: Path) -> None:
    """They were read a moment before, and the next resync is minutes away."""
    path = tmp_path / "patchbay.yaml"
    path.write_text("a")
    looks: list[str] = []

    class Controller:
        def resync(self) -> None:
            looks.append(path.read_text())

    mark = run._mark(path)
    path.write_text("changed")
    os.utime(path, (1, 1))  # two writes may fall into one tick of the file system's clock
    clock = ManualClock()
    following = asyncio.create_task(
        run._follow_values(path, mark, cast("Any", Controller()), clock)
    )
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while not looks:
            await clock.advance(run.OBJECTS_EVERY)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert looks == ["changed"]
