"""
A limit on silence that costs an alarm per call, and nothing per chunk.

The alarm is set anew when it rings, not when bytes arrive: an arrival only moves the deadline. Time in
which nobody waits for bytes (a slow client holds us back) does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from patchbay.alarms import Alarms


class SilenceLimit:
    """
    Calls *on_silence* once when nothing was heard for the limit.

    Args:
        loop: Gives time.
        alarms: Of that loop.
        limit: Seconds; 0 means none.
        on_silence: What to do then. May be replaced while it runs.
    """

    __slots__ = (
        "_alarms",
        "_deadline",
        "_limit",
        "_loop",
        "_set",
        "_waiting",
        "expired",
        "on_silence",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        alarms: Alarms,
        limit: float,
        on_silence: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._alarms = alarms
        self._limit = limit
        self._waiting = True
        self.on_silence = on_silence
        self.expired = False
        self._deadline = loop.time() + limit
        self._set = limit > 0
        if self._set:
            alarms.set(self, self._deadline)

    def heard(self) -> None:
        """Bytes came; nobody waits until `wait`."""
        self._waiting = False

    def wait(self) -> None:
        """Somebody waits for the next bytes from now on."""
        self._waiting = True
        self._deadline = self._loop.time() + self._limit

    def change(self, limit: float) -> None:
        """Take another limit from now on."""
        shorter = limit < self._limit
        self._limit = limit
        self._deadline = self._loop.time() + limit
        if not limit:
            self.stop()
        elif shorter or not self._set:
            self._set = True
            self._alarms.set(self, self._deadline)

    def stop(self) -> None:
        """Never call again. Idempotent."""
        if self._set:
            self._set = False
            self._alarms.drop(self)

    def ring(self) -> None:
        """See whether it was silent for so long (Alarms)."""
        now = self._loop.time()
        if not self._waiting:
            self._deadline = now + self._limit
        if now < self._deadline:
            self._alarms.set(self, self._deadline)
            return
        self._set = False
        self.expired = True
        self.on_silence()
