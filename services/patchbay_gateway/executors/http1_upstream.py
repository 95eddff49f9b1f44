"""
`Upstream` as a Protocol of our own over httptools: HTTP/1.1, pooled, a tenth of a client library's cost.

It does what calls to providers need and no more: no cookies, redirects, retries or expectations. Calls that
go through a proxy are left to another adapter. What arrives is kept in the reply until it is read, at most
256 KiB, then the socket is not read. Not here: the answer (http1_reply.py), proxies (proxies.py).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import httptools

from patchbay import errors
from patchbay.alarms import Alarms
from patchbay_gateway.executors.http1_reply import Http1Reply
from patchbay_gateway.executors.upstream import CONNECTION

if TYPE_CHECKING:
    from patchbay.errors import Headers
    from patchbay_gateway.executors.proxies import Proxies
    from patchbay_gateway.executors.upstream import Call, Reply, Upstream

_MAX_HEAD = 256 << 10
_TARGETS = 1024
_JOINED = 64 << 10
# Idle connections per origin that are worth keeping for as long as the provider lets us.
_RESERVE = 8
# What a peak left beyond the reserve is kept for seconds only: each such connection pins memory.
_SURPLUS_KEEPALIVE = 5.0
_URL = re.compile(r"[!-~]+")
_BREAKS = re.compile(rb"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a URL leads: parsed once."""

    key: tuple[str, str, int]
    """Scheme, host, port: connections of one key are alike."""
    line: bytes
    """Path and query, version, host header."""


