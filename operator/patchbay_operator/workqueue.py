"""
Keys that want attention: each at most once in the queue and in one hand at a time, with backoff.

A key that is added while it is worked on comes again afterwards. Bounded by the number of keys. Not here:
what the work is.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from patchbay_gateway.kernel.clock import Clock

Key = TypeVar("Key", bound="Hashable")

FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 300.0
_log = logs.get_logger("operator.queue")


class WorkQueue(Generic[Key]):
    """
    The queue.

    Args:
        work: Does what a key needs; an error brings the key back after a backoff.
        clock: Paces backoffs.
        on_result: Told key, error (None: none) and seconds.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[None]],
        *,
        clock: Clock,
        on_result: Callable[[Key, Exception | None, float], None] | None = None,
    ) -> None:
        self._work = work
        self._clock = clock
        self._on_result = on_result or (lambda _key, _error, _seconds: None)
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, float] = {}
        """Queued key → when it was added."""
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, tuple[float, asyncio.Task[None]]] = {}
        """Key → when it comes back, monotonic, and what brings it."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """Seconds that the oldest queued key has waited."""
        now = self._clock.monotonic()
        return max((now - at for at in self._waiting.values()), default=0.0)

    def add(self, key: Key) -> None:
        """Have *key* worked on soon."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = self._clock.monotonic()
            self._ready.put_nowait(key)

    def add_later(self, key: Key, delay: float) -> None:
        """Have *key* worked on after *delay* seconds at the latest."""
        at = self._clock.monotonic() + delay
        kept = self._timers.get(key)
        if kept is not None and not kept[1].done():
            if kept[0] <= at:
                return
            # A backoff of an earlier failure may be minutes long.
            kept[1].cancel()
        timer = asyncio.create_task(self._later(key, delay), name=f"later {key}")
        self._timers[key] = at, timer

    async def run(self, workers: int = 4) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(workers):
                    group.create_task(self._loop(), name=f"worker-{number}")
        finally:
            timers = [timer for _, timer in self._timers.values()]
            for timer in timers:
                timer.cancel()
            await asyncio.gather(*timers, return_exceptions=True)

    async def _later(self, key: Key, delay: float) -> None:
        await self._clock.sleep(delay)
        self._timers.pop(key, None)
        self.add(key)

    async def _loop(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.pop(key, None)
            self._active.add(key)
            started = self._clock.monotonic()
            failure: Exception | None = None
            try:
                await self._work(key)
            except PatchbayError as error:
                failure = error
                _log.warning("not done yet", key=str(key), why=error.message)
            except Exception as error:  # noqa: BLE001 - one key's bug is not the others'
                failure = error
                _log.error("crashed", key=str(key), exc_info=error)
            finally:
                self._active.discard(key)
            self._on_result(key, failure, self._clock.monotonic() - started)
            if failure is None:
                self._failures.pop(key, None)
            else:
                self._back_off(key, getattr(failure, "retry_after", None))
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    def _back_off(self, key: Key, wish: float | None) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(FIRST_BACKOFF * 2 ** (count - 1), MAX_BACKOFF)
        self.add_later(key, max(wish or 0.0, pause * random.uniform(0.8, 1.2)))  # noqa: S311 - no secret
