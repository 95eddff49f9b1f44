"""The client port on real sockets: what leaves, what is cut, who is gone, how it drains."""

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from patchbay_gateway.edge import body
from patchbay_gateway.edge.asgi import AsgiConnections
from patchbay_gateway.edge.auth import Authenticator
from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.http1 import Connections
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


@pytest.fixture(params=[Connections, AsgiConnections])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[Port]:
    running = Port(request.param)
    async with running.server:
        yield running


@pytest.fixture
async def client(port: Port) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=port.url, timeout=60, verify=False) as made:
        yield made


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


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", "openai chat m False"),
        ("/openai/v1/chat/completions", "openai chat m False"),
        ("/v1/completions", "openai completions m False"),
        ("/v1/embeddings", "openai embeddings m False"),
        ("/v1/responses", "openai-response chat m False"),
        ("/v1/messages", "claude chat m False"),
        ("/anthropic/v1/messages/count_tokens", "claude count_tokens m False"),
        ("/v1beta/models/g-1:generateContent", "gemini chat g-1 False"),
        ("/genai/v1beta/models/a/g:8b:streamGenerateContent?alt=sse", "gemini chat a/g:8b True"),
        ("/v1beta/models/g%2D1:countTokens", "gemini count_tokens g-1 False"),
    ],
)
async def test_post_reaches_the_pipeline(
    client: httpx.AsyncClient, path: str, expected: str
) -> None:
    answer = await client.post(path, content=BODY)
    assert (answer.status_code, answer.text) == (200, expected)
    assert "server" not in answer.headers


async def test_health_and_head(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    head = await client.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


async def test_lists_are_in_the_clients_shape(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 401
    openai = (await client.get("/v1/models", headers=KEY)).json()
    assert [m["id"] for m in openai["data"]] == ["m-1", "m-2"]
    claude = await client.get("/v1/models", headers={**KEY, "anthropic-version": "2023-06-01"})
    assert claude.json()["first_id"] == "m-1"
    agent = await client.get("/v1/models", headers={**KEY, "user-agent": "claude-cli/2.0"})
    assert agent.json()["has_more"] is False
    gemini = await client.get("/v1beta/models?key=test-key")
    assert gemini.json()["models"][0]["name"] == "models/m-1"
    one = await client.get("/v1beta/models/m-2", headers=KEY)
    assert one.json()["name"] == "models/m-2"
    assert (await client.get("/v1/models/m-2", headers=KEY)).json()["id"] == "m-2"
    missing = await client.get("/v1/models/m-3", headers=KEY)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "where"),
    [
        ("GET", "/nothing", 404, ("error", "type")),
        ("POST", "/v1/messages/nothing", 404, ("error", "type")),
        ("POST", "/v1beta/models/g:embedContent", 404, ("error", "status")),
        ("GET", "/v1/chat/completions", 405, ("error", "code")),
        ("OPTIONS", "/v1/chat/completions", 405, ("error", "code")),
        ("DELETE", "/v1/models", 405, ("error", "code")),
    ],
)
async def test_unknown_routes_and_methods(
    client: httpx.AsyncClient, method: str, path: str, status: int, where: tuple[str, str]
) -> None:
    answer = await client.request(method, path, headers={"origin": "http://evil.example"})
    assert answer.status_code == status
    assert answer.json()[where[0]][where[1]]
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert ("allow" in answer.headers) == (status == 405)
    assert answer.headers["x-request-id"] == "minted"


