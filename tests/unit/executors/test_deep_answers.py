"""JSON nested deeper than decoders go: passed on as it is, and counted by what was said."""

from __future__ import annotations

import pytest
from tests.fakes.canned_upstream import CannedUpstream

from patchbay.executor import ExecutorRequest
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.claude_stream import ClaudeStream
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.gemini_stream import GeminiStream
from patchbay_gateway.executors.openai_choices import several_asked
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor
from patchbay_gateway.executors.openai_stream import OpenAIStream

DEEP = b"[" * 5000 + b"]" * 5000
WORDS = b'"usage":{"x":0},"usageMetadata":{},"content":"12345678","text":"12345678"'
BODY = b'{"x":' + DEEP + b"," + WORDS + b"}"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (OpenAICompatibleExecutor, "openai"),
        (ClaudeExecutor, "claude"),
        (GeminiExecutor, "gemini"),
    ],
)
async def test_whole_answer_is_estimated(make: type[OpenAICompatibleExecutor], name: str) -> None:
    asked = ExecutorRequest(
        executor_pb2.ExecutorRequest(format=name, operation="chat", model="m", payload=b"{}")
    )
    answer = await make(CannedUpstream(BODY)).execute(asked)
    assert answer.payload == BODY
    assert answer.usage is not None
    assert answer.usage.estimated
    assert dict(answer.usage.items)["output_tokens"] >= 2


def test_events_are_passed_on() -> None:
    event = (
        b'data: {"choices":%b,"finish_reason":"stop","candidates":0,"finishReason":0,%b}\n\n'
        % (
            DEEP,
            WORDS,
        )
    )
    stop = b'event: message_stop\ndata: {"a":%b,"type":"message_stop"}\n\n' % DEEP
    chat = OpenAIStream(responses=False, completions=False, payload=9)
    for stream in (chat, ClaudeStream(payload=9, headers=[]), _gemini()):
        for data in (event, stop):
            batch = stream.take(data)
            assert batch is not None
            assert list(batch.chunks) == [data]
            assert stream.usage.estimated
    assert chat.end() is None


def _gemini() -> GeminiStream:
    return GeminiStream(array=False, payload=9, headers=[])


def test_request_asks_for_one_choice() -> None:
    assert not several_asked(b'{"n":2,"x":' + DEEP + b"}")
