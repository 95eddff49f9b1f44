"""The OpenAI-compatible executor over real sockets, against the fake upstream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from tests.fakes.script import Script
from tests.integration.executors.calls import (
    KEY,
    addressed,
    chunks_of,
    collect,
    is_whole,
    leave_after_the_first_chunk,
    nothing_left,
    refusal,
)

from patchbay import errors, secrets
from patchbay.executor import (
    ExecutorHTTPRequest,
    ExecutorRequest,
    StreamBatch,
    StreamHead,
    StreamTail,
    Usage,
)
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.http1_upstream import Http1Upstream
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor
from patchbay_gateway.executors.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.upstream import FakeUpstream

    from patchbay_gateway.executors.upstream import Upstream

PATHS = {
    "chat": ("openai", "chat"),
    "completions": ("openai", "completions"),
    "responses": ("openai-response", "chat"),
}


@pytest.fixture(params=["http1", "aiohttp"])
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[OpenAICompatibleExecutor]:
    """Both adapters of the port pass the same tests."""
    upstream: Upstream = AiohttpUpstream(Proxies({}))
    if request.param == "http1":
        upstream = Http1Upstream(Proxies({}), upstream)
    executor = OpenAICompatibleExecutor(upstream)
    yield executor
    await executor.aclose()
    await upstream.aclose()
    await nothing_left()


def make_request(
    url: str,
    kind: str = "chat",
    *,
    stream: bool = False,
    origins: tuple[str, ...] | None = None,
    first_byte: float = 60,
    idle: float = 60,
    usage: bool = True,
    headers: dict[str, str] | None = None,
    **fake: Any,
) -> ExecutorRequest:
    name, operation = PATHS.get(kind, ("openai", kind))
    body: dict[str, Any] = {"model": "m", "stream": stream, "fake": fake}
    body |= {"messages": [{"role": "user", "content": "hello there"}]} if kind == "chat" else {}
    if usage and stream and kind != "responses":
        body["stream_options"] = {"include_usage": True}
    message = executor_pb2.ExecutorRequest(
        model="m",
        format=name,
        operation=operation,
        stream=stream,
        payload=orjson.dumps(body),
    )
    return addressed(
        message,
        "openai-compatible",
        url,
        origins=origins,
        headers=headers,
        first_byte=first_byte,
        idle=idle,
    )


@pytest.mark.parametrize("kind", ["chat", "completions", "responses", "embeddings"])
async def test_execute_body_unchanged_and_usage_read(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, kind: str
) -> None:
    request = make_request(fake.url, kind, cached=1, reasoning=2)
    answer = await executor.execute(request)
    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert (b"x-request-id", b"fake-1") in answer.headers
    assert not {name for name, _ in answer.headers} & {b"content-length", b"connection"}
    assert answer.usage is not None
    assert not answer.usage.estimated
    assert fake.last.completed
    wanted = fake.last.tokens
    assert dict(answer.usage.items).items() >= wanted.items() or kind == "embeddings"
    assert dict(answer.usage.items)["input_tokens"] == wanted["input_tokens"]
    assert fake.last.body.encode() == request.payload


async def test_request_headers_are_the_allow_list(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    client = {
        "openai-organization": "org",
        "idempotency-key": "idem",
        "user-agent": "client/1",
        "anthropic-version": "x",
        "x-forwarded-for": "1.2.3.4",
    }
    await executor.execute(make_request(fake.url, headers=client))
    sent = fake.last.headers
    assert fake.last.attempt == "01UID-1"
    assert sent["authorization"] == "Bearer test-key"
    assert sent["openai-organization"] == "org"
    assert sent["idempotency-key"] == "idem"
    assert sent["accept-encoding"] == "identity"
    assert sent["user-agent"].startswith("patchbay/")
    assert set(sent) == {
        "host", "authorization", "content-type", "content-length", "accept", "accept-encoding",
        "user-agent", "openai-organization", "idempotency-key", "x-patchbay-attempt",
    }  # fmt: skip


async def test_secret_for_another_origin_never_leaves(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    with pytest.raises(errors.PermissionDenied):
        await executor.execute(make_request(fake.url, origins=("https://api.example.com",)))
    assert not fake.records


@pytest.mark.parametrize("kind", list(PATHS))
@pytest.mark.parametrize(
    "way",
    [{}, {"bytes_per_write": 7}, {"frames_per_write": 64}, {"crlf": True}, {"spaces": True}],
    ids=str,
)
async def test_stream_bytes_unchanged_whole_events_and_usage(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, kind: str, way: dict[str, Any]
) -> None:
    """However the bytes arrive, the chunks are whole events and joined they are the provider's bytes."""
    items, error = await collect(executor, make_request(fake.url, kind, stream=True, **way))
    assert error is None
    assert isinstance(items[0], StreamHead)
    assert items[0].content_type.startswith("text/event-stream")
    assert isinstance(items[-1], StreamTail)
    assert items[-1].usage is not None
    assert dict(items[-1].usage.items) == fake.last.tokens
    assert not items[-1].usage.estimated
    end = b"\r\n\r\n" if way.get("crlf") else b"\n\n"
    chunks = chunks_of(items)
    assert all(chunk.endswith(end) and chunk.count(end) == 1 for chunk in chunks)
    assert sum(b'"word' in c or b': "word' in c for c in chunks) >= 4


