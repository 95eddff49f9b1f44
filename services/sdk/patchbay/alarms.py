"""
Many alarms of which hardly any ever rings, on one timer of the loop.

A limit on silence is set for every call and dropped again by nearly every answer, minutes before its time.
A timer of the loop's own for each costs several microseconds to make and to cancel; here setting one is
an entry of a dictionary. The one timer is armed for the earliest; when it fires, all are looked at, at most
once each `SLACK` seconds. Not here: what is due (whoever sets an alarm).
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

SLACK: Final = 0.02
"""Seconds by which an alarm may be late because others were looked at just before."""
# Loops keep time in milliseconds (libuv), so a timer may fire by one too early.
_RESOLUTION: Final = 0.001


class Sleeper(Protocol):
    """Who sets an alarm; looked up by identity."""

    def ring(self) -> None:
        """Its time has come; the alarm is no longer set."""
        ...


class Alarms:
    """
    The alarms of one loop.

    Args:
        loop: Whose time it is; default: the one that runs when the first is set.
    """

    __slots__ = ("_due", "_handle", "_loop", "_next")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._due: dict[Sleeper, float] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._next = math.inf

    def set(self, sleeper: Sleeper, when: float) -> None:
        """Let *sleeper* ring at the loop time *when*, instead of when it would have rung."""
        self._due[sleeper] = when
        if when < self._next:
            self._arm(when)

    def drop(self, sleeper: Sleeper) -> None:
        """Never let it ring. Idempotent."""
        self._due.pop(sleeper, None)

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._next = when
        self._handle = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        loop = self._loop
        assert loop is not None
        self._handle, self._next = None, math.inf
        now = loop.time()
        late = now + _RESOLUTION
        for sleeper in [s for s, when in self._due.items() if when <= late]:
            # One that rang before may have dropped or moved it.
            if self._due.get(sleeper, math.inf) <= late:
                del self._due[sleeper]
                try:
                    sleeper.ring()
                except Exception as error:  # noqa: BLE001 - as the loop treats a timer of its own
                    loop.call_exception_handler(
                        {"message": f"{sleeper!r} failed to ring", "exception": error}
                    )
        if self._due:
            earliest = max(min(self._due.values()), now + SLACK)
            if earliest < self._next:
                self._arm(earliest)
