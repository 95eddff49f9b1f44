"""HTTP for plugins against a server that says what a test wrote."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors
from patchbay.host.v1 import http_pb2
from patchbay_gateway.plugins.callbacks.callers import Caller
from patchbay_gateway.plugins.callbacks.http_calls import HttpCalls
from patchbay_gateway.plugins.grants import Grants
from patchbay_gateway.plugins.snapshot import PluginEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Site:
    """A server on 127.0.0.1 that writes down requests and answers in order."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.port = 0
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.requests.append(head + await reader.readexactly(length))
        first, pause, rest = self.answers.pop(0).partition(b"<pause>")
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if pause:
                left = asyncio.ensure_future(reader.read())
                going = asyncio.ensure_future(self.go_on.wait())
                await asyncio.wait({left, going}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    self.left.set()
                left.cancel()
                going.cancel()
                await asyncio.gather(left, going, return_exceptions=True)
                writer.write(rest)
                await writer.drain()
        writer.close()


@pytest.fixture
async def site(no_leaked_tasks: Callable[[], object]) -> AsyncIterator[Site]:  # noqa: ARG001
    found = Site()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()
    await server.wait_closed()


async def resolve(host: str, port: int) -> tuple[str, ...]:  # noqa: ARG001 - a port's
    """Every name of the tests is this machine; one is nobody's."""
    return ("10.1.1.1",) if host == "private.test" else ("127.0.0.1",)


def caller(*hosts: str) -> Caller:
    """Return a plugin that is granted *hosts*."""
    return Caller("p", PluginEntry("p"), Grants(hosts=hosts), None)


CALLS = HttpCalls(resolve=resolve)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: 1\r\n\r\nok"


def asked(site: Site, path: str = "/", host: str = "site.test", **fields: Any) -> Any:
    """Return a request to the site."""
    return http_pb2.HTTPRequest(url=f"http://{host}:{site.port}{path}", **fields)


async def test_request_goes_out_as_asked_and_the_answer_comes_back(site: Site) -> None:
    site.answers = [OK]
    request = asked(site, "/a?b=c", method="post", body=b"hello")
    for name, value in {"X-Told": "yes", "Host": "other", "connection": "upgrade"}.items():
        request.headers[name].values.append(value)
    answer = await CALLS.whole(caller("site.test"), request)
    assert (answer.status_code, answer.body) == (200, b"ok")
    assert list(answer.headers["x-a"].values) == ["1"]
    head, _, body = site.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /a?b=c HTTP/1.1",
        f"host: site.test:{site.port}".encode(),
        b"x-told: yes",
        b"content-length: 5",
        b"connection: close",
    ]
    assert body == b"hello"


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\nuntil the end", 404, b"until the end"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            200,
            b"abc",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK, 200, b"ok"),
    ],
)
async def test_every_way_to_end_a_body_is_understood(
    site: Site, answer: bytes, status: int, body: bytes
) -> None:
    site.answers = [answer]
    found = await CALLS.whole(caller("site.test"), asked(site))
    assert (found.status_code, found.body) == (status, body)


async def test_head_has_no_body(site: Site) -> None:
    site.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"]
    found = await CALLS.whole(caller("site.test"), asked(site, method="HEAD"))
    assert (found.status_code, found.body) == (200, b"")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"nonsense\r\n\r\n"]
)
async def test_answer_that_ends_early_is_a_failed_connection(site: Site, answer: bytes) -> None:
    site.answers = [answer]
    with pytest.raises(errors.Unavailable) as failed:
        await CALLS.whole(caller("site.test"), asked(site))
    assert (failed.value.reason, failed.value.sent) == ("HTTP_CONNECTION", errors.Sent.UNKNOWN)


