"""Tests of the example: rewriting, dropping by what went before, the contract."""

import asyncio

from stream_redactor import StreamRedactor

from patchbay.interceptors import StreamChunkInterceptRequest, StreamStart
from patchbay.testing.harness import conformance_of

START = StreamStart("request", "trace", "openai", "m", "m")


def chunk(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


def after(*history: str, said: str) -> bytes | None:
    """Return what becomes of a chunk, None when it is dropped."""
    request = StreamChunkInterceptRequest(
        START, len(history), chunk(said), [], [*map(chunk, history)]
    )
    change = asyncio.run(StreamRedactor().intercept_stream_chunk(request, [0]))
    if change is None:
        return chunk(said)
    return None if change.drop_chunk else change.body


def test_whole_word_is_masked() -> None:
    assert after(said="say swordfish now") == chunk("say ********* now")


def test_end_of_a_divided_word_is_dropped() -> None:
    assert after("the sword", said="fish is out") is None


def test_harmless_chunks_stay() -> None:
    assert after("the sword", said=" is sharp") == chunk(" is sharp")


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(StreamRedactor()))
    assert report.passed, report.table()
