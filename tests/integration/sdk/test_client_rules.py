"""What the client port demands and refuses, in the dialect of the route: keys, models, bodies, methods."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

if TYPE_CHECKING:
    import httpx

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "echo", "messages": HELLO}
GEMINI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
ROUTES = {
    "openai": "/v1/chat/completions",
    "openai-response": "/v1/responses",
    "claude": "/v1/messages",
    "gemini": "/v1beta/models/%s:generateContent",
}


def code(dialect: str, error: Any) -> str:
    """Return the machine-readable code of an error in any dialect."""
    inner = error["error"]
    if dialect == "gemini":
        found: str = inner["details"][0]["metadata"]["code"]
        return found
    return str(inner["code"])


def posted(dialect: str, model: str) -> tuple[str, dict[str, Any]]:
    """Return path and body for *model*."""
    if dialect == "gemini":
        return ROUTES[dialect] % model, GEMINI
    return ROUTES[dialect], {"model": model, "messages": HELLO, "input": "hello", "max_tokens": 9}


@pytest.mark.parametrize("dialect", ROUTES)
async def test_unknown_model_is_404(http: httpx.AsyncClient, dialect: str) -> None:
    path, body = posted(dialect, "nope")
    answer = await http.post(path, json=body)
    assert (answer.status_code, code(dialect, answer.json())) == (404, "model_not_found")
    assert "x-patchbay-model" not in answer.headers


@pytest.mark.parametrize(
    ("dialect", "path", "model"),
    [
        ("claude", "/v1/messages/count_tokens", "fake-model"),
        ("openai", "/v1/embeddings", "claude-fake"),
        ("openai", "/v1/completions", "gemini-fake"),
    ],
)
async def test_operation_that_no_provider_serves_is_400(
    http: httpx.AsyncClient, dialect: str, path: str, model: str
) -> None:
    answer = await http.post(path, json={"model": model, "input": "hello", "prompt": "hello"})
    assert (answer.status_code, code(dialect, answer.json())) == (400, "dialect_not_available")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": "Bearer test-client-key"}, ""),
        ({"x-api-key": "test-client-key"}, ""),
        ({"x-goog-api-key": "test-client-key"}, ""),
        ({}, "?key=test-client-key"),
    ],
    ids=["bearer", "x-api-key", "x-goog-api-key", "query"],
)
async def test_key_in_each_place(
    keyless: httpx.AsyncClient, headers: dict[str, str], query: str
) -> None:
    for dialect in ROUTES:
        path, body = posted(dialect, "echo")
        assert (await keyless.post(path + query, json=body, headers=headers)).status_code == 200
    assert (await keyless.get("/v1/models" + query, headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer test-wrong-key"}])
@pytest.mark.parametrize("dialect", ROUTES)
async def test_no_key_or_a_wrong_one_is_401(
    keyless: httpx.AsyncClient, dialect: str, headers: dict[str, str]
) -> None:
    path, body = posted(dialect, "echo")
    answer = await keyless.post(path, json=body, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"]
    assert "test-wrong-key" not in answer.text


async def test_allow_list_hides_what_it_does_not_name(keyless: httpx.AsyncClient) -> None:
    """A model that a key may not use looks as if it did not exist, in calls and in lists."""
    headers = {"x-api-key": "test-limited-key"}
    listed = (await keyless.get("/v1/models", headers=headers)).json()["data"]
    assert [m["id"] for m in listed] == ["echo", "public-name"]
    for model, status in (("echo", 200), ("public-name", 200), ("fake-model", 404)):
        path, body = posted("openai", model)
        assert (await keyless.post(path, json=body, headers=headers)).status_code == status
        answer = await keyless.get(f"/v1/models/{model}", headers=headers)
        assert answer.status_code == status


async def test_request_id_of_the_client_comes_back(http: httpx.AsyncClient) -> None:
    for path, body in (posted(d, m) for d in ROUTES for m in ("echo", "nope")):
        answer = await http.post(path, json=body, headers={"x-request-id": "mine-7"})
        assert answer.headers["x-request-id"] == "mine-7"
    assert (await http.get("/v1/models", headers={"x-request-id": "a b"})).headers[
        "x-request-id"
    ] == "a b"


@pytest.mark.parametrize("insane", [b"x" * 200, b"\xff\xfe", b""])
async def test_insane_request_id_is_replaced(http: httpx.AsyncClient, insane: bytes) -> None:
    path, body = posted("openai", "echo")
    answers = [
        await http.post(path, json=body, headers={b"x-request-id": insane}) for _ in range(2)
    ]
    first, second = (a.headers["x-request-id"] for a in answers)
    assert first != second
    assert first.isalnum()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/messages", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1beta/models/echo:generateContent", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
    ],
)
async def test_other_method_is_405(
    http: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert "access-control-allow-origin" not in answer.headers


async def test_unknown_path_is_404_in_the_dialect_of_its_prefix(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nope")).json()["error"]["code"] == "unknown_url"
    assert (await http.get("/anthropic/v1/nope")).json()["type"] == "error"
    assert (await http.get("/v1beta/nope")).json()["error"]["status"] == "NOT_FOUND"


async def test_health_needs_no_key(keyless: httpx.AsyncClient) -> None:
    assert (await keyless.get("/healthz")).status_code == 200
    assert (await keyless.head("/healthz")).content == b""


BODY = json.dumps(CHAT).encode()
ENCODED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "br": brotli.compress(BODY),
    "zstd": zstandard.ZstdCompressor().compress(BODY),
    "identity": BODY,
}


@pytest.mark.parametrize("encoding", ENCODED)
async def test_compressed_body_is_read(http: httpx.AsyncClient, encoding: str) -> None:
    answer = await http.post(
        ROUTES["openai"],
        content=ENCODED[encoding],
        headers={"content-type": "application/json", "content-encoding": encoding},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_broken_body_is_400(http: httpx.AsyncClient, encoding: str) -> None:
    answer = await http.post(
        ROUTES["openai"],
        content=ENCODED[encoding][:-5],
        headers={"content-type": "application/json", "content-encoding": encoding},
    )
    assert answer.status_code == 400


async def test_unknown_encoding_is_415(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        ROUTES["openai"], content=BODY, headers={"content-encoding": "compress"}
    )
    assert answer.status_code == 415


async def test_oversized_body_is_413(http: httpx.AsyncClient) -> None:
    """As sent, and as decompressed."""
    large = b'{"model":"echo","x":"' + b"a" * (33 << 20) + b'"}'
    for body, headers in ((large, {}), (gzip.compress(large, 1), {"content-encoding": "gzip"})):
        answer = await http.post(ROUTES["openai"], content=body, headers=headers)
        assert answer.status_code == 413


AMBIGUOUS = {
    "model twice": b'{"model":"echo","messages":[],"model":"fake-model"}',
    "model escaped": b'{"mod\\u0065l":"echo","messages":[]}',
    "model twice, once escaped": b'{"model":"echo","messages":[],"\\u006dodel":"fake-model"}',
    "stream twice": b'{"model":"echo","stream":false,"messages":[],"stream":true}',
    "stream_options twice": b'{"model":"echo","stream_options":{},"stream_options":{}}',
}


@pytest.mark.parametrize("case", AMBIGUOUS)
@pytest.mark.parametrize("dialect", ["openai", "openai-response", "claude"])
async def test_ambiguous_key_is_400(http: httpx.AsyncClient, dialect: str, case: str) -> None:
    answer = await http.post(
        ROUTES[dialect], content=AMBIGUOUS[case], headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    if dialect == "claude":
        assert answer.json()["type"] == "error"


async def test_ambiguous_key_is_400_in_gemini(http: httpx.AsyncClient) -> None:
    """Its model stands in the path, yet a second `model` in the body is refused if it is ambiguous."""
    body = AMBIGUOUS["model twice"]
    answer = await http.post(ROUTES["gemini"] % "echo", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":7}', b"{}", b'{"model":"echo"} x', b'"\xff"']
)
async def test_body_that_is_no_request_is_400(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post(
        ROUTES["openai"], content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
