"""
One request on a connection of our own HTTP adapter: the `Exchange` that the pipeline sees.

Not here: the connection and its parser (http1.py), which calls `feed`, `feed_end` and `connection_lost`.
"""

from __future__ import annotations

import asyncio
import http
from typing import TYPE_CHECKING, Final

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge.exchange import ClientGone, Head

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay.errors import Headers
    from patchbay_gateway.edge.http1 import HttpProtocol

# So much of a body waits for somebody to ask for it.
_MAX_UNREAD: Final = 64 << 10
# Larger pieces are handed on as they are instead of being joined to their frame.
_JOIN: Final = 16 << 10
STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
NO_BODY: Final = frozenset({204, 304})


class HttpExchange:
    """One request on an `HttpProtocol`. See `Exchange` for what the methods promise."""

    __slots__ = (
        "_body",
        "_chunked",
        "_connection",
        "_ended",
        "_head",
        "_length",
        "_old",
        "_remaining",
        "_size",
        "_taken",
        "_waiter",
        "_without_body",
        "committed",
        "complete",
        "gone",
        "head",
        "keep_alive",
    )

    def __init__(self, connection: HttpProtocol, head: Head, length: bytes, *, old: bool) -> None:
        """*length* is the value of `content-length`, empty without."""
        self.head = head
        self._length = length
        self.gone: asyncio.Future[None] = connection.loop.create_future()
        self.committed = False
        self.complete = False
        """The whole request has arrived."""
        self.keep_alive = True
        self._connection = connection
        self._old = old
        self._body: list[bytes] = []
        self._size = 0
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._ended = False
        self._chunked = False
        self._remaining = 0
        self._without_body = head.method == "HEAD"

    # The connection's side

    def feed(self, data: bytes) -> None:
        """Take a piece of the body; thrown away after the answer."""
        if self._ended:
            return
        self._body.append(data)
        self._size += len(data)
        if self._size - self._taken > _MAX_UNREAD:
            self._connection.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        """Note the end of the body."""
        self.complete = True
        if self._ended:
            self._connection.finish_lingering()
        self._wake()

    def connection_lost(self) -> None:
        """Note that the client is away."""
        if not self.gone.done():
            self.gone.set_result(None)
        self._wake()

    def task_done(self, task: asyncio.Task[None]) -> None:
        """Cut an answer that was begun and not ended, by a bug or by a cancelled drain."""
        if not self._ended:
            self._cut()
        self._connection.task_over(task)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The pipeline's side

    async def body(
        self, limit: int, deadline: float, charge: Callable[[int], None] | None = None
    ) -> bytes:
        """Read to the end of the body."""
        # What is only announced takes no memory, so it is not charged.
        if self._announced() > limit:
            raise _too_large(limit)
        if self.complete:
            if self._size > limit:
                raise _too_large(limit)
            if charge is not None and self._size:
                charge(self._size)
        else:
            if self.gone.done():
                raise ClientGone
            self._continue()
            try:
                async with asyncio.timeout(deadline):
                    await self._rest(limit, charge)
            except TimeoutError:
                raise InvalidRequest(
                    f"the request body did not arrive within {deadline:g} s", reason="BODY_TIMEOUT"
                ) from None
        if self._size > _MAX_UNREAD:
            # Paused while nobody had asked; a client's leaving is seen only by reading.
            self._connection.resume_reading()
        parts, self._body = self._body, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _rest(self, limit: int, charge: Callable[[int], None] | None) -> None:
        connection = self._connection
        charged = 0
        while True:
            if self._size > limit:
                raise _too_large(limit)
            if charge is not None and self._size > charged:
                charge(self._size - charged)
                charged = self._size
            if self.complete:
                return
            if self.gone.done():
                raise ClientGone
            self._taken = self._size
            connection.resume_reading()
            self._waiter = connection.loop.create_future()
            await self._waiter

    def _announced(self) -> int:
        # The parser has refused what is no number already.
        return int(self._length) if self._length else 0

    def _continue(self) -> None:
        for name, value in self.head.headers:
            if name == b"expect" and value.lower() == b"100-continue" and not self._size:
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def send_head(self, status: int, headers: Headers) -> None:
        """
        Send status and headers; with a body half read the connection is not used again.

        Raises:
            ValueError: A header holds a line break or NUL.
        """
        if self.gone.done() or self._ended:
            raise ClientGone
        connection = self._connection
        parts: list[bytes] = []
        length = -1
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            parts += (name, b": ", value, b"\r\n")
        block = b"".join(parts)
        lines = len(headers)
        if block.count(b"\n") != lines or block.count(b"\r") != lines or block.find(b"\0") >= 0:
            raise ValueError("a header holds a line break or NUL")
        self.committed = True
        head = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        if status in NO_BODY or self._without_body:
            # What would follow the head would be taken for the next answer (RFC 9112, section 6.3).
            self._without_body = True
            if status == 204 and length >= 0:
                # RFC 9110, section 8.6.
                kept = [pair for pair in headers if pair[0] != b"content-length"]
                block = b"".join(b"%b: %b\r\n" % pair for pair in kept)
        elif length >= 0:
            self._remaining = length
        elif self._old:
            self._remaining = -1  # ends with the connection
        else:
            self._chunked = True
            block += b"transfer-encoding: chunked\r\n"
        if not self.complete:
            self.keep_alive = False
        if not self.keep_alive or not connection.keep_alive:
            self.keep_alive = False
            block += b"connection: close\r\n"
        # Held for the rest of the tick: head and body of a whole answer leave as one piece, and a write
        # costs the loop more than joining them.
        self._head = b"%b%b%b\r\n" % (head, connection.shared.date, block)
        connection.loop.call_soon(self._flush_head)

    def _flush_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            if not self._connection.lost:
                self._connection.transport.write(head)

    async def send(self, data: bytes) -> None:
        """
        Send bytes; waits while the transport's buffer is above its high water mark.

        Raises:
            ValueError: More than `content-length` said.
        """
        if self.gone.done() or self._ended:
            raise ClientGone
        if not data or self._without_body:
            return
        connection = self._connection
        head, self._head = self._head, b""
        if self._chunked:
            if len(data) < _JOIN:
                connection.transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
            else:
                connection.transport.writelines((b"%b%x\r\n" % (head, len(data)), data, b"\r\n"))
        else:
            if self._remaining >= 0:
                self._remaining -= len(data)
                if self._remaining < 0:
                    raise ValueError("the answer is longer than its content-length")
            if len(data) < _JOIN:
                connection.transport.write(head + data)
            else:
                connection.transport.writelines((head, data) if head else (data,))
        if connection.write_paused:
            await connection.drained()
            if self.gone.done():
                raise ClientGone

    async def finish(self) -> None:
        """
        End the answer.

        Raises:
            ValueError: Less than `content-length` said; the connection is cut.
        """
        if self.gone.done():
            raise ClientGone
        if self._ended:
            return
        if self._remaining > 0 and not self._without_body:
            self._cut()
            raise ValueError("the answer is shorter than its content-length")
        self._ended = True
        if self._chunked:
            head, self._head = self._head, b""
            self._connection.transport.write(head + b"0\r\n\r\n")
        else:
            self._flush_head()
        self._body = []
        self._connection.answered(self)

    async def abort(self) -> None:
        """Cut the connection."""
        self._cut()

    def _cut(self) -> None:
        if not self._ended:
            self._ended = True
            if not self.gone.done():
                self._flush_head()
                self._connection.cut(reset=self._remaining < 0)


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"the request body is larger than {limit} bytes", reason="BODY_TOO_LARGE")
