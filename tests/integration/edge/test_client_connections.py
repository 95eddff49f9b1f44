"""Connections of clients on real sockets: who is gone, who takes too little, and how a port drains."""

import asyncio
import socket

import httpx
import pytest
from tests.integration.edge.client_port import (
    BODY,
    POST,
    SSE,
    Port,
    only,
    read_all,
    read_until,
    send,
)

from patchbay_gateway.edge import body
from patchbay_gateway.edge.http1 import Connections
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.server import listen


async def test_keep_alive_serves_many(client: httpx.AsyncClient, port: Port) -> None:
    for _ in range(20):
        assert (await client.post("/v1/messages", content=BODY)).status_code == 200
    assert port.server.connections == 1


async def test_half_a_body_then_gone_ends_the_request(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, POST % 100 + b'{"mod')
        await asyncio.sleep(0)
    await port.pipeline.over.wait()
    assert port.pipeline.gone


@pytest.mark.parametrize("reset", [False, True])
async def test_client_leaving_is_noticed_while_we_wait(port: Port, *, reset: bool) -> None:
    """`gone` is done by FIN and by RST, without anybody reading or writing."""
    waiting = asyncio.Event()

    async def run(routed: RoutedRequest) -> None:
        await body.read(routed.exchange, limit=1000, deadline=60)
        waiting.set()
        await routed.exchange.gone

    port.pipeline.run_one = run
    sock = await port.raw()
    await send(sock, POST % len(BODY) + BODY)
    await waiting.wait()
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    async with asyncio.timeout(30):
        await port.pipeline.over.wait()


async def test_writing_to_a_client_that_left_raises(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        while True:
            await routed.exchange.send(b"data: x\n\n")
            await asyncio.sleep(0)

    port.pipeline.run_one = run
    sock = await port.raw()
    await send(sock, POST % len(BODY) + BODY)
    await read_until(sock, b"data")
    sock.close()
    async with asyncio.timeout(30):
        await port.pipeline.over.wait()
    assert port.pipeline.gone


async def test_client_that_takes_nothing_is_gone(port: Port) -> None:
    """Backpressure holds the writer, then the sweeper ends it."""
    port.stall = 0.4
    sent = 0

    async def run(routed: RoutedRequest) -> None:
        nonlocal sent
        await routed.exchange.send_head(200, list(SSE))
        while True:
            await routed.exchange.send(b"x" * 65536)
            sent += 1

    port.pipeline.run_one = run
    with await port.raw(receive_buffer=4096) as sock:
        await send(sock, POST % len(BODY) + BODY)
        async with asyncio.timeout(30):
            await port.pipeline.over.wait()
    assert port.pipeline.gone
    assert sent * 65536 < 16 << 20


async def test_slow_client_that_takes_something_stays(port: Port) -> None:
    port.stall = 1.5

    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        for _ in range(80):
            await routed.exchange.send(b"x" * 65536)
        await routed.exchange.finish()

    port.pipeline.run_one = run
    loop = asyncio.get_running_loop()
    with await port.raw(receive_buffer=4096) as sock:
        await send(sock, POST % len(BODY) + BODY)
        slow_until = loop.time() + 3.5
        data = 0
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            part = await loop.sock_recv(sock, 65536)
            assert part
            data += len(part)
            tail = (tail + part)[-16:]
            if loop.time() < slow_until:
                await asyncio.sleep(0.02)
    assert not port.pipeline.gone


async def test_drain_finishes_what_runs_and_accepts_no_more(port: Port) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    async def late(routed: RoutedRequest) -> None:
        running.set()
        await go.wait()
        answer = b"late"
        await routed.exchange.send_head(200, [(b"content-length", b"4")])
        await routed.exchange.send(answer)
        await routed.exchange.finish()

    port.pipeline.run_one = late
    number = port.server.port
    with await port.raw() as idle, await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        await running.wait()
        drain = asyncio.create_task(port.server.drain(60))
        assert await read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)
        go.set()
        data = await read_all(sock)
        assert b"connection: close" in data
        assert data.endswith(b"late")
        assert await drain == 0


async def test_request_on_its_way_when_a_drain_begins_is_answered(port: Port) -> None:
    """Its connection looked idle; the client could not know."""
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        await read_until(sock, b"\r\n\r\n")
        drain = asyncio.create_task(port.server.drain(60))
        await asyncio.sleep(0)  # the drain has begun
        await send(sock, POST % len(BODY) + BODY)
        assert b"HTTP/1.1 200" in await read_all(sock)
        assert await drain == 0


async def test_drain_cuts_what_does_not_end(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        await routed.exchange.send(b"data: 1\n\n")
        await routed.exchange.gone

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        await read_until(sock, b"data: 1")
        assert await port.server.drain(0.05) == 1
        assert not (await read_all(sock)).endswith(b"0\r\n\r\n")
    assert port.pipeline.over.is_set()


async def test_two_listeners_share_a_port() -> None:
    first = listen("127.0.0.1", 0, reuse_port=True)
    number = first.getsockname()[1]
    second = listen("127.0.0.1", number, reuse_port=True)
    assert second.getsockname()[1] == number
    first.close()
    second.close()


@pytest.mark.requires("linux")  # TCP_USER_TIMEOUT
async def test_accepted_sockets_inherit_the_user_timeout(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        connection = routed.exchange._connection  # type: ignore[attr-defined]
        sock = connection.transport.get_extra_info("socket")
        value = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        answer = str(value).encode()
        await routed.exchange.send_head(200, [(b"content-length", b"%d" % len(answer))])
        await routed.exchange.send(answer)
        await routed.exchange.finish()

    port.pipeline.run_one = run
    async with httpx.AsyncClient(base_url=port.url, timeout=60, verify=False) as client:
        answer = await client.post("/v1/messages", content=BODY)
    assert answer.text == "60000"


@only(Connections)
async def test_idle_connections_are_closed_after_a_while(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        await read_until(sock, b"False")
        accepted = port.server._accepted
        assert accepted is not None
        accepted.close_idle(0.0)
        assert port.server.connections == 1
        accepted.close_idle(asyncio.get_running_loop().time() + 1)
        assert await read_all(sock) == b""
