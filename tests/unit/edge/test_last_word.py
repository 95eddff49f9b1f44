"""A provider that has said all and keeps its connection open, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.plugins.snapshot import SettingsEntry, StreamingEntry

STREAM = b'{"model":"m","stream":true}'
FOREVER = 10_000.0
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
ENDS = {
    "openai": [TEXT, b"data: [DONE]\n\n"],
    "openai-response": [
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    ],
    "claude": [
        b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
    "gemini": [b'data: {"candidates":[{"finishReason":"STOP"}]}\n\n'],
}


def outcomes(script: Script) -> list[int]:
    return [report.settlement.outcome for report in script.reports]


@pytest.mark.parametrize("dialect", ENDS)
@virtual
async def test_silence_after_the_last_word_ends_the_answer(dialect: str) -> None:
    script = Script(default=[*ENDS[dialect], FOREVER])
    client = await Edge(script, pool("a")).ask(STREAM, dialect=dialect)
    assert client.finished
    assert client.answer == b"".join(ENDS[dialect])
    assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.1)
    assert outcomes(script) == [journal_pb2.OUTCOME_SUCCEEDED]


@virtual
async def test_last_word_after_a_long_answer_is_noticed_as_soon() -> None:
    script = Script(default=[TEXT, 61.0, *ENDS["openai"], FOREVER])
    client = await Edge(script, pool("a")).ask(STREAM)
    assert client.finished
    assert asyncio.get_running_loop().time() == pytest.approx(63, abs=0.1)


@virtual
async def test_error_event_is_a_last_word_too() -> None:
    error = b'data: {"error":{"message":"overloaded"}}\n\n'
    script = Script(default=[TEXT, error, FOREVER])
    client = await Edge(script, pool("a")).ask(STREAM)
    assert client.answer == TEXT + error
    assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.1)
    assert outcomes(script) == [journal_pb2.OUTCOME_FAILED]


@virtual
async def test_what_comes_within_the_grace_is_passed_on() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    script = Script(default=[*ENDS["openai"], 1.5, usage, 1.5, b"data: [DONE]\n\n", FOREVER])
    payload = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    client = await Edge(script, pool("a")).ask(payload)
    assert client.answer.endswith(usage + b"data: [DONE]\n\n")
    assert client.finished


@virtual
async def test_silence_before_the_last_word_ends_nothing() -> None:
    script = Script(default=[TEXT, 200.0, *ENDS["openai"]])
    client = await Edge(script, pool("a")).ask(STREAM)
    assert client.finished
    assert client.answer.endswith(b"[DONE]\n\n")
    assert asyncio.get_running_loop().time() == pytest.approx(200)


@virtual
async def test_grace_of_zero_leaves_the_end_to_the_provider() -> None:
    settings = SettingsEntry(streaming=StreamingEntry(end_grace=0.0, idle_timeout=300.0))
    script = Script(default=[*ENDS["openai"], 30.0])
    client = await Edge(script, pool("a"), settings=settings).ask(STREAM)
    assert client.finished
    assert asyncio.get_running_loop().time() == pytest.approx(30)
