"""
The ASGI adapter: client exchanges as uvicorn's httptools protocol serves them.

ASGI alone tells of a client's leaving only to somebody who waits in `receive` and cannot cut a
connection, so `EdgeProtocol` adds both to uvicorn's protocol: it puts itself into the scope and calls the
exchange from `connection_lost`, without a task. Not here: listening and draining (server.py), what an
exchange is for (routes/).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge import heads
from patchbay_gateway.edge.exchange import ClientGone, Head
from patchbay_gateway.edge.http1_exchange import NO_BODY, STATUS_LINES
from patchbay_gateway.edge.stall import CLOSE_GRACE, KEEP_ALIVE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, MutableMapping

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from patchbay.errors import Headers
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.edge.stall import StallSweeper

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

CONNECTION: Final = "patchbay.connection"
"""Key of the protocol in the scope."""

# A client that is refused in the middle of its body gets so long to finish sending: closing at once would
# reset the connection, and the reset would take the answer with it.
_LINGER: Final = 2.0

_HEAD_DEADLINE: Final = 30.0
# Nobody here reads trailers.
_MAX_TRAILERS: Final = 8 << 10


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which knows the exchange that it carries."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        *,
        shared: AsgiConnections,
        sweeper: StallSweeper,
        closed: Callable[[], None],
    ) -> None:
        super().__init__(config, server_state, {})
        self.shared = shared
        self.exchange: AsgiExchange | None = None
        self._sweeper = sweeper
        self._closed = closed
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        # Bytes received since the last piece of body, and bytes of whole trailers: the parser keeps a
        # trailer to itself until it is whole.
        self._bare = 0
        self._trailers = 0
        self._read = 0
        self._refusal = 400

    def data_received(self, data: bytes) -> None:
        """Bound trailers, and the size and the time of a head that does not come in one piece."""
        self._read = len(data)
        self._bare += len(data)
        super().data_received(data)
        if self._trailers > _MAX_TRAILERS or (self._in_body and self._bare > _MAX_TRAILERS):
            if self.cycle is None or not self.cycle.response_started:
                self._write_refusal(431)
            self.cut()
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > heads.MAX_HEAD:
                self._write_refusal(431)
                self.cut()
            elif self._head_bytes == len(data):
                self._sweeper.watch(self.transport, _HEAD_DEADLINE)

    def on_message_begin(self) -> None:
        """Make the connection findable from the scope."""
        super().on_message_begin()
        self._in_head = True
        cast("Scope", self.scope)[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is counted and thrown away."""
        if self._in_head:
            super().on_header(name, value)
        else:
            self._trailers += len(name) + len(value)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bare = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self._in_body = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """
        Start the request.

        Raises:
            ValueError: There is an objection to the head; the parser stops.
        """
        refusal = heads.objection(
            self.url,
            self.headers,
            sum(name == b"host" for name, _ in self.headers),
            old=self.parser.get_http_version() == "1.0",
            read=self._read + self._head_bytes,
        )
        if not heads.only_chunked(self.headers):
            refusal = refusal or 501
        if refusal:
            self._refusal = refusal
            raise ValueError("an objection to the head")
        self._in_body = True
        self._bare = self._trailers = 0
        super().on_headers_complete()
        self._in_head = False
        if self._head_bytes:
            self._head_bytes = 0
            self._sweeper.unwatch(self.transport)

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser stopped at, unless an answer is under way: a second head would break it."""
        if self.cycle is None or self.cycle.response_complete:
            self._write_refusal(self._refusal)
        self.transport.close()

    def _write_refusal(self, status: int) -> None:
        self.transport.write(
            b"%bdate: %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            % (STATUS_LINES[status], self.shared.date)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange in this very tick."""
        super().connection_lost(exc)
        # An EOF that comes as an error leaves uvicorn's keep-alive timer armed.
        self._unset_keepalive_if_required()
        self._sweeper.unwatch(self.transport)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.connection_lost()
        self._closed()

    def pause_writing(self) -> None:
        """Watch the client from here on."""
        super().pause_writing()
        self._sweeper.watch(self.transport)

    def resume_writing(self) -> None:
        """The client takes again."""
        super().resume_writing()
        self._sweeper.unwatch(self.transport)

    def cut(self) -> None:
        """
        End the connection without a regular end of the answer.

        What was sent before still leaves, but no terminating chunk follows it.
        """
        transport = self.transport
        if transport.get_write_buffer_size():
            transport.close()
            self._sweeper.watch(transport, CLOSE_GRACE)
        else:
            transport.abort()

    def retire(self) -> None:
        """Nothing: uvicorn says that an answer is the last only once it is shut down."""