async def test_nobody_there_means_not_sent(free_port: int) -> None:
    request = http_pb2.HTTPRequest(url=f"http://site.test:{free_port}/")
    with pytest.raises(errors.Unavailable) as failed:
        await CALLS.whole(caller("site.test"), request)
    assert (failed.value.reason, failed.value.sent) == ("HTTP_CONNECTION", errors.Sent.NO)


async def test_stream_begins_before_the_server_is_done_and_comes_in_pieces(site: Site) -> None:
    big = b"x" * 100_000
    site.answers = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100002\r\n\r\n12<pause>" + big,
    ]
    parts = CALLS.stream(caller("site.test"), asked(site))
    head = await anext(parts)
    assert head.head.status_code == 200
    assert (await anext(parts)).payload == b"12"
    site.go_on.set()
    pieces = [part.payload async for part in parts]
    assert b"".join(pieces) == big
    assert max(map(len, pieces)) <= 32 << 10


async def test_stream_that_is_left_closes_the_connection(site: Site) -> None:
    site.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n12<pause>"]
    async with contextlib.aclosing(CALLS.stream(caller("site.test"), asked(site))) as parts:
        await anext(parts)
    async with asyncio.timeout(30):
        await site.left.wait()


def moved(status: int, to: str) -> bytes:
    """Return a redirect."""
    return f"HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("status", "method", "body"), [(303, b"GET", b""), (302, b"GET", b""), (307, b"POST", b"hello")]
)
async def test_redirect_is_followed_as_browsers_do(
    site: Site, status: int, method: bytes, body: bytes
) -> None:
    site.answers = [moved(status, "/next#there"), OK]
    request = asked(site, method="POST", body=b"hello")
    assert (await CALLS.whole(caller("site.test"), request)).body == b"ok"
    assert site.requests[1].startswith(method + b" /next HTTP/1.1\r\n")
    assert site.requests[1].endswith(b"\r\n\r\n" + body)


async def test_redirect_to_another_origin_loses_what_identifies(site: Site) -> None:
    site.answers = [moved(302, f"http://other.test:{site.port}/"), OK]
    request = asked(site)
    request.headers["authorization"].values.append("Bearer test-key")
    request.headers["x-plain"].values.append("1")
    await CALLS.whole(caller("*.test", "site.test", "other.test"), request)
    assert b"authorization: Bearer test-key" in site.requests[0]
    assert b"authorization" not in site.requests[1]
    assert b"x-plain: 1" in site.requests[1]


@pytest.mark.parametrize(
    "to", ["http://foreign.example/", "http://private.test/", "http://127.0.0.1/", "gopher://a/"]
)
async def test_redirect_is_checked_like_the_first_url(site: Site, to: str) -> None:
    site.answers = [moved(302, to)]
    with pytest.raises(errors.PatchbayError) as refused:
        await CALLS.whole(caller("site.test", "*.test"), asked(site))
    assert refused.value.reason in {"HTTP_ADDRESS_REFUSED", "INVALID_URL"}
    assert len(site.requests) == 1


async def test_redirects_without_end_end_with_the_last_one(site: Site) -> None:
    site.answers = [moved(302, "/again")] * 11
    found = await CALLS.whole(caller("site.test"), asked(site))
    assert found.status_code == 302
    assert len(site.requests) == 11


@pytest.mark.parametrize(
    ("name", "value"), [("x", "a\r\nhost: b"), ("x y", "a"), ("", "a"), ("x", "a\x00")]
)
async def test_header_that_is_more_than_one_is_refused(site: Site, name: str, value: str) -> None:
    request = asked(site)
    request.headers[name].values.append(value)
    with pytest.raises(errors.InvalidRequest):
        await CALLS.whole(caller("site.test"), request)
    assert site.requests == []


async def test_plugin_without_hosts_is_told_which_grant_it_lacks(site: Site) -> None:
    with pytest.raises(errors.PermissionDenied, match=r"host_access\.http\.hosts") as refused:
        await CALLS.whole(caller(), asked(site))
    assert refused.value.reason == "HOST_ACCESS_DENIED"