async def test_stream_without_usage_is_estimated_as_it_goes(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, stream=True, usage=False)
    items, error = await collect(executor, request)
    assert error is None
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    # 4 words of 6 bytes, a quarter of them.
    inputs = round(len(request.payload) / 4)
    assert tail.usage == Usage((("input_tokens", inputs), ("output_tokens", 6)), estimated=True)
    told = [i.usage_so_far for i in items if isinstance(i, StreamBatch) and i.usage_so_far]
    quantities = [dict(u.items)["output_tokens"] for u in told]
    assert quantities == sorted(quantities)
    assert quantities[-1] == 6


async def test_stream_usage_in_every_chunk_last_wins(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    fake.defaults = Script(chunks=4, usage="each")
    items, error = await collect(executor, make_request(fake.url, stream=True, usage=False))
    assert error is None
    assert isinstance(items[-1], StreamTail)
    assert items[-1].usage is not None
    assert dict(items[-1].usage.items)["output_tokens"] == 4


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_error_status_is_kept_whole(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, status: int, *, stream: bool
) -> None:
    request = make_request(fake.url, stream=stream, status=status, retry_after="7", error="no way")
    is_whole(await refusal(executor, request, stream=stream), status)


async def test_error_body_is_cut_at_a_mebibyte(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(fake.url, status=500, padding=3 << 20))
    assert len(caught.value.body) == 1 << 20


async def test_redirect_is_not_followed(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(fake.url, location="http://127.0.0.1:1/steal"))
    assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_REDIRECT")
    assert len(fake.records) == 1


async def test_error_in_a_200_body_is_a_failure(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    with pytest.raises(errors.UpstreamError, match="oops"):
        await executor.execute(make_request(fake.url, error_after=0, error="oops"))


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_error_event_before_content_is_raised_not_delivered(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, kind: str
) -> None:
    request = make_request(fake.url, kind, stream=True, error_after=0, error="oops")
    items, error = await collect(executor, request)
    assert not chunks_of(items)
    assert isinstance(error, errors.UpstreamError)
    assert error.message == "oops"
    assert error.sent is errors.Sent.YES


@pytest.mark.parametrize("kind", list(PATHS))
@pytest.mark.parametrize("way", [{"close_after": 3}, {"half_frame_after": 3}], ids=str)
async def test_stream_broken_off_delivers_whole_events_then_fails(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, kind: str, way: dict[str, Any]
) -> None:
    items, error = await collect(executor, make_request(fake.url, kind, stream=True, **way))
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (502, "UPSTREAM_TRUNCATED")
    assert error.sent is errors.Sent.YES
    text = b"".join(chunks_of(items))
    assert [b"word%d " % i in text for i in range(4)] == [True, True, True, False]
    last = items[-1]
    assert isinstance(last, StreamBatch)
    assert last.chunks[-1].endswith(b"\n\n")


async def test_stream_regular_end_without_finish_is_truncated(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, stream=True, usage=False, finish=False, done=False)
    items, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert error.reason == "UPSTREAM_TRUNCATED"
    assert len(chunks_of(items)) == 5


async def test_no_connection_is_not_sent(executor: OpenAICompatibleExecutor) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request("http://127.0.0.1:1/v1"))
    error = caught.value
    assert (error.http_status, error.reason) == (502, "UPSTREAM_CONNECTION")
    assert error.sent is errors.Sent.NO
    assert "127.0.0.1" not in error.message


async def test_dropped_before_the_head_is_unknown_and_never_sent_again(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(fake.url, drop=True))
    assert caught.value.reason == "UPSTREAM_CONNECTION"
    assert caught.value.sent is errors.Sent.UNKNOWN
    assert len(fake.records) == 1


async def test_pooled_connection_dropped_on_reuse_fails_also_for_get(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    """Aiohttp would send a GET again on a new connection; one call must be one request."""
    await executor.execute(make_request(fake.url))
    fake.defaults = Script(drop=True)
    message = executor_pb2.ExecutorHTTPRequest(method="GET", url=f"{fake.url}/models")
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.http_request(ExecutorHTTPRequest(message))
    assert caught.value.sent is errors.Sent.UNKNOWN
    assert (fake.connections, len(fake.records)) == (1, 2)


async def test_connections_are_reused(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    for _ in range(3):
        await executor.execute(make_request(fake.url))
        await collect(executor, make_request(fake.url, stream=True))
    assert fake.connections == 1


@pytest.mark.parametrize(
    ("stall", "sent", "chunks"),
    [("head", errors.Sent.UNKNOWN, 0), ("body", errors.Sent.YES, 0), ("2", errors.Sent.YES, 3)],
)
async def test_stalled_stream_is_a_504(
    executor: OpenAICompatibleExecutor,
    fake: FakeUpstream,
    stall: str,
    sent: errors.Sent,
    chunks: int,
) -> None:
    request = make_request(fake.url, stream=True, first_byte=1, idle=1, stall=stall)
    items, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason, error.sent) == (504, "UPSTREAM_TIMEOUT", sent)
    assert len(chunks_of(items)) == chunks
    await fake.until(lambda: fake.last.aborted)


@pytest.mark.parametrize("stall", ["head", "body"])
async def test_stalled_answer_is_a_504(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, stall: str
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(fake.url, first_byte=0.2, stall=stall))
    assert caught.value.http_status == 504


async def test_pace_slower_than_no_limit_but_steady_is_no_timeout(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, stream=True, first_byte=1.5, idle=1.5, chunks=30, delay_ms=60)
    _, error = await collect(executor, request)
    assert error is None


@pytest.mark.parametrize("stall", ["head", "body", "2"])
async def test_cancel_reaches_the_provider_within_100_ms(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream, stall: str
) -> None:
    took: list[float] = []
    # A busy machine may spoil some of them, not all.
    while len(took) < 5 and min(took, default=1.0) >= 0.1:
        asked = len(fake.records)
        request = make_request(fake.url, stream=True, first_byte=60, idle=60, stall=stall)
        began = asyncio.Event()
        task = asyncio.create_task(collect(executor, request, began))
        await fake.until(lambda asked=asked: len(fake.records) > asked)  # type: ignore[misc]
        if stall == "2":
            await began.wait()
        elif stall == "body":
            await fake.until(lambda: fake.last.status == 200 or fake.last.ended_at > 0)
        cancelled_at = time.time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fake.until(lambda: fake.last.aborted)
        took.append(fake.last.ended_at - cancelled_at)
    assert min(took) < 0.1, took


async def test_generator_closed_between_chunks_cuts_the_provider(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, stream=True, chunks=50, delay_ms=20)
    await leave_after_the_first_chunk(executor, request)
    await fake.until(lambda: fake.last.aborted)
    assert fake.last.chunks_sent < 10


async def test_slow_reader_holds_the_provider_back(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, stream=True, chunks=60_000, frames_per_write=50, idle=1)
    items = executor.execute_stream(request)
    async with contextlib.aclosing(items):
        await anext(items)
        await anext(items)
        await asyncio.sleep(1.3)  # longer than the silence that is allowed: what this is about
        # The sockets' buffers hold some megabytes; the stream has 8. Nobody waited, so it is no timeout.
        held = fake.last.chunks_sent
        assert held < 60_000
        await anext(items)


async def test_large_body_and_answer_pass(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    request = make_request(fake.url, padding=5 << 20)
    request.message.payload += b" " * (6 << 20)
    answer = await executor.execute(request)
    assert len(answer.payload) > 5 << 20
    assert fake.last.body_bytes == len(request.payload)


async def test_http_request_any_status_with_the_credential(
    executor: OpenAICompatibleExecutor, fake: FakeUpstream
) -> None:
    message = executor_pb2.ExecutorHTTPRequest(method="get", url=f"{fake.url}/models")
    message.headers["x-fake-status"].values.append("404")
    message.headers["authorization"].values.append("Bearer mine")
    message.secret.CopyFrom(make_request(fake.url).message.secret)
    opener = secrets.SecretOpener([KEY])
    answer = await executor.http_request(ExecutorHTTPRequest(message, opener, "openai-compatible"))
    assert answer.status == 404
    assert fake.last.headers["authorization"] == "Bearer test-key"
    message.url = "http://127.0.0.1:1/elsewhere"
    with pytest.raises(errors.PermissionDenied):
        await executor.http_request(ExecutorHTTPRequest(message, opener, "openai-compatible"))


async def test_unknown_operation_refused(executor: OpenAICompatibleExecutor) -> None:
    with pytest.raises(errors.InvalidRequest):
        await executor.execute(make_request("http://127.0.0.1:1", "count_tokens"))
