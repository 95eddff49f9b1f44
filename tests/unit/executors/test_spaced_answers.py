"""JSON is the same however its serializer spaces it: usage, errors and ends are found in all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fakes.canned_upstream import CannedUpstream

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    StreamBatch,
    StreamItem,
    StreamTail,
    Usage,
)
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor

SPACES = {
    "compact": (",", ":"),
    "python": (", ", ": "),
    "jackson": (", ", " : "),
    "before": (",", " :"),
    "wide": (",  ", "  :  "),
}
TOLD = {"input_tokens": 7, "output_tokens": 5}
ERROR = {"message": "boom", "type": "rate_limit_error", "code": 429, "status": "RESOURCE_EXHAUSTED"}

OPENAI_USAGE = {"prompt_tokens": 7, "completion_tokens": 5}
GEMINI_USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}
GEMINI_ANSWER = {"content": {"parts": [{"text": "hello"}]}, "finishReason": "STOP"}

Documents = list[dict[str, Any]]

WHOLE: dict[str, dict[str, Any]] = {
    "openai": {"choices": [{"message": {"content": "hello"}}], "usage": OPENAI_USAGE},
    "openai-response": {"error": None, "output": [{}], "usage": TOLD},
    "claude": {"type": "message", "content": [{"type": "text", "text": "hello"}], "usage": TOLD},
    "gemini": {"candidates": [GEMINI_ANSWER], "usageMetadata": GEMINI_USAGE},
}
FAILED: dict[str, dict[str, Any]] = {
    "openai": {"error": ERROR},
    "openai-response": {"error": ERROR},
    "claude": {"type": "error", "error": ERROR},
    "gemini": {"error": ERROR},
}
STREAMS: dict[str, Documents] = {
    "openai": [
        {"choices": [{"index": 0, "delta": {"content": "12345678"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None},
        {"choices": [], "usage": OPENAI_USAGE},
    ],
    "openai-response": [
        {"type": "response.output_text.delta", "delta": "12345678"},
        {"type": "response.completed", "response": {"error": None, "usage": TOLD}},
    ],
    "claude": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
        {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "12345678"}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ],
    "gemini": [
        {"candidates": [{"content": {"parts": [{"text": "12345678"}]}}]},
        {"candidates": [GEMINI_ANSWER], "usageMetadata": GEMINI_USAGE},
    ],
}


def executor_of(name: str, upstream: CannedUpstream) -> Executor:
    if name == "claude":
        return ClaudeExecutor(upstream)
    if name == "gemini":
        return GeminiExecutor(upstream)
    return OpenAICompatibleExecutor(upstream)


def asked(name: str) -> ExecutorRequest:
    return ExecutorRequest(
        executor_pb2.ExecutorRequest(format=name, operation="chat", model="m", payload=b"{}" * 20)
    )


def events(spaces: str, documents: Documents) -> list[bytes]:
    return [
        b"data: " + json.dumps(document, separators=SPACES[spaces]).encode() + b"\n\n"
        for document in documents
    ]


async def streamed(name: str, *pieces: bytes) -> list[StreamItem]:
    upstream = CannedUpstream(*pieces, content_type="text/event-stream")
    return [item async for item in executor_of(name, upstream).execute_stream(asked(name))]


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("name", WHOLE)
async def test_whole_answer_usage_is_the_providers(name: str, spaces: str) -> None:
    for indent in (None, 2):
        body = json.dumps(WHOLE[name], separators=SPACES[spaces], indent=indent).encode()
        answer = await executor_of(name, CannedUpstream(body)).execute(asked(name))
        assert answer.payload == body
        assert answer.usage == Usage(tuple(TOLD.items()))


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("name", FAILED)
async def test_error_inside_a_200_is_a_failure(name: str, spaces: str) -> None:
    body = json.dumps(FAILED[name], separators=SPACES[spaces], indent=2).encode()
    with pytest.raises(errors.UpstreamError, match="boom") as caught:
        await executor_of(name, CannedUpstream(body)).execute(asked(name))
    assert caught.value.http_status == 429
    with pytest.raises(errors.UpstreamError, match="boom"):
        await streamed(name, *events(spaces, [FAILED[name]]))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("name", STREAMS)
async def test_sound_stream_is_whole_and_usage_is_the_providers(
    name: str, spaces: str, together: bool
) -> None:
    pieces = events(spaces, STREAMS[name])
    items = await streamed(name, *([b"".join(pieces)] if together else pieces))
    assert [c for item in items if isinstance(item, StreamBatch) for c in item.chunks] == pieces
    assert items[-1] == StreamTail(Usage(tuple(TOLD.items())))


@pytest.mark.parametrize("spaces", [name for name in SPACES if name != "wide"])
@pytest.mark.parametrize("name", STREAMS)
async def test_estimate_counts_what_was_said(name: str, spaces: str) -> None:
    items = await streamed(name, *events(spaces, [*STREAMS[name][:-1], *_last(name)]))
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items)["output_tokens"] == (5 if name == "claude" else 2)


def _last(name: str) -> Documents:
    """The last event without numbers."""
    kept: dict[str, Documents] = {
        "openai": [],
        "openai-response": [{"type": "response.completed", "response": {}}],
        "gemini": [{"candidates": [{"finishReason": "STOP"}]}],
    }
    return kept.get(name, STREAMS[name][-1:])


async def test_events_of_two_serializers_in_one_piece_are_both_read() -> None:
    """Middlemen write the last chunks themselves."""
    first, finish, usage = STREAMS["openai"]
    data = b"".join(events("compact", [first]) + events("jackson", [finish, usage]))
    items = await streamed("openai", data)
    assert items[-1] == StreamTail(Usage(tuple(TOLD.items())))