class Http1Upstream:
    """
    The adapter. Make it inside a running loop.

    Args:
        proxies: Says which calls go through a proxy.
        proxied: Makes those.
        connect_timeout: Seconds for DNS, TCP and TLS.
        keepalive: Seconds that an idle connection is kept.
        max_idle: Idle connections kept per origin; what a peak leaves beyond them is closed at once.
        tls: How to verify providers; default: the system's authorities.
    """

    def __init__(
        self,
        proxies: Proxies,
        proxied: Upstream,
        *,
        connect_timeout: float = 15.0,
        keepalive: float = 55.0,
        max_idle: int = 128,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._proxies = proxies
        self._proxied = proxied
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._max_idle = max_idle
        self._sweep_every = min(keepalive, _SURPLUS_KEEPALIVE)
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms(self._loop)
        self._targets: dict[str, _Target] = {}
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._all: set[Connection] = set()
        self._tls = tls
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, call: Call) -> Reply:
        """Send and wait for the head (port)."""
        if self._proxies.choose(call.url, call.proxy_url) is not None:
            return await self._proxied.send(call)
        target = self._targets.get(call.url) or self._target(call.url)
        request = _request(call, target)
        connection = None if call.fresh else self._pooled(target.key)
        connection = connection or await self._connect(target.key)
        reply = Http1Reply(self._loop, self._alarms, connection, call)
        connection.send(reply, request, call.body)
        try:
            await reply.head()
        except BaseException:
            reply.close()
            raise
        return reply

    async def aclose(self) -> None:
        """Cut every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.abort()
        await self._proxied.aclose()
        await asyncio.sleep(0)

    def _pooled(self, key: tuple[str, str, int]) -> Connection | None:
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.usable():
                return connection
        return None

    async def _connect(self, key: tuple[str, str, int]) -> Connection:
        scheme, host, port = key
        context = None
        if scheme == "https":
            context = self._tls = self._tls or _tls_context()
        try:
            async with asyncio.timeout(self._connect_timeout):
                found = await self._loop.getaddrinfo(host, port, type=1)
                # IPv6 that leads nowhere must not cost the whole timeout (RFC 8305).
                socket = await aiohappyeyeballs.start_connection(
                    found, happy_eyeballs_delay=0.25, loop=self._loop
                )
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, key),
                    sock=socket,
                    ssl=context,
                    server_hostname=host if context else None,
                )
        except (OSError, TimeoutError) as e:
            # No addresses in texts that may reach a client.
            raise errors.UpstreamError(
                502,
                f"no connection to the provider ({type(e).__name__})",
                reason=CONNECTION,
                sent=errors.Sent.NO,
            ) from e
        return connection

    def release(self, connection: Connection) -> None:
        """Take back a connection whose answer is whole."""
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= self._max_idle:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._sweep_every, self._sweep)

    def made(self, connection: Connection) -> None:
        """A connection was made."""
        self._all.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self._all.discard(connection)
        idle = self._idle.get(connection.key)
        if idle and connection in idle:
            idle.remove(connection)

    def _sweep(self) -> None:
        now = self._loop.time()
        oldest, surplus_oldest = now - self._keepalive, now - _SURPLUS_KEEPALIVE
        for key, idle in list(self._idle.items()):
            # The newest are at the end and are used first, so the old ones at the front are the surplus.
            surplus = idle[:-_RESERVE]
            for connection in [
                *(c for c in surplus if c.idle_since <= surplus_oldest),
                *(c for c in idle[-_RESERVE:] if c.idle_since <= oldest),
            ]:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[key]
        self._sweeper = None
        if self._idle:
            self._sweeper = self._loop.call_later(self._sweep_every, self._sweep)

    def _target(self, url: str) -> _Target:
        if len(self._targets) >= _TARGETS:
            self._targets.clear()
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            if not parts.hostname or not _URL.fullmatch(url):
                raise ValueError(url)  # noqa: TRY301 - one way to refuse
        except (ValueError, KeyError) as e:
            raise errors.InvalidRequest(
                "the provider's URL cannot be used", reason="INVALID_URL", sent=errors.Sent.NO
            ) from e
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        found = self._targets[url] = _Target(
            (parts.scheme, parts.hostname, port),
            f" {path} HTTP/1.1\r\nhost: {host}\r\n".encode("ascii"),
        )
        return found


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _request(call: Call, target: _Target) -> bytes:
    headers, body = call.headers, call.body
    parts: list[bytes] = []
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    block = b"".join(parts)
    lines = len(headers)
    # One look at all of them: nearly never is one to be named.
    if block.count(b"\n") != lines or block.count(b"\r") != lines or block.find(b"\0") >= 0:
        raise _line_break(headers)
    length = b""
    if body or call.method not in {"GET", "HEAD"}:
        length = b"content-length: %d\r\n" % len(body)
    sent = body if len(body) <= _JOINED else b""
    method = call.method.encode("ascii")
    return b"%b%b%b%b\r\n%b" % (method, target.line, block, length, sent)


def _line_break(headers: Headers) -> errors.InvalidRequest:
    found = next(n for n, value in headers if _BREAKS.search(n) or _BREAKS.search(value))
    return errors.InvalidRequest(
        f"the header {found.decode('latin-1')} has a line break in it",
        reason="INVALID_HEADER",
        sent=errors.Sent.NO,
    )


class Connection(asyncio.Protocol):
    """One connection, one answer at a time."""

    __slots__ = ("_owner", "_parser", "_reply", "_transport", "idle_since", "key")

    def __init__(self, owner: Http1Upstream, key: tuple[str, str, int]) -> None:
        self._owner = owner
        self.key = key
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._reply: Http1Reply | None = None
        self._parser: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.made(self)

    def usable(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, reply: Http1Reply, request: bytes, body: bytes) -> None:
        """Write a request; its answer goes to *reply*."""
        if self._transport is None:
            reply.broken = True
            return
        self._reply = reply
        # The parser calls the reply itself: one hop less for each chunk.
        self._parser = reply.parser = httptools.HttpResponseParser(reply)
        self._transport.write(request)
        if len(body) > _JOINED:
            self._transport.write(body)

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Do not read the socket."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read the socket again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse, then wake the reader once for all that came (asyncio)."""
        reply = self._reply
        if reply is None:
            # Nobody asked: not a server to talk on with.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._fail(reply)
        reply.received(len(data))
        if not reply.has_head and reply.unread > _MAX_HEAD:
            self._fail(reply)
        reply.wake()

    def _fail(self, reply: Http1Reply) -> None:
        reply.broken = True
        self._reply = None
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader (asyncio)."""
        self._transport = None
        self._owner.lost(self)
        reply, self._reply = self._reply, None
        if reply is not None:
            # A body without a length ends with the connection.
            if exc is None and reply.has_head and reply.until_close:
                reply.complete = True
            else:
                reply.broken = True
            reply.wake()

    def answered(self, *, reusable: bool) -> None:
        """The answer is whole: back to the pool, or close."""
        self._reply = self._parser = None
        transport = self._transport
        if transport is None:
            return
        # An answer that came before the whole request was written leaves the connection unusable.
        if reusable and not transport.get_write_buffer_size():
            self._owner.release(self)
        else:
            transport.close()
