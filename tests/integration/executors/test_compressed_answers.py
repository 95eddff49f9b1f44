"""Both HTTP clients against a provider that compresses though nobody asked: nothing half is ever whole."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from typing import TYPE_CHECKING

import pytest

from patchbay import errors
from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.http1_upstream import Http1Upstream
from patchbay_gateway.executors.proxies import Proxies
from patchbay_gateway.executors.upstream import Call, failure, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.executors.upstream import Upstream

TEXT = b'{"answer":"' + b"word " * 200 + b'"}'
# Without the time of day: data are in the names of tests, which are the same in each worker.
PACKED = gzip.compress(TEXT, mtime=0)
PIECES = gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:])


@pytest.fixture(params=["http1", "aiohttp"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[Upstream]:
    made: Upstream = AiohttpUpstream(Proxies({}))
    if request.param == "http1":
        made = Http1Upstream(Proxies({}), made)
    yield made
    await made.aclose()


@contextlib.asynccontextmanager
async def provider(
    coding: bytes, *pieces: bytes, status: bytes = b"200 OK"
) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Yield the URL, and what lets the second piece go."""
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(
                    b"HTTP/1.1 %b\r\ncontent-encoding: %b\r\ncontent-type: application/json\r\n"
                    b"transfer-encoding: chunked\r\n\r\n" % (status, coding)
                )
                for number, piece in enumerate(pieces):
                    if number:
                        await go.wait()
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", go
    finally:
        server.close()
        await asyncio.sleep(0)


async def get(upstream: Upstream, url: str) -> bytes:
    reply = await upstream.send(Call("GET", url, []))
    try:
        return await read_all(reply)
    finally:
        reply.close()


@pytest.mark.parametrize("packed", [PACKED, PIECES], ids=["whole", "members"])
async def test_compressed_answer_is_decoded(upstream: Upstream, packed: bytes) -> None:
    async with provider(b"gzip", packed) as (url, _):
        assert await get(upstream, url) == TEXT


async def test_piece_that_gives_nothing_yet_waits_for_the_next(upstream: Upstream) -> None:
    async with provider(b"gzip", PACKED[:3], PACKED[3:]) as (url, go):
        reply = await upstream.send(Call("GET", url, []))
        reading = asyncio.ensure_future(read_all(reply))
        await asyncio.sleep(0)
        go.set()
        assert await reading == TEXT
        reply.close()


@pytest.mark.parametrize("packed", [PACKED[:-1], PACKED[:-9], PACKED[:20], PACKED[:3]])
async def test_half_a_compressed_answer_is_truncated(upstream: Upstream, packed: bytes) -> None:
    async with provider(b"gzip", packed) as (url, _):
        with pytest.raises(errors.UpstreamError) as caught:
            await get(upstream, url)
        assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_TRUNCATED")


async def test_coding_that_is_not_understood_is_refused(upstream: Upstream) -> None:
    async with provider(b"br", b"\x0b\x02\x80") as (url, _):
        with pytest.raises(errors.UpstreamError) as caught:
            await get(upstream, url)
        assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_ENCODING")


@pytest.mark.parametrize("coding", [b"br", b"gzip"])
async def test_status_of_a_failure_stands_whatever_its_body_is(
    upstream: Upstream, coding: bytes
) -> None:
    async with provider(coding, b"\x0b\x02\x80", status=b"429 Slow") as (url, _):
        reply = await upstream.send(Call("GET", url, []))
        try:
            assert (await failure(reply)).http_status == 429
        finally:
            reply.close()
