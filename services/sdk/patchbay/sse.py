"""
Cutting a byte stream into whole server-sent events, each with its blank line.

The cutter never changes a byte: events joined are the bytes fed. All searching is done by bytes methods
in C, because this runs for every piece that a provider sends. Not here: what an event says (parsing is
left to the few callers that need it) and other framings.
"""

from __future__ import annotations

import re

# Line ends are LF, CRLF or CR; a blank line ends an event. JSON never holds a raw CR, so streams
# without one, which is nearly all of them, never come here.
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")

MAX_EVENT = 16 << 20
"""Default bound of one event in bytes; a frame with a picture in base64 has a few megabytes."""


class EventTooLarge(ValueError):
    """One event grew over the bound before its blank line came."""


class EventCutter:
    """
    Cuts one stream. Feed it what arrives, get whole events.

    Args:
        max_event: Bytes that one event may have.
    """

    __slots__ = ("_held", "_held_bytes", "_max", "block")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._max = max_event
        self.block = b""
        """The events of the last `feed`, joined: one place to look for a pattern in all of them."""

    def feed(self, data: bytes) -> list[bytes]:
        r"""
        Return the events that *data* completes, in order; often none or one.

        A CR CR at the end of *data* ends an event at once, even if an LF follows later.

        Raises:
            EventTooLarge: no blank line within the bound.
        """
        if self._held:
            # Joining is quadratic if an event trickles in, so look first whether it can end here: the
            # blank line may lie across the seam by three bytes at most.
            held = self._held[-1]
            seam = (held[-3:] if len(held) >= 3 else b"".join(self._held[-3:])[-3:]) + data
            if (seam.find(b"\n\n") < 0) and (seam.find(b"\r") < 0 or not _BLANK_LINE.search(seam)):
                self._hold(data)
                self.block = b""
                return []
            self._held.append(data)
            data = b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
        if data.find(b"\r") >= 0:
            return self._cut_any(data)
        events = data.split(b"\n\n")
        rest = events.pop()
        if rest:
            self._hold(rest)
            self.block = data[: -len(rest)]
        else:
            self.block = data
        if len(events) == 1:
            return [self.block]
        return [event + b"\n\n" for event in events]

    def rest(self) -> bytes:
        """Return and forget the bytes after the last blank line: half an event, or none."""
        rest = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return rest

    def _cut_any(self, data: bytes) -> list[bytes]:
        events, start = [], 0
        for blank in _BLANK_LINE.finditer(data):
            events.append(data[start : blank.end()])
            start = blank.end()
        if start < len(data):
            self._hold(data[start:])
        self.block = data[:start]
        return events

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self._max:
            raise EventTooLarge(f"an event of the stream is larger than {self._max} bytes")


def event_data(event: bytes) -> bytes:
    """Return the data of one event, its `data:` lines joined by LF; empty without any."""
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.splitlines()
        if line.startswith(b"data:")
    ]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
