"""
A client port on a real socket over either adapter, before a pipeline that does what a test says.

And the bytes that raw clients send to it and read from it. Not here: tests.
"""

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.edge import body
from patchbay_gateway.edge.auth import Authenticator
from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.models import ModelLists
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.routes.router import Router
from patchbay_gateway.edge.server import Adapter, EdgeServer, listen
from patchbay_gateway.plugins.snapshot import (
    ClientKeyEntry,
    CredentialEntry,
    ModelEntry,
    ProviderEntry,
    Snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SNAPSHOT = Snapshot(
    version=1,
    providers=(
        ProviderEntry(
            name="p",
            plugin="echo",
            models=(ModelEntry("m-1"), ModelEntry("m-2")),
            credentials=(CredentialEntry("c", "x", "none", 1),),
        ),
    ),
    client_keys=(ClientKeyEntry("k", "digest of test-key"),),
)
KEY = {"authorization": "Bearer test-key"}
SSE = [(b"content-type", b"text/event-stream")]


class FakePipeline:
    """Runs what the test says; by default answers with what the body asked for."""

    def __init__(self) -> None:
        self.run_one: Callable[[RoutedRequest], Awaitable[None]] = self.echo
        self.seen: list[RoutedRequest] = []
        self.over = asyncio.Event()
        self.budget = ByteBudget(lambda: 4 << 20)
        self.limit = 1 << 20
        self.deadline = 30.0
        self.gone = False

    async def run(self, routed: RoutedRequest) -> None:
        self.seen.append(routed)
        try:
            await self.run_one(routed)
        except ClientGone:
            self.gone = True
            raise
        finally:
            self.over.set()

    async def echo(self, routed: RoutedRequest) -> None:
        exchange = routed.exchange
        with self.budget.charge() as charge:
            document = await body.read(
                exchange, limit=self.limit, deadline=self.deadline, charge=charge
            )
            model, stream = body.asked(document, routed)
            answer = f"{routed.dialect.name} {routed.operation} {model} {stream}".encode()
            await exchange.send_head(
                200,
                [(b"content-length", b"%d" % len(answer)), (b"content-type", b"text/plain")],
            )
            await exchange.send(answer)
            await exchange.finish()


class Port:
    """A running client port and its fake pipeline."""

    def __init__(self, adapter: Adapter) -> None:
        self.pipeline = FakePipeline()
        self.bugs: list[BaseException] = []
        self.stall = 60.0
        router = Router(
            self.pipeline,
            lists=ModelLists(
                lambda: SNAPSHOT,
                Authenticator(lambda key: (f"digest of {key}",), allow_open=False),
            ),
            dialects=dialects(),
            mint=lambda: "minted",
            on_bug=self.bug,
        )
        self.server = EdgeServer(
            router,
            sockets=[listen("127.0.0.1", 0)],
            write_stall=lambda: self.stall,
            adapter=adapter,
        )

    def bug(self, error: BaseException) -> str:
        self.bugs.append(error)
        return "bug-1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def raw(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
        return sock


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
BODY = b'{"model":"m"}'


async def read_all(sock: socket.socket) -> bytes:
    """Return what arrives until the other side ends or resets."""
    loop, data = asyncio.get_running_loop(), b""
    try:
        while part := await loop.sock_recv(sock, 65536):
            data += part
    except ConnectionResetError:
        pass
    return data


async def read_until(sock: socket.socket, mark: bytes) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while mark not in data:
        part = await loop.sock_recv(sock, 65536)
        assert part, data
        data += part
    return data


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


CHUNKED = POST.replace(b"content-length: %d", b"transfer-encoding: chunked")


def only(adapter: Adapter) -> pytest.MarkDecorator:
    """Run a test with one adapter."""
    return pytest.mark.parametrize("port", [adapter], indirect=True)
