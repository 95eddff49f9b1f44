"""
What stands between a gateway and a provider: TLS before a plain server, and HTTP proxies.

They run in a thread of their own and only move bytes. Not here: certificates (authority.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Coroutine

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


T = TypeVar("T")


class Relays:
    """Servers on free ports of 127.0.0.1."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._servers: list[asyncio.Server] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Close all servers and what runs through them."""

        async def close() -> None:
            for server in self._servers:
                server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def tls(self, context: ssl.SSLContext, port: int) -> int:
        """Return the port of a TLS server before the plain one at *port*."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _join(reader, writer, "127.0.0.1", port)

        return self._serve(handle, context)

    def proxy(self, *, password: str = "") -> Proxy:
        """Return an HTTP proxy; with *password* it asks for user `tests` and that."""
        made = Proxy(password)
        made.port = self._serve(made.handle)
        return made

    def _serve(self, handler: Handler, context: ssl.SSLContext | None = None) -> int:
        async def listen() -> int:
            server = await asyncio.start_server(_quiet(handler), "127.0.0.1", 0, ssl=context)
            self._servers.append(server)
            port: int = server.sockets[0].getsockname()[1]
            return port

        return self._do(listen())

    def _do(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)


class Proxy:
    """CONNECT, and requests with a whole URL; remembers what it was asked."""

    def __init__(self, password: str) -> None:
        self.port = 0
        self.asked: list[str] = []
        """Request lines, in order."""
        self.seen: list[bytes] = []
        """What it could read: heads of requests."""
        self.names: dict[str, int] = {}
        """Names that only it knows → port of 127.0.0.1."""
        self._wanted = base64.b64encode(f"tests:{password}".encode()) if password else b""

    @property
    def url(self) -> str:
        """Without a password."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.partition(b"\r\n")[0].decode()
        self.seen.append(head)
        self.asked.append(line)
        if self._wanted and self._wanted not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        method, target, _ = line.split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _join(reader, writer, host, int(port))
            return
        parts = urlsplit(target)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        first = head.replace(target.encode(), path.encode(), 1)
        name, at = parts.hostname or "", parts.port or 80
        if name in self.names:
            name, at = "127.0.0.1", self.names[name]
        await _join(reader, writer, name, at, first)


def _quiet(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()

    return handle


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    port: int,
    first: bytes = b"",
) -> None:
    there_reader, there_writer = await asyncio.open_connection(host, port)
    there_writer.write(first)

    async def move(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError):
            sink.close()

    await asyncio.gather(move(reader, there_writer), move(there_reader, writer))
