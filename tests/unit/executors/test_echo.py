"""
The echo executor: what each dialect's SDK accepts, true counts, rehearsed failures.

Events of OpenAI are validated by the official SDK's own types, strictly, those of the others by their
documented order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from patchbay import errors
from patchbay.executor import (
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
    Usage,
)
from patchbay.plugin.v1 import executor_pb2
from patchbay.sse import event_data
from patchbay_gateway.executors.echo import EchoExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

TEXT = "one two  three"
WORDS = Usage((("input_tokens", 3), ("output_tokens", 3)))
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("openai", "chat"): {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
            {"role": "assistant", "content": ""},
        ]
    },
    ("openai", "completions"): {"prompt": TEXT},
    ("openai-response", "chat"): {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    },
    ("claude", "chat"): {"max_tokens": 9, "messages": [{"role": "user", "content": TEXT}]},
    ("gemini", "chat"): {"contents": [{"parts": [{"text": TEXT}]}]},
}


class Sleeper:
    """Counts what was slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def make_request(
    name: str = "openai",
    operation: str = "chat",
    body: dict[str, Any] | bytes | None = None,
    *,
    alt: str = "sse",
    stream: bool = False,
    **headers: object,
) -> ExecutorRequest:
    body = BODIES[name, operation] if body is None else body
    message = executor_pb2.ExecutorRequest(
        format=name,
        operation=operation,
        payload=body if isinstance(body, bytes) else orjson.dumps(body),
        model="echo",
        alt=alt,
        stream=stream,
        attempt_uid="01U-1",
    )
    for header, value in headers.items():
        message.headers[header.replace("_", "-")].values.append(str(value))
    return ExecutorRequest(message)


async def execute(request: ExecutorRequest, sleeper: Sleeper | None = None) -> ExecutorResponse:
    return await EchoExecutor(sleep=sleeper or Sleeper(), now=lambda: 1.7e9).execute(request)


async def stream(
    request: ExecutorRequest, sleeper: Sleeper | None = None
) -> tuple[StreamHead, list[bytes], StreamTail]:
    executor = EchoExecutor(sleep=sleeper or Sleeper(), now=lambda: 1.7e9)
    head, *batches, tail = [item async for item in executor.execute_stream(request)]
    assert isinstance(head, StreamHead)
    assert isinstance(tail, StreamTail)
    chunks = [c for b in batches if isinstance(b, StreamBatch) for c in b.chunks]
    assert all(chunks)
    return head, chunks, tail


