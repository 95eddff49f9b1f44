"""
The adapter of our own: client exchanges straight from httptools' parser, without ASGI between.

It promises what the ASGI adapter promises (asgi.py; one test suite runs against both) for less: no
message dictionaries, no event per request, no header checked twice. HTTP/1.1 with keep-alive, pipelining,
chunked bodies both ways, `Expect: 100-continue`; HTTP/1.0 answers end with the connection.
Upgrades are ignored, as the standard allows. Not here: one request (http1_exchange.py), listening and
draining (server.py).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

from patchbay_gateway.edge import heads
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.http1_exchange import STATUS_LINES, HttpExchange
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
_HEAD_DEADLINE: Final = 30.0
# Nobody here reads trailers; chunk extensions fall under the same bound.
_MAX_TRAILERS: Final = 8 << 10


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
        self.date = b""
        """The line of a head that says what time it is."""

    def dated(self, date: bytes) -> None:
        """Take the value of `Date` for the answers to come."""
        self.date = b"date: %b\r\n" % date

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
        "_bare",
        "_drain_waiters",
        "_head_bytes",
        "_headers",
        "_hosts",
        "_in_head",
        "_length",
        "_parser",
        "_parsing",
        "_peer",
        "_queue",
        "_read",
        "_read_paused",
        "_refusal",
        "_resuming",
        "_trailers",
        "_url",
        "current",
        "idle_since",
        "keep_alive",
        "loop",
        "lost",
        "shared",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, shared: Connections) -> None:
        self.shared = shared
        self.loop = shared.loop
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._headers: Headers = []
        self._url = b""
        # Of the head under way: how many Hosts it has, and its content-length.
        self._hosts = 0
        self._length = b""
        self._in_head = False
        self._head_bytes = 0
        # Bytes received since the last piece of body, and bytes of whole trailers: the parser keeps a
        # trailer to itself until it is whole.
        self._bare = 0
        self._trailers = 0
        # Bytes of the last read, and why the parser was stopped in the middle of it: a status.
        self._read = 0
        self._refusal = 0
        self._peer = ""
        self._parsing: HttpExchange | None = None
        self._queue: deque[HttpExchange] = deque()
        self._read_paused = False
        self._resuming = False
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
        self.idle_since = self.shared.loop.time()
        # Accepted as the listener closed: its first answer is its last, and says so.
        self.keep_alive = not self.shared.draining
        self.shared.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchanges in this very tick."""
        self.lost = True
        self._parser = None
        shared = self.shared
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
        self._read = len(data)
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or 400)
            return
        if self._parsing is not None and self._bare > _MAX_TRAILERS:
            self._refuse(431)
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > heads.MAX_HEAD:
                self._refuse(431)
            elif self._head_bytes == len(data) and not self.write_paused:
                self.shared.sweeper.watch(self.transport, _HEAD_DEADLINE)

    def pause_writing(self) -> None:
        """The client takes less than we write: watch it, and not the head that it may be sending beside."""
        self.write_paused = True
        self.shared.sweeper.watch(self.transport)

    def resume_writing(self) -> None:
        """The client takes again."""
        self.write_paused = False
        if self._head_bytes:
            self.shared.sweeper.watch(self.transport, _HEAD_DEADLINE)
        else:
            self.shared.sweeper.unwatch(self.transport)
        self._wake_writers()

    # The parser's side

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._resuming:
            return
        self._url = b""
        self._headers = []
        self._hosts = 0
        self._length = b""
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if not self._resuming:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """
        Take a header; a trailer is counted and thrown away, as it must never count as a header.

        Raises:
            ValueError: Too many trailers; the parser stops.
        """
        if self._in_head:
            # Noted here, where it costs a third of looking for them afterwards.
            name = name.lower()
            if name == b"host":
                self._hosts += 1
            elif name == b"content-length":
                self._length = value
            self._headers.append((name, value))
        elif not self._resuming:
            self._trailers += len(name) + len(value)
            if self._trailers > _MAX_TRAILERS:
                self._refusal = 431
                raise ValueError("too many trailers")

    def on_headers_complete(self) -> None:
        """
        Start the request, or queue it behind the one that is being answered.

        Raises:
            ValueError: There is an objection to the head; the parser stops.
        """
        if self._resuming:
            return
        parser = self._parser
        assert parser is not None
        read = self._read + self._head_bytes
        old = parser.get_http_version() == "1.0"
        if read > heads.MAX_HEAD or self._hosts != 1:
            self._refusal = heads.objection(
                self._url, self._headers, self._hosts, old=old, read=read
            )
            if self._refusal:
                raise ValueError("an objection to the head")
        self._in_head = False
        self._bare = self._trailers = 0
        if self._head_bytes:
            self._head_bytes = 0
            if not self.write_paused:
                self.shared.sweeper.unwatch(self.transport)
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
        head = Head(parser.get_method().decode(), path, query, self._headers, self._peer)
        exchange = HttpExchange(self, head, self._length, old=old)
        exchange.keep_alive = not old and parser.should_keep_alive()
        self._parsing = exchange
        if self.current is None:
            self._start(exchange)
        else:
            self._queue.append(exchange)
            self.pause_reading()

    def on_chunk_header(self) -> None:
        """
        Look at the coding of a body that comes in chunks; others have none.

        Raises:
            ValueError: It is more than chunked; the parser stops before anything of it is taken.
        """
        exchange = self._parsing
        if exchange is not None and not heads.only_chunked(exchange.head.headers):
            self._refusal = 501
            raise ValueError("a coding that is not undone")

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._bare = 0
        if self._parsing is not None:
            self._parsing.feed(data)

    def on_message_complete(self) -> None:
        """End the body."""
        if self._parser is not None and self._parser.should_upgrade():
            return  # the parser stops here, before the body
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
        waiter = self.shared.loop.create_future()
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
            self.shared.loop.call_later(_LINGER, self.transport.close)
            return
        if not exchange.keep_alive or not self.keep_alive or self.shared.draining:
            self.transport.close()
            return
        self.idle_since = self.shared.loop.time()
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
            self.shared.sweeper.watch(self.transport, CLOSE_GRACE)
        else:
            self.transport.abort()

    def retire(self) -> None:
        """Drain: let the next answer be the last, and say so in it."""
        self.keep_alive = False

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
        shared = self.shared
        task = shared.loop.create_task(shared.serve(exchange))
        shared.tasks.add(task)
        task.add_done_callback(exchange.task_done)

    def task_over(self, task: asyncio.Task[None]) -> None:
        """Forget a task; a failure of one is a bug that the loop's handler is told of."""
        self.shared.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.shared.loop.call_exception_handler(
                {"message": "serving an exchange failed", "exception": error, "task": task}
            )

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on as if the request had not asked for another protocol (RFC 9110 §7.8): Java's client asks."""
        exchange = self._parsing
        if exchange is None:
            self._refuse(400)
            return
        framing = [
            b"%b: %b\r\n" % pair
            for pair in exchange.head.headers
            if pair[0] in {b"content-length", b"transfer-encoding"}
        ]
        self._parser = httptools.HttpRequestParser(self)
        self._resuming = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._resuming = False
        self.data_received(rest)

    def _stop_parsing(self) -> None:
        self._parser = None
        self.keep_alive = False

    def _refuse(self, status: int) -> None:
        """Answer what is no HTTP, unless an answer is under way: that one ends first."""
        self._stop_parsing()
        if self._in_head:
            self._in_head = False
            self._head_bytes = 0
            if not self.write_paused:
                self.shared.sweeper.unwatch(self.transport)
        exchange, self._parsing = self._parsing, None
        if exchange is not None:
            # A broken body: whoever reads it sees the client as gone.
            answer = exchange is self.current and not exchange.committed
            exchange.connection_lost()
            if not answer or status == 400:
                self.cut()
                return
            self.current = None
            self._write_refusal(status)
            self.shared.loop.call_later(_LINGER, self.transport.close)
        elif self.current is None:
            self._write_refusal(status)
            if status == 431:
                # It is still sending, see _LINGER.
                self.loop.call_later(_LINGER, self.transport.close)
            else:
                self.transport.close()

    def _write_refusal(self, status: int) -> None:
        self.transport.write(
            b"%b%bconnection: close\r\ncontent-length: 0\r\n\r\n"
            % (STATUS_LINES[status], self.shared.date)
        )

    def _wake_writers(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
