"""Our own HTTP/1.1 client against servers that send exactly the bytes that a test says."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gzip
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from patchbay import errors
from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.http1_upstream import Http1Upstream
from patchbay_gateway.executors.proxies import Proxies
from patchbay_gateway.executors.upstream import Call, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers the n-th request with the n-th text; an empty one closes, so does the end of the list."""

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers = list(answers)
        self.close = close
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if self.answers else b""
                writer.write(answer)
                await writer.drain()
                if not answer or self.close:
                    break
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1/x?y=1"
        try:
            yield self
        finally:
            server.close()
            await asyncio.sleep(0.01)


@pytest.fixture
async def upstream() -> AsyncIterator[Http1Upstream]:
    made = Http1Upstream(Proxies({}), AiohttpUpstream(Proxies({})))
    yield made
    await made.aclose()
    assert not made._all


async def until(condition: Callable[[], bool]) -> None:
    """The client has no hook to wait on: its pool changes inside of the loop's callbacks."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


async def get(
    upstream: Http1Upstream, url: str, method: str = "POST", body: bytes = b"{}", **values: float
) -> tuple[int, bytes]:
    reply = await upstream.send(Call(method, url, [(b"x-a", b"1")], body, **values))  # type: ignore[arg-type]
    try:
        return reply.status, await read_all(reply)
    finally:
        reply.close()


async def test_request_bytes_are_exact(upstream: Http1Upstream) -> None:
    async with Server(OK).running() as server:
        assert await get(upstream, server.url) == (200, b"ok")
        host = server.url.split("/")[2].encode()
        assert server.requests == [
            b"POST /v1/x?y=1 HTTP/1.1\r\nhost: " + host + b"\r\nx-a: 1\r\n"
            b"content-length: 2\r\n\r\n{}"
        ]


async def test_fresh_call_takes_no_connection_that_was_kept(upstream: Http1Upstream) -> None:
    async with Server(OK, OK, OK).running() as server:
        await get(upstream, server.url)
        await get(upstream, server.url)
        assert server.connections == 1
        await get(upstream, server.url, fresh=True)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "body", "connections"),
    [
        (OK, b"ok", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok", 1),
        (b"HTTP/1.1 204 No\r\n\r\n", b"", 1),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            b"ok",
            1,
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", 2),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", 2),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"%x\r\n" % len(gzip.compress(b"ok" * 50))
            + gzip.compress(b"ok" * 50)
            + b"\r\n0\r\n\r\n",
            b"ok" * 50,
            1,
        ),
    ],
    ids=["length", "continue", "no-content", "chunked", "close", "http10", "gzip"],
)
async def test_answer_forms(
    upstream: Http1Upstream, answer: bytes, body: bytes, connections: int
) -> None:
    async with Server(answer, OK).running() as server:
        _, found = await get(upstream, server.url)
        assert found == body
        assert await get(upstream, server.url) == (200, b"ok")
        assert server.connections == connections


async def test_body_without_length_ends_with_the_connection(upstream: Http1Upstream) -> None:
    async with Server(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True).running() as server:
        assert await get(upstream, server.url) == (200, b"all of it")


async def test_head_does_not_wait_for_the_promised_body(upstream: Http1Upstream) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"
    async with Server(answer).running() as server:
        assert await get(upstream, server.url, "HEAD", b"") == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [b"rubbish\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000],
)
async def test_no_http_is_a_broken_connection(upstream: Http1Upstream, answer: bytes) -> None:
    async with Server(answer).running() as server:
        with pytest.raises(errors.UpstreamError) as caught:
            await get(upstream, server.url)
        assert caught.value.reason == "UPSTREAM_CONNECTION"
        assert caught.value.sent is errors.Sent.UNKNOWN


async def test_idle_connection_closed_by_the_server_is_not_used_again(
    upstream: Http1Upstream,
) -> None:
    async with Server(OK, OK, close=True).running() as server:
        await get(upstream, server.url)
        await until(lambda: not any(upstream._idle.values()))
        assert await get(upstream, server.url) == (200, b"ok")
        assert server.connections == 2


async def test_bytes_that_nobody_asked_for_end_the_connection(upstream: Http1Upstream) -> None:
    async with Server(OK + OK, OK).running() as server:
        assert await get(upstream, server.url) == (200, b"ok")
        await until(lambda: not any(upstream._idle.values()))
        assert await get(upstream, server.url) == (200, b"ok")
        assert server.connections == 2


async def test_decompression_bomb_is_refused(upstream: Http1Upstream) -> None:
    bomb = gzip.compress(b"0" * (64 << 20))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    async with Server(head + bomb).running() as server:
        with pytest.raises(errors.UpstreamError) as caught:
            await get(upstream, server.url)
        assert caught.value.reason in {"UPSTREAM_TRUNCATED", "UPSTREAM_TOO_LARGE"}


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\0"])
async def test_header_with_line_break_never_leaves(upstream: Http1Upstream, value: bytes) -> None:
    async with Server(OK).running() as server:
        with pytest.raises(errors.InvalidRequest):
            await upstream.send(Call("GET", server.url, [(b"x", value)]))
        assert not server.requests


@pytest.mark.parametrize("url", ["ftp://a/", "http://", "http://a b/", "http://a:99999/", "x"])
async def test_unusable_url_refused(upstream: Http1Upstream, url: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        await upstream.send(Call("GET", url, []))


async def test_idle_connections_are_swept() -> None:
    made = Http1Upstream(Proxies({}), AiohttpUpstream(Proxies({})), keepalive=0.05)
    async with Server(OK, OK).running() as server:
        await get(made, server.url)
        assert made._all
        await until(lambda: not made._all)
    await made.aclose()


def _certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and one that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (directory / "server.pem").write_bytes(private + pem)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(directory / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_tls_verified_and_untrusted_is_not_sent(
    upstream: Http1Upstream, tmp_path: Path
) -> None:
    tls, trusting = _certificate(tmp_path)
    async with Server(OK, OK).running(tls) as server:
        made = Http1Upstream(Proxies({}), AiohttpUpstream(Proxies({})), tls=trusting)
        assert await get(made, server.url) == (200, b"ok")
        assert await get(made, server.url) == (200, b"ok")
        await made.aclose()
        with pytest.raises(errors.UpstreamError) as caught:
            await get(upstream, server.url)
        assert caught.value.sent is errors.Sent.NO
        assert server.connections <= 2
