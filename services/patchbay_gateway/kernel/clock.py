"""
Time as a port, so that tests turn the hands instead of waiting.

Not here: deadlines of RPCs (channels) and anything that formats time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where a service reads time and sleeps."""

    def now(self) -> float:
        """Unix seconds; may jump. For records and for instants shared with other processes."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back. For durations within this process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds*; a cancel point even for 0."""


async def pause(clock: Clock, seconds: float, woken: asyncio.Event) -> None:
    """Return after *seconds* of *clock*, or as soon as *woken* is set. Nothing of it is left running."""
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    waking = asyncio.ensure_future(woken.wait())
    try:
        await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sleeping, waking):
            task.cancel()
        # Not by suppressing their CancelledError: our own, which may come just now, would go with it.
        await asyncio.gather(sleeping, waking, return_exceptions=True)


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some start."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that only `advance` moves; sleepers wake in the order of their instants."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> float:
        """Return the hand's position."""
        return self._now

    def monotonic(self) -> float:
        """Return the hand's position."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed *seconds*."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        entry = (self._now + seconds, self._order, future)
        self._sleepers.append(entry)
        try:
            await future
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)

    async def advance(self, seconds: float) -> None:
        """Move on by *seconds*, waking each sleeper at its instant and letting it run."""
        end = self._now + seconds
        while due := sorted(s for s in self._sleepers if s[0] <= end):
            at, _, future = due[0]
            self._sleepers.remove(due[0])
            self._now = max(self._now, at)
            if not future.done():
                future.set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)
        self._now = end
        for _ in range(5):
            await asyncio.sleep(0)
