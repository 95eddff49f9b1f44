"""HTTP/1 on the client port, byte by byte: how answers end or are cut, and what is no request."""

import asyncio
import contextlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
        assert (await read_until(sock, b"\r\n\r\n")).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"y" * 100_000),
        (POST % 0).replace(b"host: x", b"host: x\r\nx-a: " + b"y" * 100_000),
    ],
    ids=["target", "header"],
)
async def test_large_head_in_one_piece_is_refused(port: Port, head: bytes) -> None:
    with await port.raw() as sock:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await send(sock, head)
        assert (await read_until(sock, b"\r\n\r\n")).startswith(b"HTTP/1.1 431")
    assert not port.pipeline.seen


async def test_head_of_the_usual_limits_and_a_large_body_in_one_piece_pass(port: Port) -> None:
    """What is read beside the head does not count for it."""
    large = b'{"model":"m","pad":"%b"}' % (b"y" * 200_000)
    head = (POST % len(large)).replace(b"host: x", b"host: x\r\nx-a: " + b"y" * 60_000)
    with await port.raw() as sock:
        await send(sock, head + large)
        assert b"openai chat m False" in await read_until(sock, b"False")


async def test_unknown_path_is_told_back_in_brief(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"GET /%b HTTP/1.0\r\n\r\n" % (b"y" * 50_000))
        data = await read_all(sock)
    assert data.startswith(b"HTTP/1.1 404")
    assert len(data) < 1000


HOST = b"host: x\r\n"


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        (b"", b"1.1", b"400"),
        (HOST * 2, b"1.1", b"400"),
        (b"host: x\r\nHost: y\r\n", b"1.1", b"400"),
        (HOST * 2, b"1.0", b"400"),
        (b"", b"1.0", b"200"),
        (b"host:\r\n", b"1.1", b"200"),
    ],
)
async def test_request_has_one_host(
    port: Port, hosts: bytes, version: bytes, status: bytes
) -> None:
    request = (POST % len(BODY)).replace(HOST, hosts).replace(b"HTTP/1.1", b"HTTP/" + version)
    with await port.raw() as sock:
        await send(sock, request + BODY)
        answer = await read_until(sock, b"\r\n\r\n")
    assert answer[9:12] == status


@pytest.mark.parametrize(
    "coding", [b"gzip, chunked", b"gzip\r\ntransfer-encoding: chunked", b"chunked, chunked"]
)
async def test_coding_that_is_not_undone_is_refused(port: Port, coding: bytes) -> None:
    """The body would be taken for what it is not."""
    with await port.raw() as sock:
        await send(sock, CHUNKED.replace(b"chunked", coding) + b"d\r\n" + BODY + b"\r\n0\r\n\r\n")
        answer = await read_until(sock, b"\r\n\r\n")
    assert answer[9:12] in {b"501", b"400"}
    if port.pipeline.seen:
        await asyncio.wait_for(port.pipeline.over.wait(), 30)
        assert port.pipeline.gone, "nothing of the body was taken"


async def test_chunked_in_any_case_is_understood(port: Port) -> None:
    with await port.raw() as sock:
        await send(
            sock, CHUNKED.replace(b"chunked", b"Chunked") + b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
        )
        assert b"openai chat m False" in await read_until(sock, b"False")


@only(Connections)
async def test_objection_waits_for_the_answer_before_it(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY + (POST % 0).replace(HOST, HOST * 2))
        data = await read_all(sock)
    assert data.startswith(b"HTTP/1.1 200")
    assert len(port.pipeline.seen) == 1


async def test_answers_say_what_time_it_is(port: Port) -> None:
    """Answers of the pipeline, and what is refused before it (RFC 9110, section 6.6.1)."""
    for request in (POST % len(BODY) + BODY, b"no HTTP\r\n\r\n"):
        with await port.raw() as sock:
            await send(sock, request)
            head = await read_until(sock, b"\r\n\r\n")
        (line,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"date: ")]
        then = parsedate_to_datetime(line[6:].decode())
        assert abs((datetime.now(UTC) - then).total_seconds()) < 60


async def test_date_goes_on(port: Port) -> None:
    with await port.raw() as sock:
        dates: set[bytes] = set()
        while len(dates) < 2:
            await send(sock, POST % len(BODY) + BODY)
            head = await read_until(sock, b"False")
            dates.add(head[head.index(b"date: ") :].split(b"\r\n")[0])


async def test_answer_without_content_has_no_length(port: Port) -> None:
    async def run(routed: RoutedRequest) -> None:
        await body.read(routed.exchange, limit=1000, deadline=60)
        await routed.exchange.send_head(204, [(b"content-length", b"0"), (b"x-a", b"b")])
        await routed.exchange.finish()

    port.pipeline.run_one = run
    with await port.raw() as sock:
        await send(sock, POST % len(BODY) + BODY)
        head = await read_until(sock, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204")
        assert b"x-a: b" in head
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
        port.pipeline.run_one = port.pipeline.echo
        await send(sock, POST % len(BODY) + BODY)
        assert (await read_until(sock, b"False")).startswith(b"HTTP/1.1 200")


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
