"""Tests of the example: both ways of answering, wrong bodies, the contract."""

import asyncio
import json

import pytest
from protocol_format import ProtocolFormat

from patchbay import errors
from patchbay.executor import ExecutorRequest, StreamBatch, StreamHead, StreamTail
from patchbay.plugin.v1 import executor_pb2
from patchbay.testing.harness import conformance_of


def request(payload: bytes = b'{"messages":[{"content":"one two"}]}') -> ExecutorRequest:
    return ExecutorRequest(executor_pb2.ExecutorRequest(format="openai", payload=payload))


def test_answer_is_a_response() -> None:
    answer = json.loads(asyncio.run(ProtocolFormat().execute(request())).payload)
    assert answer["object"] == "response"
    assert answer["output"][0]["content"] == [{"type": "output_text", "text": "one two"}]


def test_stream_has_a_chunk_for_each_word() -> None:
    async def items() -> list[object]:
        return [item async for item in ProtocolFormat().execute_stream(request())]

    head, *batches, tail = asyncio.run(items())
    assert isinstance(head, StreamHead)
    assert isinstance(tail, StreamTail)
    chunks = [b"".join(batch.chunks) for batch in batches if isinstance(batch, StreamBatch)]
    assert [chunk.partition(b"\n")[0] for chunk in chunks] == [
        b"event: response.output_text.delta",
        b"event: response.output_text.delta",
        b"event: response.completed",
    ]


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"messages":[]}'])
def test_body_without_a_message_is_refused(payload: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        asyncio.run(ProtocolFormat().execute(request(payload)))


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(ProtocolFormat()))
    assert report.passed, report.table()
