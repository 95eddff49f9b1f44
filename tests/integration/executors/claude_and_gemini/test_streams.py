"""The executors `claude` and `gemini` over real sockets: streams, whole, broken off, stalled and left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from tests.fakes.script import PIXEL
from tests.integration.executors.calls import chunks_of, collect, leave_after_the_first_chunk
from tests.integration.executors.claude_and_gemini.asking import base, make_request, of_gemini

from patchbay import errors
from patchbay.executor import StreamBatch, StreamHead, StreamTail

if TYPE_CHECKING:
    from tests.fakes.upstream import FakeUpstream
    from tests.integration.executors.claude_and_gemini.asking import Tested


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"bytes_per_write": 7},
        {"frames_per_write": 64},
        {"crlf": True},
        {"spaces": True},
        {"pings": True, "reasoning": 3, "tools": 2, "cached": 40, "created": 9, "created_1h": 4},
        {"picture": True, "searches": 2},
    ],
    ids=str,
)
async def test_stream_bytes_unchanged_whole_events_and_usage(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    """However the bytes arrive, the chunks are whole events and joined they are the provider's bytes."""
    items, error = await collect(executor, make_request(executor, base(fake), stream=True, **way))
    assert error is None
    head, tail = items[0], items[-1]
    assert isinstance(head, StreamHead)
    assert head.content_type.startswith("text/event-stream")
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items) == fake.last.tokens
    assert not tail.usage.estimated
    end = b"\r\n\r\n" if way.get("crlf") or executor.id == "gemini" else b"\n\n"
    chunks = chunks_of(items)
    assert all(chunk.endswith(end) and chunk.count(end) == 1 for chunk in chunks)
    assert sum(b'"word' in c or b': "word' in c for c in chunks) >= 4


async def test_usage_so_far_never_falls(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(executor, base(fake), stream=True, chunks=20, cached=3, delay_ms=1)
    items, _ = await collect(executor, request)
    told = [i.usage_so_far for i in items if isinstance(i, StreamBatch) and i.usage_so_far]
    outputs = [dict(u.items)["output_tokens"] for u in told]
    # One a chunk, unless the machine is so busy that several chunks arrive as one.
    assert len(outputs) >= 10
    assert all(dict(u.items)["cache_read_tokens"] == 3 for u in told)
    assert outputs[-2] >= 18
    assert outputs[:-1] == sorted(outputs[:-1])


async def test_stream_without_usage_is_estimated(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(executor, base(fake), stream=True, usage="never")
    items, error = await collect(executor, request)
    assert error is None
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert tail.usage.estimated
    assert dict(tail.usage.items)["output_tokens"] == 6


async def test_failure_in_a_stream_before_content_is_raised_not_delivered(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, error_after=0, error="oops")
    items, error = await collect(executor, request)
    assert not chunks_of(items)
    assert isinstance(error, errors.UpstreamError)
    assert error.message == "oops"
    assert error.http_status == (529 if executor.id == "claude" else 503)
    assert error.sent is errors.Sent.YES
    assert "oops" in error.body.decode()


async def test_failure_in_a_stream_after_content_is_the_clients_to_see(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, error_after=2, error="oops")
    items, error = await collect(executor, request)
    assert error is None
    assert b"oops" in chunks_of(items)[-1]
    assert b"error" in chunks_of(items)[-1]


async def test_json_where_a_stream_was_due_is_a_failure(
    executor: Tested, fake: FakeUpstream
) -> None:
    """A relay that ignores `stream` must not look like an empty answer."""
    request = make_request(executor, base(fake), stream=True, unstreamed=True)
    items, error = await collect(executor, request)
    assert not items
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (502, "UPSTREAM_NOT_A_STREAM")


@pytest.mark.parametrize(
    "way",
    [{"close_after": 3}, {"half_frame_after": 3}, {"finish": False, "done": False}],
    ids=str,
)
async def test_stream_broken_off_delivers_whole_events_then_fails(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    items, error = await collect(executor, make_request(executor, base(fake), stream=True, **way))
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (502, "UPSTREAM_TRUNCATED")
    text = b"".join(chunks_of(items))
    assert [b"word%d " % i in text for i in range(3)] == [True, True, True]
    last = items[-1]
    assert isinstance(last, StreamBatch)
    assert last.chunks[-1].endswith(b"\n\n") or last.chunks[-1].endswith(b"\r\n\r\n")


async def test_message_delta_without_message_stop_is_truncated(
    executor: Tested, fake: FakeUpstream
) -> None:
    """Anthropic's last word is `message_stop`; Google's is a `finishReason`, which was there."""
    request = make_request(executor, base(fake), stream=True, done=False)
    items, error = await collect(executor, request)
    if executor.id == "claude":
        assert isinstance(error, errors.UpstreamError)
        assert error.reason == "UPSTREAM_TRUNCATED"
    else:
        assert error is None
        assert isinstance(items[-1], StreamTail)


@pytest.mark.parametrize("stall", ["head", "body", "2"])
async def test_stalled_stream_is_a_504(executor: Tested, fake: FakeUpstream, stall: str) -> None:
    request = make_request(executor, base(fake), stream=True, idle=0.2, stall=stall)
    _, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (504, "UPSTREAM_TIMEOUT")
    await fake.until(lambda: fake.last.aborted)


async def test_stall_after_the_last_word_is_no_failure(
    executor: Tested, fake: FakeUpstream
) -> None:
    """A provider that says all and keeps the connection open costs a wait, not the answer."""
    request = make_request(executor, base(fake), stream=True, idle=1, stall="end")
    items, error = await collect(executor, request)
    assert error is None
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items)["output_tokens"] == 4


async def test_generator_closed_between_chunks_cuts_the_provider(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, chunks=50, delay_ms=20)
    await leave_after_the_first_chunk(executor, request)
    await fake.until(lambda: fake.last.aborted)
    assert fake.last.chunks_sent < 10


@of_gemini
async def test_gemini_stream_as_array_is_json_with_every_event(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, alt="json", tools=1, picture=True)
    items, error = await collect(executor, request)
    assert error is None
    head, tail = items[0], items[-1]
    assert isinstance(head, StreamHead)
    assert head.content_type.startswith("application/json")
    found = orjson.loads(b"".join(chunks_of(items)))
    parts = [p for each in found for p in each["candidates"][0]["content"]["parts"]]
    assert "".join(p.get("text", "") for p in parts) == "word0 word1 word2 word3 "
    assert parts[-2]["inlineData"]["data"] == PIXEL
    assert parts[-1]["functionCall"]["args"] == {"city": "Zürich", "days": 3}
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items) == fake.last.tokens
    assert fake.last.path.endswith("?alt=sse")


@of_gemini
@pytest.mark.parametrize("way", [{"error_after": 2}, {"close_after": 2}], ids=str)
async def test_gemini_stream_as_array_never_closes_when_it_failed(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    items, error = await collect(
        executor, make_request(executor, base(fake), stream=True, alt="json", **way)
    )
    assert isinstance(error, errors.UpstreamError)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(chunks_of(items)))


@of_gemini
@pytest.mark.parametrize("after", [0, 2])
async def test_gemini_bare_error_in_a_stream_is_raised(
    executor: Tested, fake: FakeUpstream, after: int
) -> None:
    """Google writes some errors as indented JSON among the events; nobody's parser takes that."""
    request = make_request(
        executor, base(fake), stream=True, error_after=after, bare_error=True, error="oops"
    )
    items, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.message) == (503, "oops")
    assert len(chunks_of(items)) == after