async def test_request_id_sane_is_echoed_other_is_replaced(
    client: httpx.AsyncClient, port: Port
) -> None:
    answer = await client.get("/nothing", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    for bad in ("x" * 129, "a\tb"):
        answer = await client.get("/nothing", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] == "minted"
    await client.post("/v1/messages", content=BODY, headers={"x-request-id": "mine-2"})
    assert port.pipeline.seen[-1].client_request_id == "mine-2"


async def test_keep_alive_serves_many(client: httpx.AsyncClient, port: Port) -> None:
    for _ in range(20):
        assert (await client.post("/v1/messages", content=BODY)).status_code == 200
    assert port.server.connections == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_answer_that_has_no_content_leaves_none_for_the_next(
    client: httpx.AsyncClient, port: Port, status: int
) -> None:
    async def without(routed: RoutedRequest) -> None:
        await routed.exchange.body(1 << 20, 30.0)
        await routed.exchange.send_head(status, [(b"content-length", b"7")])
        await routed.exchange.send(b"stop it")
        await routed.exchange.finish()

    port.pipeline.run_one = without
    answer = await client.post("/v1/messages", content=BODY)
    assert (answer.status_code, answer.content) == (status, b"")
    port.pipeline.run_one = port.pipeline.echo
    answer = await client.post("/v1/messages", content=BODY)
    assert (answer.status_code, answer.text) == (200, "claude chat m False")


async def test_large_and_compressed_bodies(client: httpx.AsyncClient, port: Port) -> None:
    large = b'{"model":"m","x":"' + b"y" * 900_000 + b'"}'
    assert (await client.post("/v1/messages", content=large)).status_code == 200
    packed = await client.post(
        "/v1/messages", content=gzip.compress(large), headers={"content-encoding": "gzip"}
    )
    assert packed.status_code == 200
    assert port.pipeline.budget.used == 0


async def test_too_large_body_is_told_before_it_is_read(
    client: httpx.AsyncClient, port: Port
) -> None:
    """The client is still sending when it is refused, and yet reads the answer."""
    port.pipeline.limit = 1000
    for _ in range(2):
        answer = await client.post("/v1/messages", content=b"x" * 3_000_000)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "request_too_large"


async def test_too_large_chunked_body_is_refused(client: httpx.AsyncClient, port: Port) -> None:
    port.pipeline.limit = 100_000

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 10_000

    answer = await client.post("/v1/messages", content=parts())
    assert answer.status_code == 413


async def test_in_flight_budget_refuses(client: httpx.AsyncClient, port: Port) -> None:
    port.pipeline.budget.take((4 << 20) - 10)
    answer = await client.post("/v1/chat/completions", content=BODY)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_announced_bytes_do_not_use_up_the_budget(
    client: httpx.AsyncClient, port: Port
) -> None:
    """Bodies that are announced and do not come leave room for those that do."""
    arrived = asyncio.Semaphore(0)
    echo = port.pipeline.run_one

    async def run(routed: RoutedRequest) -> None:
        arrived.release()
        await echo(routed)

    port.pipeline.run_one = run
    socks = [await port.raw() for _ in range(8)]
    try:
        for sock in socks:
            await send(sock, POST % (1 << 20) + b"{")
        for _ in socks:
            await arrived.acquire()
        assert (await client.post("/v1/messages", content=BODY)).status_code == 200
        assert port.pipeline.budget.used <= len(socks)
    finally:
        for sock in socks:
            sock.close()


async def test_body_larger_than_the_whole_budget_passes_alone(
    client: httpx.AsyncClient, port: Port
) -> None:
    port.pipeline.budget = ByteBudget(lambda: 1000)
    large = b'{"model":"m","x":"' + b"y" * 900_000 + b'"}'
    assert (await client.post("/v1/messages", content=large)).status_code == 200
    assert port.pipeline.budget.used == 0


async def test_body_that_does_not_come_is_408(port: Port) -> None:
    port.pipeline.deadline = 0.1
    with await port.raw() as sock:
        await send(sock, POST % 100 + b'{"mod')
        data = await read_until(sock, b"}}")
    assert data.startswith(b"HTTP/1.1 408")


async def test_half_a_body_then_gone_ends_the_request(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, POST % 100 + b'{"mod')
        await asyncio.sleep(0)
    await port.pipeline.over.wait()
    assert port.pipeline.gone


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


async def test_bug_before_commit_is_a_500_without_its_text(
    client: httpx.AsyncClient, port: Port
) -> None:
    async def die(_: RoutedRequest) -> None:
        raise ValueError("secret detail")

    port.pipeline.run_one = die
    answer = await client.post("/v1/messages", content=BODY)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "bug-1" in answer.text


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


async def test_endless_head_is_refused(port: Port) -> None:
    with await port.raw() as sock:
        await send(sock, b"GET / HTTP/1.1\r\n")
        for n in range(20):
            await send(sock, b"x-%d: %s\r\n" % (n, b"y" * 5000))
        assert (await read_all(sock)).startswith(b"HTTP/1.1 431")


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


CHUNKED = POST.replace(b"content-length: %d", b"transfer-encoding: chunked")


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


def only(adapter: Adapter) -> pytest.MarkDecorator:
    """Run a test with one adapter."""
    return pytest.mark.parametrize("port", [adapter], indirect=True)


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
