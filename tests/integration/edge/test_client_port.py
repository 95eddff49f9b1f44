"""The client port on real sockets: which requests and bodies reach the pipeline, what others are told."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.integration.edge.client_port import BODY, KEY, POST, Port, read_until, send

from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.routes.request import RoutedRequest


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