class AsgiExchange:
    """One request on an `EdgeProtocol`. See `Exchange` for what the methods promise."""

    __slots__ = (
        "_body_read",
        "_connection",
        "_cycle",
        "_lost",
        "_receive",
        "_send",
        "_without_body",
        "committed",
        "gone",
        "head",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope["client"]
        self.head = Head(
            scope["method"],
            scope["path"],
            scope["query_string"],
            scope["headers"],
            client[0] if client else "",
            scope["scheme"],
        )
        self.committed = False
        self._receive = receive
        self._send = send
        self._body_read = False
        self._without_body = False
        connection: EdgeProtocol = scope[CONNECTION]
        self._connection = connection
        # uvicorn hands out bound methods of its cycle; the protocol's own `cycle` is the newest request,
        # which under pipelining is another one.
        self._cycle: RequestResponseCycle = receive.__self__  # type: ignore[attr-defined]
        self.gone: asyncio.Future[None] = connection.loop.create_future()
        self._lost = connection.transport.is_closing()
        if self._lost:
            self.gone.set_result(None)
        else:
            connection.exchange = self

    def connection_lost(self) -> None:
        """Note that the client is away; called by the protocol."""
        self._lost = True
        if not self.gone.done():
            self.gone.set_result(None)

    async def body(
        self, limit: int, deadline: float, charge: Callable[[int], None] | None = None
    ) -> bytes:
        """Read to the end of the body."""
        # What is only announced takes no memory, so it is not charged.
        if self._announced() > limit:
            raise _too_large(limit)
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        data: bytes = message["body"]
        if not message["more_body"]:
            if len(data) > limit:
                raise _too_large(limit)
            if charge is not None and data:
                charge(len(data))
            self._body_read = True
            return data
        try:
            async with asyncio.timeout(deadline):
                return await self._rest(data, limit, charge)
        except TimeoutError:
            raise InvalidRequest(
                f"the request body did not arrive within {deadline:g} s", reason="BODY_TIMEOUT"
            ) from None

    async def _rest(self, first: bytes, limit: int, charge: Callable[[int], None] | None) -> bytes:
        parts, size, charged, more = [first], len(first), 0, True
        while True:
            if size > limit:
                raise _too_large(limit)
            if charge is not None and size > charged:
                charge(size - charged)
                charged = size
            if not more:
                self._body_read = True
                return b"".join(parts)
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            parts.append(message["body"])
            size += len(message["body"])
            more = message["more_body"]

    def _announced(self) -> int:
        # The parser has refused what is no number already.
        for name, value in self.head.headers:
            if name == b"content-length":
                return int(value)
        return 0

    async def send_head(self, status: int, headers: Headers) -> None:
        """Send status and headers; with a body half read the connection is not used again."""
        if self._lost:
            raise ClientGone
        self.committed = True
        headers = [*headers, (b"date", self._connection.shared.date)]
        if status in NO_BODY:
            self._without_body = True
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        if not self._body_read and self._cycle.more_body:
            headers = [*headers, (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the transport's buffer is above its high water mark."""
        if self._lost:
            raise ClientGone
        if self._without_body:
            return
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self._connection.flow.write_paused:
            await self._connection.flow.drain()
        if self._lost:
            raise ClientGone

    async def finish(self) -> None:
        """End the answer."""
        if self._lost:
            raise ClientGone
        if not self._body_read and self._cycle.more_body:
            await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._release()
        if self._lost:
            raise ClientGone

    async def abort(self) -> None:
        """Cut the connection."""
        self._release()
        if not self._lost:
            self._lost = True
            # Else uvicorn would complain of the missing end and write one for a 500.
            self._cycle.disconnected = True
            self._connection.cut()

    def _release(self) -> None:
        if self._connection.exchange is self:
            self._connection.exchange = None

    async def _linger(self) -> None:
        # The answer has a content-length here, so the client knows that it is whole.
        try:
            async with asyncio.timeout(_LINGER):
                while True:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message["more_body"]:
                        return
        except TimeoutError:
            return


class EdgeApp:
    """
    The ASGI callable.

    Args:
        serve: Answers an exchange; raises nothing but cancellation.
    """

    def __init__(self, serve: Callable[[Exchange], Awaitable[None]]) -> None:
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; an answer that was begun and not ended is cut."""
        exchange = AsgiExchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except asyncio.CancelledError:
            # This is the root of the task: it ends here, and uvicorn would only log a trace and write a 500.
            await exchange.abort()
        finally:
            connection: EdgeProtocol = scope[CONNECTION]
            if connection.exchange is exchange:
                await exchange.abort()


class AsgiConnections:
    """uvicorn's connections, as a server wants them (server.py)."""

    def __init__(
        self,
        serve: Callable[[Exchange], Coroutine[Any, Any, None]],
        sweeper: StallSweeper,
        closed: Callable[[], None],
    ) -> None:
        self._sweeper = sweeper
        self._closed = closed
        self._state = ServerState()
        self._config = Config(
            EdgeApp(serve),
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._config.load()
        self.draining = False
        self.date = b""
        """The value of `Date`."""

    def dated(self, date: bytes) -> None:
        """Take the value of `Date` for the answers to come."""
        self.date = date

    @property
    def open(self) -> set[Any]:
        """Open connections."""
        return self._state.connections

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Requests being served."""
        return self._state.tasks

    def protocol(self) -> EdgeProtocol:
        """Return the protocol of a new connection."""
        return EdgeProtocol(
            self._config, self._state, shared=self, sweeper=self._sweeper, closed=self._closed
        )

    def close_idle(self, since: float) -> None:
        """Nothing: uvicorn keeps a timer per connection."""


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"the request body is larger than {limit} bytes", reason="BODY_TOO_LARGE")