def documents(chunks: Sequence[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(event_data(c)) for c in chunks if event_data(c) != b"[DONE]"]


def strictly(model: type[BaseModel], document: dict[str, Any]) -> Any:
    """The SDK itself never validates; here it must, and every field must be known."""
    found = TypeAdapter(model).validate_python(document)
    extra = getattr(found, "model_extra", None)
    assert not extra, f"unknown fields {extra}"
    return found


async def test_chat_whole() -> None:
    answer = await execute(make_request())
    parsed = strictly(ChatCompletion, orjson.loads(answer.payload))
    assert parsed.choices[0].message.content == TEXT
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (3, 3)
    assert answer.usage == WORDS


@pytest.mark.parametrize("include_usage", [True, False])
async def test_chat_stream(*, include_usage: bool) -> None:
    body = BODIES["openai", "chat"] | {"stream_options": {"include_usage": include_usage}}
    head, chunks, tail = await stream(make_request(body=body))
    assert head.content_type == "text/event-stream"
    assert chunks[-1] == b"data: [DONE]\n\n"
    parsed = [strictly(ChatCompletionChunk, d) for d in documents(chunks)]
    with_choice = [c.choices[0] for c in parsed if c.choices]
    assert with_choice[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for c in with_choice) == TEXT
    assert [c.finish_reason for c in with_choice][-1] == "stop"
    assert len(with_choice) == 5
    usages = [c.usage for c in parsed if c.usage]
    assert [u.total_tokens for u in usages] == ([6] if include_usage else [])
    assert tail.usage == WORDS


async def test_completions_whole_and_stream() -> None:
    whole = strictly(
        Completion, orjson.loads((await execute(make_request("openai", "completions"))).payload)
    )
    assert whole.choices[0].text == TEXT
    _, chunks, tail = await stream(make_request("openai", "completions"))
    assert chunks[-1] == b"data: [DONE]\n\n"
    # The SDK's type demands a finish reason, which OpenAI's own chunks lack until the last.
    parsed = documents(chunks)
    assert "".join(c["choices"][0]["text"] for c in parsed) == TEXT
    assert parsed[-1]["choices"][0]["finish_reason"] == "stop"
    assert tail.usage == WORDS


async def test_responses_whole() -> None:
    answer = await execute(make_request("openai-response"))
    parsed = strictly(Response, orjson.loads(answer.payload))
    assert parsed.output_text == TEXT
    assert parsed.usage.total_tokens == 6


async def test_responses_stream_sequence() -> None:
    _, chunks, tail = await stream(make_request("openai-response"))
    events = documents(chunks)
    for chunk, event in zip(chunks, events, strict=True):
        TypeAdapter(ResponseStreamEvent).validate_python(event)
        assert chunk.startswith(b"event: " + event["type"].encode() + b"\ndata: ")
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    delta = "response.output_text.delta"
    assert [e["type"] for e in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *[delta] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e["delta"] for e in events if e["type"] == delta) == TEXT
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == TEXT
    assert tail.usage == WORDS


async def test_claude_whole_and_stream() -> None:
    whole = orjson.loads((await execute(make_request("claude"))).payload)
    assert whole["content"] == [{"type": "text", "text": TEXT}]
    assert whole["stop_reason"] == "end_turn"
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (3, 3)
    _, chunks, tail = await stream(make_request("claude"))
    events = documents(chunks)
    assert [e["type"] for e in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(c.startswith(b"event: ") for c in chunks)
    assert "".join(e["delta"]["text"] for e in events[2:5]) == TEXT
    assert events[0]["message"]["usage"]["input_tokens"] == 3
    assert events[-2]["usage"] == {"output_tokens": 3}
    assert tail.usage == WORDS


async def test_gemini_whole_and_sse() -> None:
    whole = orjson.loads((await execute(make_request("gemini"))).payload)
    assert whole["candidates"][0]["content"]["parts"] == [{"text": TEXT}]
    head, chunks, tail = await stream(make_request("gemini", stream=True))
    assert head.content_type == "text/event-stream"
    events = documents(chunks)
    texts = [e["candidates"][0]["content"]["parts"][0]["text"] for e in events]
    assert "".join(texts) == TEXT
    assert ["finishReason" in e["candidates"][0] for e in events] == [False, False, True]
    assert events[-1]["usageMetadata"]["totalTokenCount"] == 6
    assert tail.usage == WORDS


@pytest.mark.parametrize(("text", "count"), [(TEXT, 3), ("", 1)])
async def test_gemini_alt_json_is_one_json_array(text: str, count: int) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    head, chunks, _ = await stream(make_request("gemini", body=body, alt="json", stream=True))
    assert head.content_type == "application/json"
    array = orjson.loads(b"".join(chunks))
    assert len(array) == count
    assert array[-1]["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize(("name", "key"), [("claude", "input_tokens"), ("gemini", "totalTokens")])
async def test_count_tokens(name: str, key: str) -> None:
    message = make_request(name).message
    message.operation = "count_tokens"
    answer = await EchoExecutor().count_tokens(ExecutorRequest(message))
    assert orjson.loads(answer.payload) == {key: 3}


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_same_text_same_vector(encoding: str) -> None:
    body = {"input": ["a b", "c", "a b"], "encoding_format": encoding, "dimensions": 4}
    answer = await execute(make_request("openai", "embeddings", body))
    document = orjson.loads(answer.payload)
    vectors = [d["embedding"] for d in document["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert answer.usage == Usage((("input_tokens", 5), ("output_tokens", 0)))
    if encoding == "float":
        parsed = strictly(CreateEmbeddingResponse, document)
        assert sum(x * x for x in parsed.data[0].embedding) == pytest.approx(1)
        assert len(vectors[0]) == 4


@pytest.mark.parametrize(("name", "operation"), list(BODIES))
async def test_chunks_header_sets_the_number_of_words(name: str, operation: str) -> None:
    for wanted in (0, 2, 7):
        request = make_request(name, operation, x_echo_chunks=wanted, stream=True)
        _, _, tail = await stream(request)
        assert tail.usage == Usage((("input_tokens", 3), ("output_tokens", wanted)))


async def test_delay_header_waits_before_each_word() -> None:
    sleeper = Sleeper()
    await stream(make_request(x_echo_delay_ms=20), sleeper)
    assert sleeper.slept == [0.02] * 3


@pytest.mark.parametrize("name", ["openai", "openai-response", "claude", "gemini"])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
async def test_status_header_fails_in_the_dialect(name: str, status: int) -> None:
    request = make_request(name, x_echo_status=status)
    with pytest.raises(errors.UpstreamError) as caught:
        await execute(request)
    assert caught.value.http_status == status
    assert caught.value.sent is errors.Sent.YES
    error = orjson.loads(caught.value.body)["error"]
    assert error["message"]
    assert ("status" in error) == (name == "gemini")
    with pytest.raises(errors.UpstreamError):
        await anext(EchoExecutor().execute_stream(request))


@pytest.mark.parametrize("after", [0, 2])
async def test_fail_after_header_breaks_the_stream(after: int) -> None:
    chunks: list[bytes] = []
    items = EchoExecutor().execute_stream(make_request(x_echo_fail_after=after))
    with pytest.raises(errors.UpstreamError) as caught:  # noqa: PT012 - the stream raises on the way
        async for item in items:
            if isinstance(item, StreamBatch):
                chunks += item.chunks
    assert caught.value.reason == "UPSTREAM_TRUNCATED"
    assert len(chunks) == 1 + after


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
async def test_body_that_is_no_object_is_a_400(body: bytes) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await execute(make_request(body=body))
    assert caught.value.http_status == 400


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 30])
async def test_header_that_is_no_number_is_a_400(value: str) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await execute(make_request(x_echo_chunks=value))
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": 3}, {"messages": [3, None, {"content": {"x": 1}}]}, {"messages": []}],
)
async def test_odd_bodies_give_an_empty_answer(body: dict[str, Any]) -> None:
    answer = await execute(make_request(body=body))
    assert orjson.loads(answer.payload)["choices"][0]["message"]["content"] == ""


async def test_unknown_operation_refused() -> None:
    request = make_request("claude", "embeddings", {})
    with pytest.raises(errors.InvalidRequest):
        await execute(request)
