"""
Ejection of an address: may it get a call now?

Closed → five transport failures in a row → open for 5 s → one probe → closed again, or open twice as
long, up to 60 s. Pure: outcomes and clock readings in, a decision out. Hot: asked at each pick. An
application error is a success here, for the address answered. Not here: what counts as a failure of the
transport (kernel/channels), plugins as a whole (registry.py).
"""

from __future__ import annotations

from typing import Final

FAILURES: Final = 5
FIRST_PAUSE: Final = 5.0
MAX_PAUSE: Final = 60.0


class Breaker:
    """The state of one address."""

    __slots__ = ("_failures", "_pause", "_probing", "until")

    def __init__(self) -> None:
        self._failures = 0
        self._pause = 0.0
        self._probing = False
        self.until = 0.0
        """Instant at which a probe may go out; 0 while closed."""

    def allows(self, now: float) -> bool:
        """Whether a call may go to the address at *now* (monotonic seconds)."""
        return not self.until or (now >= self.until and not self._probing)

    def began(self) -> None:
        """A call begins: while open it is the probe."""
        if self.until:
            self._probing = True

    def succeeded(self) -> None:
        """Note an answer, whatever it said."""
        self._failures = 0
        if self.until:
            self._probing = False
            self.until = self._pause = 0.0

    def failed(self, now: float) -> None:
        """Note a failure of the transport."""
        if self.until:
            # Calls that began before the ejection fail late; only the probe's failure says something new.
            if self._probing:
                self._open(now, min(self._pause * 2, MAX_PAUSE))
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._open(now, FIRST_PAUSE)

    def left(self) -> None:
        """Note a call that ended without telling anything: its caller gave it up."""
        self._probing = False

    def reset(self) -> None:
        """Forget everything: another process answers at the address now."""
        self._failures = 0
        self._probing = False
        self.until = self._pause = 0.0

    def _open(self, now: float, pause: float) -> None:
        self._failures = 0
        self._probing = False
        self._pause = pause
        self.until = now + pause
