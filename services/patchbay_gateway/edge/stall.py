"""
One sweeper for all connections whose client does not take what is written.

A connection is watched only while its transport says that the write buffer is full, so an answer that
flows costs nothing. Progress is that fewer bytes wait, in our buffer and the kernel's together: the kernel
asks for more only when a third of its buffer, which grows to megabytes, is free. Not here: silent peers,
which fall to the TCP user timeout (server.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TICKS_PER_LIMIT: Final = 8
_MAX_PERIOD: Final = 5.0
_MIN_PERIOD: Final = 0.02
# After an answer was cut its last bytes get so many seconds to leave the buffer.
CLOSE_GRACE: Final = 5.0
# An idle connection stays so long: longer than the idle timeout of the usual load balancers (60 s), so that
# they close first and never send a request into a connection that we are closing.
KEEP_ALIVE: Final = 75


class StallSweeper:
    """
    Aborts transports that have taken nothing for the limit.

    Args:
        limit: Seconds, read at each sweep; 0 switches it off.
    """

    def __init__(self, limit: Callable[[], float]) -> None:
        self._limit = limit
        # transport → (loop time of the last progress, bytes buffered then, own limit)
        self._watched: dict[asyncio.Transport, tuple[float, int, float | None]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.Transport, limit: float | None = None) -> None:
        """Begin to watch *transport*, under its own *limit* in seconds if one is given."""
        loop = asyncio.get_running_loop()
        self._watched[transport] = (loop.time(), _waiting(transport), limit)
        if limit is not None and self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._handle is None:
            self._arm(loop)

    def unwatch(self, transport: asyncio.Transport) -> None:
        """Stop watching; the timer rests once nothing is watched."""
        self._watched.pop(transport, None)

    def close(self) -> None:
        """Forget everything."""
        self._watched.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        limits = [own for _, _, own in self._watched.values() if own is not None]
        if (common := self._limit()) > 0:
            limits.append(common)
        shortest = min(limits, default=_MAX_PERIOD)
        period = min(max(shortest / _TICKS_PER_LIMIT, _MIN_PERIOD), _MAX_PERIOD)
        self._handle = loop.call_later(period, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        now = loop.time()
        common = self._limit()
        for transport, (since, size, own) in list(self._watched.items()):
            left = _waiting(transport)
            limit = common if own is None else own
            if left != size and own is None:
                self._watched[transport] = (now, left, own)
            elif 0 < limit <= now - since:
                del self._watched[transport]
                transport.abort()
        if self._watched:
            self._arm(loop)


def _waiting(transport: asyncio.Transport) -> int:
    """Return how many bytes the peer has not acknowledged yet."""
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    # TIOCOUTQ on a TCP socket is SIOCOUTQ (tcp(7)); elsewhere our own buffer must do.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        queued: tuple[int] = struct.unpack(
            "i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        )
        size += queued[0]
    return size
