"""HTTP/1 on the client port, byte by byte: how answers end or are cut, and what is no request."""

import asyncio
import contextlib

import httpx
import pytest
from tests.integration.edge.client_port import (
    BODY,
    CHUNKED,
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


async def test_expect_100_continue_is_answered(port: Port) -> None:
    with await port.raw() as sock:
        await send(
            sock,
            (POST % len(BODY)).replace(b"host: x", b"host: x\r\nexpect: 100-continue"),
        )
        assert await read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await send(sock, BODY)
        assert b"openai chat m False" in await read_until(sock, b"False")


async def test_finished_stream_has_a_terminating_chunk(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        await routed.exchange.send(b"data: 1\n\n")
        await routed.exchange.finish()

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        assert (await read_until(sock, b"\r\n0\r\n\r\n")).endswith(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")


async def test_aborted_stream_never_looks_finished(port: Port) -> None:
    """What was sent arrives, the terminating chunk does not, and the connection ends."""

    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        for n in range(50):
            await routed.exchange.send(b"data: %d\n\n" % n)
        await routed.exchange.abort()

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        data = await read_all(sock)
    assert b"data: 49\n\n" in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_unfinished_answer_is_cut(port: Port) -> None:
    """A pipeline that forgets to end its answer, or dies in it, must not leave it open or whole."""

    async def forget(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        await routed.exchange.send(b"data: 1\n\n")

    async def die(routed: RoutedRequest) -> None:
        await forget(routed)
        raise ValueError("a bug")

    for run in (forget, die):
        port.pipeline.run_one = run
        with await port.raw() as sock:
            await send(sock, POST % len(BODY) + BODY)
            data = await read_all(sock)
        assert b"data: 1\n\n" in data
        assert not data.endswith(b"0\r\n\r\n")
    assert [str(bug) for bug in port.bugs] == ["a bug"]


async def test_endless_head_is_refused(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"GET / HTTP/1.1\r\n")
        for n in range(20):
            await send(sock, b"x-%d: %s\r\n" % (n, b"y" * 5000))
        assert (await read_all(sock)).startswith(b"HTTP/1.1 431")


async def test_trailers_are_no_headers(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, CHUNKED + b"d\r\n" + BODY + b"\r\n0\r\nx-late: 1\r\n\r\n")
        assert b"openai chat m False" in await read_until(sock, b"False")
        await send(sock, POST % len(BODY) + BODY)
        await read_until(sock, b"False")
    first, second = (dict(seen.exchange.head.headers) for seen in port.pipeline.seen)
    assert b"x-late" not in first | second
    assert second[b"host"] == b"x"


@pytest.mark.parametrize("line", [b"x-late: 0123456789\r\n", b"0123456789"])
async def test_endless_trailers_are_refused(port: Port, line: bytes) -> None:
    """Whether they are many or one that does not end, which the parser would hold."""
    with await port.raw() as sock:
        await send(sock, CHUNKED + b"d\r\n" + BODY + b"\r\n0\r\nx-late: ")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(50):
                await send(sock, line * 2000)
        data = await read_all(sock)
    await port.pipeline.over.wait()
    # The reset of a client that goes on sending may take the answer with it.
    assert data[:12] in {b"HTTP/1.1 431", b""}
    assert port.pipeline.gone
    assert port.bugs == []


async def test_body_that_breaks_ends_the_request(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, CHUNKED + b"d\r\n" + BODY + b"\r\nno length\r\n")
        await read_all(sock)
    await asyncio.wait_for(port.pipeline.over.wait(), 30)
    assert port.pipeline.gone


async def test_pipelined_requests_are_answered_in_order(port: Port) -> None:
    one = b'{"model":"one"}'
    two = b'{"model":"two"}'
    with await port.raw() as sock:
        await send(sock, POST % len(one) + one + POST % len(two) + two)
        data = await read_until(sock, b"two False")
    assert data.index(b"one False") < data.index(b"two False")


async def test_pipelined_request_waits_for_the_stream_before_it(port: Port) -> None:
    go = asyncio.Event()

    async def run(routed: RoutedRequest) -> None:
        await body.read(routed.exchange, limit=1000, deadline=60)
        await routed.exchange.send_head(200, list(SSE))
        await routed.exchange.send(b"begin")
        await go.wait()
        await routed.exchange.send(b"end")
        await routed.exchange.finish()

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, (POST % len(BODY) + BODY) * 2)
        await read_until(sock, b"begin")
        assert len(port.pipeline.seen) == 1
        go.set()
        data = await read_until(sock, b"end\r\n0\r\n\r\nHTTP/1.1 200 OK")
        if b"end" not in data.partition(b"HTTP/1.1 200 OK")[2]:
            await read_until(sock, b"end\r\n0\r\n\r\n")


async def test_many_pipelined_requests_are_all_answered(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, (POST % len(BODY) + BODY) * 200)
        data = b""
        while data.count(b"openai chat m False") < 200:
            data += await asyncio.get_running_loop().sock_recv(sock, 65536)


async def test_garbage_is_400(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"this is not HTTP\r\n\r\n")
        assert (await read_all(sock)).startswith(b"HTTP/1.1 400")


async def test_length_and_chunks_together_are_refused(port: Port) -> None:
    """Two lengths for one body are how requests are smuggled past a proxy."""
    with await port.raw() as sock:
        smuggled = (POST % 5).replace(b"host: x", b"host: x\r\ntransfer-encoding: chunked")
        await send(sock, smuggled + b"0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")
        data = await read_all(sock)
    assert b'"status":"ok"' not in data


@only(Connections)
async def test_upgrade_is_ignored(port: Port) -> None:
    """Java's client asks for h2c with each first request; the body and the next request are read."""
    upgrade = b"host: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk"
    with await port.raw() as sock:
        await send(sock, (POST % len(BODY)).replace(b"host: x", upgrade) + BODY)
        assert b"openai chat m False" in await read_until(sock, b"False")
        await send(sock, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b'"status":"ok"' in await read_until(sock, b"}")
        get = b"GET /healthz HTTP/1.1\r\n" + upgrade + b"\r\n\r\n"
        await send(sock, get)
        assert b'"status":"ok"' in await read_until(sock, b"}")


async def test_absolute_target_is_understood(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"GET http://127.0.0.1:1/healthz?x=1 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b'{"status":"ok"}' in await read_until(sock, b"}")


async def test_old_http_is_answered_and_closed(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"GET /healthz HTTP/1.0\r\n\r\n")
        data = await read_all(sock)
    assert b"connection: close" in data
    assert data.endswith(b'{"status":"ok"}')


@only(Connections)
async def test_old_http_aborted_stream_is_reset(port: Port) -> None:
    """Where the end of the connection is the end of the answer, a cut must be an error."""
    came = asyncio.Event()

    async def run(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, list(SSE))
        await routed.exchange.send(b"data: 1\n\n")
        await came.wait()
        await routed.exchange.abort()

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, (POST % len(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)
        assert b"chunked" not in await read_until(sock, b"data: 1\n\n")
        came.set()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(sock, 10)


@only(Connections)
async def test_short_or_long_answer_is_cut(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await body.read(routed.exchange, limit=1000, deadline=60)
        await routed.exchange.send_head(200, [(b"content-length", b"10")])
        await routed.exchange.send(sizes.pop() * b"x")
        await routed.exchange.finish()

    sizes = [9, 11]
    port.pipeline.run_one = run
    for _ in range(2):
        with await port.raw() as sock:
            await send(sock, POST % len(BODY) + BODY)
            assert (await read_all(sock)).count(b"x") < 10
    assert len(port.bugs) == 2


@only(Connections)
async def test_header_with_a_line_break_never_leaves(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await body.read(routed.exchange, limit=1000, deadline=60)
        await routed.exchange.send_head(200, [(b"x-a", b"b\r\nx-evil: 1")])

    port.pipeline.run_one = run
    async with httpx.AsyncClient(base_url=port.url, timeout=60, verify=False) as client:
        answer = await client.post("/v1/messages", content=BODY)
    assert answer.status_code == 500
    assert "x-evil" not in answer.headers
