"""
One HTTP/1.1 exchange with one pinned address: connect, write, read the answer as it comes.

A connection serves one request: the next may be another plugin's, whose grants lead elsewhere. The server's
name stays the URL's for TLS and `host`, whatever the address. Bodies are passed on as sent, content codings
untouched. Not here: which address may be called (addresses.py), redirects (http_calls.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import httptools

from patchbay import errors
from patchbay_gateway.plugins.callbacks.addresses import CONNECTION

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from patchbay.errors import Headers

PIECE: Final = 32 << 10
"""Largest piece of a body that is read at once (host.v1, HTTPStreamResponse.payload)."""
CONNECT_LIMIT: Final = 10.0
"""Seconds for one address, TLS included."""
HEAD_LIMIT: Final = 120.0
"""Seconds from the request's first byte to the answer's head."""
IDLE_LIMIT: Final = 300.0
"""Seconds between two pieces of a body."""
_LARGEST_HEAD: Final = 256 << 10
_CLOSE_LIMIT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes."""

    tls: bool
    host: str
    """As in the URL, without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """The value of `host`."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"


class Reply:
    """
    One answer: its head is there, its body comes. Close it in every case.

    Iteration raises Unavailable HTTP_CONNECTION when the body ends before its end.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str
    ) -> None:
        self.status = 0
        self.headers: Headers = []
        """Names in lower case."""
        self._reader = reader
        self._writer = writer
        self._bodiless = method == "HEAD"
        self._parser: Any = httptools.HttpResponseParser(self)
        self._has_head = self._complete = False
        self._pieces: list[bytes] = []

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field (httptools)."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the end of a head; an interim one says nothing (httptools)."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = []
            return
        self._has_head = True
        if self._bodiless or self.status in {204, 304}:
            self._complete = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body (httptools)."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Take the end (httptools)."""
        if self._has_head:
            self._complete = True

    # What callers use.

    async def begin(self) -> None:
        """Read the head."""
        seen = 0
        while not self._has_head:
            seen += await self._more()
            if seen > _LARGEST_HEAD and not self._has_head:
                raise broken("the answer's head is too large")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._complete:
                if not self._pieces:
                    return
                continue
            try:
                async with asyncio.timeout(IDLE_LIMIT):
                    await self._more()
            except TimeoutError as error:
                raise broken("the server was silent for too long") from error

    async def _more(self) -> int:
        try:
            data = await self._reader.read(PIECE)
        except OSError as error:
            raise broken("the connection broke") from error
        if not data:
            if self._has_head and self._ends_with_connection():
                self._complete = True
                return 0
            raise broken("the connection ended before the answer did")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                raise broken("the answer is not HTTP") from error
        return len(data)

    def _ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection tells the end of the body (RFC 9112, 6.3)."""
        return not any(n in {b"content-length", b"transfer-encoding"} for n, _ in self.headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        # An abrupt end: what still comes is nobody's, and a TLS farewell would be waited for.
        self._writer.transport.abort()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self._writer.wait_closed()


def broken(text: str, sent: errors.Sent = errors.Sent.UNKNOWN) -> errors.Unavailable:
    """Return the error of a request that failed on its way."""
    return errors.Unavailable(f"the HTTP request failed: {text}", reason=CONNECTION, sent=sent)


async def exchange(
    addresses: Sequence[str],
    target: Target,
    method: str,
    headers: Headers,
    body: bytes,
    context: ssl.SSLContext,
) -> Reply:
    """
    Send one request to the first address that answers and return when the head is there.

    Args:
        addresses: Where, in order of preference.
        target: What.
        method: HTTP method.
        headers: All but `host`, lengths and those of the connection.
        body: May be empty.
        context: For TLS.

    Raises:
        Unavailable: HTTP_CONNECTION.
    """
    reader, writer = await _connect(addresses, target, context)
    reply = Reply(reader, writer, method)
    try:
        async with asyncio.timeout(HEAD_LIMIT):
            writer.write(_head(target, method, headers, body))
            if body:
                writer.write(body)
            await writer.drain()
            await reply.begin()
    except TimeoutError as error:
        await reply.aclose()
        raise broken("no answer came in time") from error
    except OSError as error:
        await reply.aclose()
        raise broken("the connection broke") from error
    except BaseException:
        await reply.aclose()
        raise
    return reply


async def _connect(
    addresses: Sequence[str], target: Target, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    last: OSError | None = None
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                return await asyncio.open_connection(
                    address,
                    target.port,
                    ssl=context if target.tls else None,
                    server_hostname=target.host if target.tls else None,
                    limit=2 * PIECE,
                )
        except OSError as error:  # TimeoutError and failures of TLS among them
            last = error
    why = "no connection in time" if isinstance(last, TimeoutError) else "no connection"
    raise broken(f"{why} to {target.host}", errors.Sent.NO) from last


def _head(target: Target, method: str, headers: Headers, body: bytes) -> bytes:
    lines = [f"{method} {target.path} HTTP/1.1\r\nhost: {target.authority}".encode("ascii")]
    lines += [name + b": " + value for name, value in headers]
    if body or method in {"POST", "PUT", "PATCH"}:
        lines.append(b"content-length: %d" % len(body))
    lines.append(b"connection: close\r\n\r\n")
    return b"\r\n".join(lines)
