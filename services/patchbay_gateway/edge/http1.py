"""
The adapter of our own: client exchanges straight from httptools' parser, without ASGI between.

It promises what the ASGI adapter promises (asgi.py; one test suite runs against both) for a third of the
cost: no message dictionaries, no event per request, no header checked twice. HTTP/1.1 with keep-alive,
pipelining one request ahead, chunked bodies both ways, `Expect: 100-continue`; HTTP/1.0 answers end with
the connection. Upgrades are ignored, as the standard allows. Not here: listening and draining (server.py).
"""

from __future__ import annotations

import asyncio
import http
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge.exchange import ClientGone, Head
from patchbay_gateway.edge.stall import CLOSE_GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from patchbay.errors import Headers
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.edge.stall import StallSweeper

# A client that is refused in the middle of its body gets so long to finish sending: closing at once would
# reset the connection, and the reset would take the answer with it.
_LINGER: Final = 2.0
# llhttp itself sets no bound; 64 KiB is twice what the usual servers take.
_MAX_HEAD: Final = 64 << 10
_HEAD_DEADLINE: Final = 30.0
# So much of a body waits for somebody to ask for it.
_MAX_UNREAD: Final = 64 << 10
# Larger pieces are handed on as they are instead of being joined to their frame.
_JOIN: Final = 16 << 10
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in http.HTTPStatus
}
_NO_BODY: Final = frozenset({204, 304})


