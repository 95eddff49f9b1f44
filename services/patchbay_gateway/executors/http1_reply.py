"""
One answer of our own HTTP client: what the parser hands over, kept until the executor reads it.

The parser calls the methods `on_...` directly and appends bodies to a list: nothing of Python runs per
chunk. Not here: connections and requests (http1_upstream.py), limits on silence (silence.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay import errors, upstream_headers
from patchbay_gateway.executors import content_coding
from patchbay_gateway.executors.silence import SilenceLimit
from patchbay_gateway.executors.upstream import CONNECTION, TIMEOUT, TRUNCATED

if TYPE_CHECKING:
    import asyncio

    from patchbay.alarms import Alarms
    from patchbay.errors import Headers
    from patchbay_gateway.executors.content_coding import Decoder
    from patchbay_gateway.executors.http1_upstream import Connection
    from patchbay_gateway.executors.upstream import Call

HIGH: Final = 256 << 10
"""Unread bytes of one reply at which its socket is not read any more."""


class Http1Reply:
    """One answer (port)."""

    __slots__ = (
        "_buffer",
        "_connection",
        "_decoder",
        "_first_byte",
        "_idle",
        "_limit",
        "_loop",
        "_paused",
        "_raw",
        "_waiter",
        "broken",
        "complete",
        "has_head",
        "headers",
        "on_body",
        "only_head",
        "parser",
        "status",
        "unread",
        "until_close",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        alarms: Alarms,
        connection: Connection,
        call: Call,
    ) -> None:
        self._loop = loop
        self._connection: Connection | None = connection
        self._idle = call.idle_timeout
        self._first_byte = True
        self._buffer: list[bytes] = []
        self.on_body = self._buffer.append
        """Takes a part of the body (httptools)."""
        self.unread = 0
        """Bytes that came since the last read, framing included."""
        self.parser: Any = None
        self._decoder: Decoder | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._limit = SilenceLimit(loop, alarms, call.first_byte_timeout, self._silent)
        self._raw: Headers = []
        self.headers: Headers = []
        self.status = 0
        self.has_head = False
        self.only_head = call.method == "HEAD"
        self.until_close = False
        self.complete = False
        self.broken = False

    async def head(self) -> None:
        """Wait for the head."""
        while not self.has_head and not self.broken:
            await self._wait()
        if not self.has_head:
            if self._limit.expired:
                raise errors.UpstreamError(
                    504,
                    "the provider did not answer in time",
                    reason=TIMEOUT,
                    sent=errors.Sent.UNKNOWN,
                )
            raise errors.UpstreamError(
                502,
                "the connection broke before the provider answered",
                reason=CONNECTION,
                sent=errors.Sent.UNKNOWN,
            )

    async def read(self) -> bytes:
        """Return what is there, or the next bytes (port)."""
        limit = self._limit
        buffer = self._buffer
        if not buffer and not self.complete and not self.broken:
            if not self._first_byte:
                limit.wait()
            while not buffer and not self.complete and not self.broken:
                self._waiter = self._loop.create_future()
                await self._waiter
        if buffer:
            data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
            buffer.clear()
            self.unread = 0
            if self._paused and self._connection is not None:
                self._paused = False
                self._connection.resume()
            if self._first_byte:
                self._first_byte = False
                limit.change(self._idle)
            limit.heard()
            return data if self._decoder is None else await self._decoded(data, self._decoder)
        limit.stop()
        if self.complete:
            if self._decoder is not None:
                self._decoder.end()
            return b""
        if limit.expired:
            raise errors.UpstreamError(
                504,
                "the provider fell silent in the middle of its answer",
                reason=TIMEOUT,
                sent=errors.Sent.YES,
            )
        raise errors.UpstreamError(
            502,
            "the connection broke in the middle of the provider's answer",
            reason=TRUNCATED,
            sent=errors.Sent.YES,
        )

    def close(self) -> None:
        """Cut the connection unless the answer is whole. Idempotent (port)."""
        self._limit.stop()
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.abort()
            self.parser = None

    def received(self, size: int) -> None:
        """Count what came; stop reading the socket when nobody takes it."""
        self.unread += size
        if self.unread > HIGH and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header (httptools)."""
        self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the head (httptools)."""
        status = self.parser.get_status_code()
        if status < 200:
            self._raw.clear()
            return
        self.has_head = True
        self.status = status
        until_close = status not in {204, 304}
        coding = b""
        for name, value in self._raw:
            lower = name.lower()
            if lower in {b"content-length", b"transfer-encoding"}:
                until_close = False
            elif lower == b"content-encoding":
                coding += b"," + value
        if coding:
            self._decoder = content_coding.decoder(coding)
        self.until_close = until_close
        self.headers = upstream_headers.answer_headers(self._raw)
        if self.only_head:
            # The parser waits for the body that the length promises.
            self._whole(reusable=False)

    def on_message_complete(self) -> None:
        """Take the end (httptools); also that of a 100 Continue and its like."""
        if self.has_head:
            self._whole(reusable=self.parser.should_keep_alive())

    def _whole(self, *, reusable: bool) -> None:
        self.complete = True
        # The parser knows this reply's methods; without this both would wait for the garbage collector.
        self.parser = None
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._paused:
                self._paused = False
                connection.resume()
            connection.answered(reusable=reusable)

    async def _decoded(self, data: bytes, decoder: Decoder) -> bytes:
        """Return *data* decompressed, or the next bytes where that gives none yet."""
        try:
            plain = decoder.decode(data)
            while not plain:
                # Without the decoder `read` returns bytes as they came.
                self._decoder = None
                try:
                    data = await self.read()
                finally:
                    self._decoder = decoder
                if not data:
                    decoder.end()
                    break
                plain = decoder.decode(data)
        except errors.UpstreamError:
            self.broken, self.complete = True, False
            self.close()
            raise
        return plain

    def wake(self) -> None:
        """Let the reader look."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _silent(self) -> None:
        self.broken = True
        self.wake()
        self.close()
