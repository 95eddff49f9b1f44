"""A client that misbehaves at will: bytes on a socket, nothing between. Not here: well-behaved ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self._sock = socket.socket()
        self._sock.setblocking(False)
        if receive_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._port = port

    async def connect(self) -> None:
        """Connect."""
        await asyncio.get_running_loop().sock_connect(self._sock, ("127.0.0.1", self._port))

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read(self, size: int = 65536) -> bytes:
        """Return what comes next; empty at the end, also when it was cut."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.get_running_loop().sock_recv(self._sock, size)
        return b""

    async def read_until(self, pattern: bytes) -> bytes:
        """Return everything up to where *pattern* has come."""
        data = b""
        while pattern not in data:
            more = await self.read()
            assert more, f"ended before {pattern!r}: {data[-500:]!r}"
            data += more
        return data

    async def read_all(self) -> bytes:
        """Return everything until the end of the connection."""
        data = b""
        while more := await self.read():
            data += more
        return data

    def reset(self) -> None:
        """Leave with RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        """Leave with FIN."""
        self._sock.close()


def post(path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole POST request that ends its connection."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"host": "127.0.0.1", "content-type": "application/json", "connection": "close"}
    lines = {**head, "content-length": str(len(data)), **headers}
    text = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    return f"POST {path} HTTP/1.1\r\n{text}\r\n".encode() + data