class Connections:
    """
    What the connections of one server share.

    Args:
        serve: Answers an exchange; raises nothing but cancellation.
        sweeper: Watches clients that take nothing.
        closed: Called after each connection's end.
    """

    def __init__(
        self,
        serve: Callable[[Exchange], Coroutine[Any, Any, None]],
        sweeper: StallSweeper,
        closed: Callable[[], None],
    ) -> None:
        self.serve = serve
        self.sweeper = sweeper
        self.closed = closed
        self.loop = asyncio.get_running_loop()
        self.open: set[HttpProtocol] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    def protocol(self) -> HttpProtocol:
        """Return the protocol of a new connection."""
        return HttpProtocol(self)

    def close_idle(self, since: float) -> None:
        """Close connections on which nothing has happened since the loop time *since*."""
        for connection in list(self.open):
            if connection.current is None and connection.idle_since < since:
                connection.transport.close()


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_drain_waiters",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_parser",
        "_parsing",
        "_peer",
        "_queue",
        "_read_paused",
        "_shared",
        "_url",
        "current",
        "idle_since",
        "keep_alive",
        "loop",
        "lost",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self.loop = shared.loop
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._headers: Headers = []
        self._url = b""
        self._in_head = False
        self._head_bytes = 0
        self._peer = ""
        self._parsing: HttpExchange | None = None
        self._queue: deque[HttpExchange] = deque()
        self._read_paused = False
        self._drain_waiters: list[asyncio.Future[None]] = []
        self.current: HttpExchange | None = None
        self.idle_since = 0.0
        self.keep_alive = True
        self.lost = False
        self.write_paused = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the peer."""
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self.idle_since = self._shared.loop.time()
        self._shared.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchanges in this very tick."""
        self.lost = True
        self._parser = None
        shared = self._shared
        shared.open.discard(self)
        shared.sweeper.unwatch(self.transport)
        self._wake_writers()
        for exchange in (self.current, *self._queue):
            if exchange is not None:
                exchange.connection_lost()
        self.current = self._parsing = None
        self._queue.clear()
        shared.closed()

    def data_received(self, data: bytes) -> None:
        """Parse; bound the size and the time of a head that does not come in one piece."""
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if the upgrade had not been asked for; what follows is not HTTP for sure.
            self._stop_parsing()
        except httptools.HttpParserError:
            self._refuse(400)
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                self._refuse(431)
            elif self._head_bytes == len(data):
                self._shared.sweeper.watch(self.transport, _HEAD_DEADLINE)

    def pause_writing(self) -> None:
        """The client takes less than we write: watch it."""
        self.write_paused = True
        self._shared.sweeper.watch(self.transport)

    def resume_writing(self) -> None:
        """The client takes again."""
        self.write_paused = False
        self._shared.sweeper.unwatch(self.transport)
        self._wake_writers()

    # The parser's side

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._url = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the one that is being answered."""
        parser = self._parser
        assert parser is not None
        self._in_head = False
        if self._head_bytes:
            self._head_bytes = 0
            self._shared.sweeper.unwatch(self.transport)
        url = self._url
        if not url.startswith(b"/"):
            parsed = httptools.parse_url(url) if url != b"*" else None
            url = (parsed.path or b"/") if parsed else b"*"
            if parsed and parsed.query:
                url += b"?" + parsed.query
        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("latin-1")
        if "%" in path:
            path = unquote(path)
        old = parser.get_http_version() == "1.0"
        head = Head(parser.get_method().decode(), path, query, self._headers, self._peer)
        exchange = HttpExchange(self, head, old=old)
        exchange.keep_alive = not old and parser.should_keep_alive()
        self._parsing = exchange
        if self.current is None:
            self._start(exchange)
        else:
            self._queue.append(exchange)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._parsing is not None:
            self._parsing.feed(data)

    def on_message_complete(self) -> None:
        """End the body."""
        exchange, self._parsing = self._parsing, None
        if exchange is not None:
            exchange.feed_end()

    # The exchange's side

    def pause_reading(self) -> None:
        """Let the kernel's buffer fill instead of ours."""
        if not self._read_paused and not self.lost:
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._read_paused and not self.lost and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    async def drained(self) -> None:
        """Return when the client takes again or is lost."""
        waiter = self._shared.loop.create_future()
        self._drain_waiters.append(waiter)
        await waiter

    def answered(self, exchange: HttpExchange) -> None:
        """Go on after a complete answer."""
        self.current = None
        if self.lost:
            return
        if not exchange.complete:
            # The rest of the body is thrown away for a while, see _LINGER.
            self.resume_reading()
            self._shared.loop.call_later(_LINGER, self.transport.close)
            return
        if not exchange.keep_alive or not self.keep_alive or self._shared.draining:
            self.transport.close()
            return
        self.idle_since = self._shared.loop.time()
        if self._queue:
            self._start(self._queue.popleft())
        else:
            self.resume_reading()

    def cut(self, *, reset: bool = False) -> None:
        """
        End the connection without a regular end of the answer.

        What was sent before still leaves, but no terminating chunk follows it.

        Args:
            reset: The end of the connection is the end of the answer, so it must be a broken one.
        """
        self.current = None
        if reset:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.transport.abort()
        elif self.transport.get_write_buffer_size():
            self.transport.close()
            self._shared.sweeper.watch(self.transport, CLOSE_GRACE)
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """Drain: close now if idle, else after the answer."""
        self.keep_alive = False
        if self.current is None:
            self.transport.close()

    def finish_lingering(self) -> None:
        """Close once a refused body has been thrown away to its end."""
        self.transport.close()

    def _start(self, exchange: HttpExchange) -> None:
        self.current = exchange
        shared = self._shared
        task = shared.loop.create_task(shared.serve(exchange))
        shared.tasks.add(task)
        task.add_done_callback(exchange.task_done)

    def task_over(self, task: asyncio.Task[None]) -> None:
        """Forget a task; a failure of one is a bug that the loop's handler is told of."""
        self._shared.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._shared.loop.call_exception_handler(
                {"message": "serving an exchange failed", "exception": error, "task": task}
            )

    def _stop_parsing(self) -> None:
        self._parser = None
        self.keep_alive = False

    def _refuse(self, status: int) -> None:
        """Answer what is no HTTP, unless an answer is under way: that one ends first."""
        self._stop_parsing()
        if self._in_head:
            self._shared.sweeper.unwatch(self.transport)
            self._in_head = False
        if self._parsing is not None:
            # A broken body: whoever reads it sees the client as gone.
            self.cut()
        elif self.current is None:
            self.transport.write(
                _STATUS_LINES[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def _wake_writers(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class HttpExchange:
    """One request on an `HttpProtocol`. See `Exchange` for what the methods promise."""

    __slots__ = (
        "_body",
        "_chunked",
        "_connection",
        "_ended",
        "_head",
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

    def __init__(self, connection: HttpProtocol, head: Head, *, old: bool) -> None:
        self.head = head
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
        charged = self._announced()
        if charged > limit:
            raise _too_large(limit)
        if charge is not None and charged:
            charge(charged)
        if self.complete:
            if self._size > limit:
                raise _too_large(limit)
            if charge is not None and self._size > charged:
                charge(self._size - charged)
        else:
            if self.gone.done():
                raise ClientGone
            self._continue()
            try:
                async with asyncio.timeout(deadline):
                    await self._rest(limit, charged, charge)
            except TimeoutError:
                raise InvalidRequest(
                    f"the request body did not arrive within {deadline:g} s", reason="BODY_TIMEOUT"
                ) from None
        if self._size > _MAX_UNREAD:
            # Paused while nobody had asked; a client's leaving is seen only by reading.
            self._connection.resume_reading()
        parts, self._body = self._body, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _rest(self, limit: int, charged: int, charge: Callable[[int], None] | None) -> None:
        connection = self._connection
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
        for name, value in self.head.headers:
            if name == b"content-length":
                return int(value)
        return 0

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
        self.committed = True
        parts: list[bytes] = []
        length = -1
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            parts += (name, b": ", value, b"\r\n")
        block = b"".join(parts)
        lines = len(headers)
        if block.count(b"\n") != lines or block.count(b"\r") != lines or b"\0" in block:
            raise ValueError("a header holds a line break or NUL")
        head = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        if length >= 0:
            self._remaining = length
        elif status in _NO_BODY or self._without_body:
            self._without_body = True
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
        self._head = b"%b%b\r\n" % (head, block)
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
