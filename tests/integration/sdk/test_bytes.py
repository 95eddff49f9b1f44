"""Byte for byte: what passes through equals what goes straight to the provider, but for our splices."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.harness.upstream import Upstream

# Counters of the fake upstream; all else of its answers is the same for the same request.
_IDS = re.compile(rb"(fake-|resp_|msg_)\d+")

CHAT = b'{"model":"fake-model","messages":[{"role":"user","content":"hello"}]'
CASES = {
    "chat": ("/chat/completions", CHAT + b"}"),
    "chat stream": (
        "/chat/completions",
        CHAT + b',"stream":true,"stream_options":{"include_usage":true}}',
    ),
    "chat stream, CRLF": (
        "/chat/completions",
        CHAT
        + b',"stream":true,"stream_options":{"include_usage":true},"fake":{"crlf":true,"spaces":true}}',
    ),
    "chat stream, byte by byte": (
        "/chat/completions",
        CHAT
        + b',"stream":true,"stream_options":{"include_usage":true},'
        + b'"fake":{"bytes_per_write":1,"chunks":4}}',
    ),
    "chat stream, usage in each chunk": (
        "/chat/completions",
        CHAT + b',"stream":true,"stream_options":{"include_usage":true},"fake":{"usage":"each"}}',
    ),
    "chat stream, many frames a write": (
        "/chat/completions",
        CHAT
        + b',"stream":true,"stream_options":{"include_usage":true},'
        + b'"fake":{"chunks":500,"frames_per_write":50}}',
    ),
    "completions": ("/completions", b'{"prompt":"hello","model":"fake-model"}'),
    "completions stream": (
        "/completions",
        b'{"prompt":"a","stream" : true,"model":"fake-model","stream_options":{"include_usage":true}}',
    ),
    "responses": ("/responses", b'{"model":"fake-model","input":"hello"}'),
    "responses stream": ("/responses", b'{"model":"fake-model","input":"hello","stream":true}'),
    "embeddings": ("/embeddings", b'{ "input":"hello" , "model":"text-embedding-fake" }'),
}


async def straight(upstream: Upstream, path: str, body: bytes) -> httpx.Response:
    """Ask the provider itself."""
    async with httpx.AsyncClient(trust_env=False, timeout=60, verify=False) as client:
        return await client.post(
            f"{upstream.url}{path}", content=body, headers={"content-type": "application/json"}
        )


async def through(
    http: httpx.AsyncClient, path: str, body: bytes, **headers: str
) -> httpx.Response:
    """Ask the gateway."""
    return await http.post(
        f"/v1{path}", content=body, headers={"content-type": "application/json", **headers}
    )


@pytest.mark.parametrize("case", CASES)
async def test_answer_is_the_providers_own(
    http: httpx.AsyncClient, upstream: Upstream, case: str
) -> None:
    path, body = CASES[case]
    direct, passed = await straight(upstream, path, body), await through(http, path, body)
    assert passed.status_code == direct.status_code == 200
    assert _IDS.sub(rb"\1N", passed.content) == _IDS.sub(rb"\1N", direct.content)
    assert passed.headers["content-type"] == direct.headers["content-type"]


# A provider that sends usage unasked is no measure here: its last chunk is withheld all the same.
UNASKED = {name: case for name, case in CASES.items() if name != "chat stream, usage in each chunk"}


@pytest.mark.parametrize(("path", "body"), UNASKED.values(), ids=UNASKED)
async def test_withheld_usage_is_all_that_a_client_misses(
    http: httpx.AsyncClient, upstream: Upstream, path: str, body: bytes
) -> None:
    """Without include_usage the answer equals the provider's to that very request but for `"usage":null`."""
    body = body.replace(b',"stream_options":{"include_usage":true}', b"")
    direct, passed = await straight(upstream, path, body), await through(http, path, body)
    # OpenAI puts `"usage":null` in each chunk once usage was asked for; SDKs read it as absent.
    content = re.sub(rb', ?"usage": ?null(?=\}\r?\n)', b"", passed.content)
    assert _IDS.sub(rb"\1N", content) == _IDS.sub(rb"\1N", direct.content)


# Sent, then expected upstream; %s is the test's mark.
REQUESTS = {
    "nothing to change": (
        b'{"model":"fake-model","messages":[{"role":"user","content":"%s"}]}',
        b'{"model":"fake-model","messages":[{"role":"user","content":"%s"}]}',
    ),
    "an alias among odd white space": (
        b' {\n\t"messages" : ["%s \\"model\\": \\u00e9"] ,\r\n "model" :\t"public-name" } ',
        b' {\n\t"messages" : ["%s \\"model\\": \\u00e9"] ,\r\n "model" :\t"fake-model" } ',
    ),
    "usage asked for, nested keys left alone": (
        b'{"stream":true,"model":"public-name","x":{"model":"m","stream":1},"messages":["%s"]}',
        (
            b'{"stream_options":{"include_usage":true},'
            b'"stream":true,"model":"fake-model","x":{"model":"m","stream":1},"messages":["%s"]}'
        ),
    ),
    "stream_options kept but for its one key": (
        (
            b'{"model":"fake-model","stream":true,"messages":["%s"],'
            b'"stream_options":{"include_usage":false, "z":1.10}}'
        ),
        (
            b'{"model":"fake-model","stream":true,"messages":["%s"],'
            b'"stream_options":{"include_usage":true, "z":1.10}}'
        ),
    ),
    "numbers as they are written": (
        b'{"model":"fake-model","stream":false,"n":1e300,"n":12345678901234567890,"m":["%s"]}',
        b'{"model":"fake-model","stream":false,"n":1e300,"n":12345678901234567890,"m":["%s"]}',
    ),
}


@pytest.mark.parametrize(("sent", "expected"), REQUESTS.values(), ids=REQUESTS)
async def test_request_is_the_clients_own_but_for_model_and_usage(
    http: httpx.AsyncClient, upstream: Upstream, sent: bytes, expected: bytes
) -> None:
    mark = uuid.uuid4().hex.encode()
    answer = await through(http, "/chat/completions", sent.replace(b"%s", mark))
    assert answer.status_code == 200, answer.text
    (record,) = [r for r in upstream.records() if mark.decode() in r["body"]]
    assert record["body"].encode() == expected.replace(b"%s", mark)


async def test_only_the_providers_headers_pass_upstream(
    http: httpx.AsyncClient, upstream: Upstream
) -> None:
    """No credential, cookie or header of ours or of other providers reaches the provider."""
    mark = uuid.uuid4().hex
    await through(
        http,
        f"/chat/completions?key=test-client-key&mark={mark}",
        CHAT + b',"user":"%s"}' % mark.encode(),
        **{
            "cookie": "a=b",
            "x-custom": "1",
            "openai-organization": "org-1",
            "idempotency-key": "k-1",
            "anthropic-version": "1",
            "x-request-id": "mine-2",
            "user-agent": "test-agent",
        },
    )
    (record,) = [r for r in upstream.records() if mark in r["body"]]
    seen: dict[str, Any] = record["headers"]
    assert seen["authorization"] in {"Bearer test-upstream-key-1", "Bearer test-upstream-key-2"}
    assert (seen["openai-organization"], seen["idempotency-key"]) == ("org-1", "k-1")
    assert set(seen) == {
        "host",
        "content-length",
        "content-type",
        "accept",
        "accept-encoding",
        "user-agent",
        "authorization",
        "openai-organization",
        "idempotency-key",
        "x-patchbay-attempt",
    }
    assert seen["user-agent"] != "test-agent"
    assert record["path"] == "/v1/chat/completions"
