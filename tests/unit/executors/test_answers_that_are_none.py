"""A status of 200 does not make an answer: pages, texts, nothing and half a body are failures."""

from __future__ import annotations

import pytest
from tests.fakes.canned_upstream import CannedUpstream

from patchbay import errors
from patchbay.executor import Executor, ExecutorRequest
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"

CALLS = [
    (OpenAICompatibleExecutor, "openai", "chat"),
    (OpenAICompatibleExecutor, "openai", "embeddings"),
    (OpenAICompatibleExecutor, "openai-response", "chat"),
    (ClaudeExecutor, "claude", "chat"),
    (ClaudeExecutor, "claude", "count_tokens"),
    (GeminiExecutor, "gemini", "chat"),
    (GeminiExecutor, "gemini", "count_tokens"),
]
STREAMED = [call for call in CALLS if call[2] == "chat"]


def request(name: str, operation: str) -> ExecutorRequest:
    return ExecutorRequest(
        executor_pb2.ExecutorRequest(format=name, operation=operation, model="m", payload=b"{}")
    )


async def run(executor: Executor, name: str, operation: str) -> bytes:
    asked = request(name, operation)
    if operation == "count_tokens":
        return (await executor.count_tokens(asked)).payload
    return (await executor.execute(asked)).payload


@pytest.mark.parametrize(("make", "name", "operation"), CALLS)
@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (PAGE, "text/html", "UPSTREAM_NOT_JSON"),
        (b"\n\n  " + PAGE, "application/json", "UPSTREAM_NOT_JSON"),
        (b"upstream is down", "text/plain", "UPSTREAM_NOT_JSON"),
        (b'data: {"choices":[]}\n\ndata: [DONE]\n\n', "text/event-stream", "UPSTREAM_NOT_JSON"),
        (b'"a string"', "application/json", "UPSTREAM_NOT_JSON"),
        (b"null", "application/json", "UPSTREAM_NOT_JSON"),
        (b"\x0b\x02\x80", "application/json", "UPSTREAM_NOT_JSON"),
        (b"", "", "UPSTREAM_EMPTY"),
        (b" \r\n", "application/json", "UPSTREAM_EMPTY"),
        (b'{"id":"x","choi', "application/json", "UPSTREAM_TRUNCATED"),
        (b"[", "application/json", "UPSTREAM_TRUNCATED"),
    ],
)
async def test_whole_answer_that_is_none_is_a_failure(
    make: type[OpenAICompatibleExecutor],
    name: str,
    operation: str,
    body: bytes,
    kind: str,
    reason: str,
) -> None:
    upstream = CannedUpstream(body, content_type=kind)
    with pytest.raises(errors.UpstreamError) as caught:
        await run(make(upstream), name, operation)
    assert (caught.value.http_status, caught.value.reason) == (502, reason)
    assert caught.value.sent is errors.Sent.YES
    assert upstream.replies[0].closed
    if reason == "UPSTREAM_NOT_JSON":
        assert caught.value.body == body
        assert caught.value.content_type == kind


@pytest.mark.parametrize(("make", "name", "operation"), CALLS)
@pytest.mark.parametrize("kind", ["application/json", "text/html", "text/plain", ""])
@pytest.mark.parametrize("body", [b'{"a":1}', b'\n \r\n\t{"a":1}\n', b'\xef\xbb\xbf{"a":1}'])
async def test_json_is_an_answer_whatever_it_is_called(
    make: type[OpenAICompatibleExecutor], name: str, operation: str, kind: str, body: bytes
) -> None:
    """Servers in some languages call all that they send a page, and blanks keep connections awake."""
    assert await run(make(CannedUpstream(body, content_type=kind)), name, operation) == body


@pytest.mark.parametrize(("make", "name", "operation"), STREAMED)
@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "Application/JSON"])
async def test_page_where_a_stream_was_asked_for_is_a_failure(
    make: type[OpenAICompatibleExecutor], name: str, operation: str, kind: str
) -> None:
    executor = make(CannedUpstream(PAGE, content_type=kind))
    with pytest.raises(errors.UpstreamError) as caught:
        await anext(executor.execute_stream(request(name, operation)))
    assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_NOT_A_STREAM")
    assert caught.value.content_type == kind
