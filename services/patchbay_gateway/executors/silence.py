"""
A limit on silence that costs one timer per call, not one per chunk.

The timer is re-armed when it fires, not when bytes arrive: an arrival only moves the deadline. Time in
which nobody waits for bytes (a slow client holds us back) does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class SilenceLimit:
    """
    Calls *on_silence* once when nothing was heard for the limit.

    Args:
        loop: Gives time and the timer.
        limit: Seconds; 0 means none.
        on_silence: What to do then. May be replaced while it runs.
    """

    __slots__ = ("_deadline", "_handle", "_limit", "_loop", "_waiting", "expired", "on_silence")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, on_silence: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._waiting = True
        self.on_silence = on_silence
        self.expired = False
        self._deadline = loop.time() + limit
        self._handle = loop.call_at(self._deadline, self._look) if limit else None

    def heard(self) -> None:
        """Bytes came; nobody waits until `wait`."""
        self._waiting = False

    def wait(self) -> None:
        """Somebody waits for the next bytes from now on."""
        self._waiting = True
        self._deadline = self._loop.time() + self._limit

    def change(self, limit: float) -> None:
        """Take another limit from now on."""
        shorter = limit and (not self._limit or limit < self._limit)
        self._limit = limit
        self._deadline = self._loop.time() + limit
        if not limit or shorter or self._handle is None:
            self.stop()
            self._handle = self._loop.call_at(self._deadline, self._look) if limit else None

    def stop(self) -> None:
        """Never call again. Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        now = self._loop.time()
        if not self._waiting:
            self._deadline = now + self._limit
        if now < self._deadline:
            self._handle = self._loop.call_at(self._deadline, self._look)
            return
        self._handle = None
        self.expired = True
        self.on_silence()
