"""What every channel does, whoever stands at its other end (kernel/channels/port.py)."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.conftest import MESSAGE_LIMIT
from tests.fakes.probe_service import (
    BIDI,
    MISSING,
    SECRET_TEXT,
    STREAM,
    UNARY,
    Bytes,
    whose,
)

from patchbay import errors
from patchbay_gateway.kernel.channels.port import CALL_DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.contract.conftest import Wire

SOON = 60.0
"""Seconds within which what must happen has happened, on a busy machine too."""

ERRORS: list[errors.PatchbayError] = [
    cls("why ünd what to do", reason="A_REASON", metadata={"key": "value"}, retry_after=1.5)
    for cls in (
        errors.InvalidRequest,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.ResourceExhausted,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
    )
]


# Messages by reference have no size, and not to change them is the caller's duty.
COPYING = ["inprocess strict", "grpc"]


async def call(wire: Wire, value: bytes, deadline: float | None = SOON) -> bytes:
    answer: Any = await wire.channel.unary(UNARY, Bytes(value=value), deadline=deadline)
    return bytes(answer.value)


async def read(wire: Wire, value: bytes, into: list[bytes] | None = None) -> list[bytes]:
    """Read a whole stream; *into* holds what came before an error."""
    got = [] if into is None else into
    async for message in wire.channel.stream(STREAM, Bytes(value=value), deadline=None):
        got.append(bytes(message.value))
    return got


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await event.wait()


async def test_unary_answers(wire: Wire) -> None:
    assert await call(wire, b"hello") == b"echo hello"


async def test_unary_metadata_reaches_the_servicer(wire: Wire) -> None:
    answer = await wire.channel.unary(
        UNARY,
        Bytes(value=b"metadata"),
        deadline=SOON,
        metadata=(("patchbay-plugin", "echo"),),
    )
    assert answer.value == b"echo"


async def test_unary_deadline_is_seen_by_the_servicer(wire: Wire) -> None:
    await call(wire, b"hello", deadline=30.0)
    assert wire.servicer.remaining is not None
    assert 20.0 < wire.servicer.remaining < 30.5  # gRPC rounds up


async def reached(wire: Wire) -> None:
    """Connect, so that a deadline that shall pass in the servicer does not pass on the way there."""
    await call(wire, b"hello")
    wire.servicer.started.clear()
    wire.servicer.finished.clear()


async def test_unary_deadline_passes_raises_and_cancels_the_servicer(wire: Wire) -> None:
    await reached(wire)
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await call(wire, b"hang", deadline=0.5)
    assert caught.value.reason == CALL_DEADLINE
    await within(wire.servicer.cancelled)


async def test_unary_deadline_passes_though_the_servicer_works_on(wire: Wire) -> None:
    """A servicer that is slow to clean up does not hold its caller."""
    await reached(wire)
    with pytest.raises(errors.DeadlineExceeded):
        async with asyncio.timeout(SOON):
            await call(wire, b"hang, then work on", deadline=0.5)
    wire.servicer.go_on.set()
    await within(wire.servicer.finished)


async def test_unary_caller_cancelled_cancels_the_servicer(wire: Wire) -> None:
    task = asyncio.create_task(call(wire, b"hang"))
    await within(wire.servicer.started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await within(wire.servicer.cancelled)


async def test_unary_servicer_gives_up_raises_cancelled_error_of_the_tree(wire: Wire) -> None:
    """The caller's task goes on: it was not cancelled itself."""
    with pytest.raises(errors.Cancelled):
        await call(wire, b"give up")


async def test_unary_missing_method_is_a_failed_precondition(wire: Wire) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await wire.channel.unary(MISSING, Bytes(), deadline=SOON)
    assert caught.value.reason == "UNIMPLEMENTED"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_unary_error_arrives_whole(wire: Wire, error: errors.PatchbayError) -> None:
    error.sent = errors.Sent.NO
    wire.servicer.error = error
    with pytest.raises(type(error)) as caught:
        await call(wire, b"raise")
    arrived = caught.value
    assert (arrived.message, arrived.reason, arrived.metadata) == (
        error.message,
        "A_REASON",
        {"key": "value"},
    )
    assert arrived.retry_after == pytest.approx(1.5)
    assert arrived.sent is errors.Sent.NO


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 418, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("streamed", [False, True])
async def test_upstream_error_arrives_whole(wire: Wire, status: int, streamed: bool) -> None:
    wire.servicer.error = errors.UpstreamError(
        status,
        headers=[(b"x-a", b"1"), (b"x-a", b"2"), (b"x-latin", "ü".encode("latin-1"))],
        body=b'{"error":"\xff"}',
        content_type="application/json",
        retry_after=0.25,
        scope=errors.FaultScope.CREDENTIAL,
        sent=errors.Sent.YES,
    )
    with pytest.raises(errors.UpstreamError) as caught:
        await (read(wire, b"two, then raise") if streamed else call(wire, b"raise"))
    arrived = caught.value
    assert arrived.http_status == status
    assert sorted(arrived.headers) == sorted(wire.servicer.error.headers)
    assert arrived.body == b'{"error":"\xff"}'
    assert arrived.content_type == "application/json"
    assert arrived.retry_after == pytest.approx(0.25)
    assert (arrived.scope, arrived.sent) == (errors.FaultScope.CREDENTIAL, errors.Sent.YES)


async def test_upstream_error_body_of_a_mebibyte_arrives(wire: Wire) -> None:
    wire.servicer.error = errors.UpstreamError(500, body=bytes(range(256)) * 4096)
    with pytest.raises(errors.UpstreamError) as caught:
        await call(wire, b"raise")
    assert caught.value.body == bytes(range(256)) * 4096


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("error", [ValueError(SECRET_TEXT), errors.Internal(SECRET_TEXT)])
async def test_unmapped_error_tells_an_id_and_no_text(
    wire: Wire, error: Exception, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The id is in the log beside the text."""
    wire.servicer.error = error
    with caplog.at_level(logging.ERROR), pytest.raises(errors.Internal) as caught:
        await (read(wire, b"two, then raise") if streamed else call(wire, b"raise"))
    assert SECRET_TEXT not in str(caught.value)
    error_id = caught.value.message.split()[-1]
    assert any(error_id in record.getMessage() for record in caplog.records)
    assert SECRET_TEXT in caplog.text


@pytest.mark.parametrize("wire", COPYING, indirect=True)
async def test_request_too_large_is_refused(wire: Wire) -> None:
    with pytest.raises(errors.ResourceExhausted) as caught:
        await call(wire, b"x" * (MESSAGE_LIMIT + 1))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("wire", COPYING, indirect=True)
@pytest.mark.parametrize("streamed", [False, True])
async def test_answer_too_large_is_refused(wire: Wire, streamed: bool) -> None:
    with pytest.raises(errors.ResourceExhausted) as caught:
        await (read(wire, b"one, then large") if streamed else call(wire, b"large"))
    assert caught.value.reason == "ANSWER_TOO_LARGE"


@pytest.mark.parametrize("streamed", [False, True])
async def test_context_of_the_caller_does_not_cross(wire: Wire, streamed: bool) -> None:
    token = whose.set("the caller")
    try:
        if streamed:
            stream = wire.channel.stream(STREAM, Bytes(value=b"whose"), deadline=SOON)
            assert [m.value async for m in stream] == [b"nobody"]
        else:
            assert await call(wire, b"whose") == b"nobody"
    finally:
        whose.reset(token)


@pytest.mark.parametrize("wire", COPYING, indirect=True)
async def test_request_changed_after_the_call_is_not_seen(wire: Wire) -> None:
    request = Bytes(value=b"hang")
    task = asyncio.create_task(wire.channel.unary(UNARY, request, deadline=SOON))
    await within(wire.servicer.started)
    request.value = b"changed"
    assert wire.servicer.seen[0].value == b"hang"
    wire.servicer.seen[0].value = b"changed by the servicer"
    assert request.value == b"changed"
    task.cancel()
    await asyncio.wait([task])


async def test_stream_yields_in_order_and_ends(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"three"), deadline=SOON)
    assert [m.value async for m in stream] == [b"0", b"1", b"2"]
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()
    await stream.aclose()
    await stream.aclose()


async def test_unary_begun_as_the_channel_closes_ends(wire: Wire) -> None:
    """Its servicer never ran, and nobody else would tell the caller."""
    calling = asyncio.ensure_future(wire.channel.unary(UNARY, Bytes(value=b"hang"), deadline=None))
    await asyncio.sleep(0)
    await wire.channel.close()
    done, _ = await asyncio.wait({calling}, timeout=SOON)
    calling.cancel()
    assert done
    assert isinstance(calling.exception(), errors.PatchbayError)


async def test_stream_never_iterated_sends_nothing(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"three"), deadline=SOON)
    await stream.aclose()
    await call(wire, b"hello")
    assert len(wire.servicer.seen) == 1


async def test_stream_terminal_error_comes_after_the_chunks(wire: Wire) -> None:
    wire.servicer.error = errors.NotFound("gone", reason="GONE")
    got: list[bytes] = []
    with pytest.raises(errors.NotFound) as caught:
        await read(wire, b"two, then raise", got)
    assert got == [b"0", b"1"]
    assert caught.value.reason == "GONE"


async def test_stream_servicer_gives_up_raises_cancelled_of_the_tree(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"one, then give up"), deadline=None)
    assert (await stream.__anext__()).value == b"0"
    with pytest.raises(errors.Cancelled):
        await stream.__anext__()


async def test_stream_deadline_passes_raises_and_cancels_the_servicer(wire: Wire) -> None:
    await reached(wire)
    stream = wire.channel.stream(STREAM, Bytes(value=b"one, then hang"), deadline=1.0)
    assert (await stream.__anext__()).value == b"0"
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await stream.__anext__()
    assert caught.value.reason == CALL_DEADLINE
    await within(wire.servicer.cancelled)
    await stream.aclose()


async def test_stream_reader_cancelled_cancels_the_servicer(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"one, then hang"), deadline=None)
    assert (await stream.__anext__()).value == b"0"
    task = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await within(wire.servicer.cancelled)
    await stream.aclose()


@pytest.mark.parametrize("value", [b"one, then hang", b"endless"])
async def test_stream_closed_early_cancels_the_servicer(wire: Wire, value: bytes) -> None:
    """Where it waits for work of its own, and where it waits for its reader."""
    stream = wire.channel.stream(STREAM, Bytes(value=value), deadline=None)
    await stream.__anext__()
    await stream.aclose()
    await within(wire.servicer.cancelled)
    await within(wire.servicer.finished)


async def test_stream_cancelled_then_read_raises_cancelled_of_the_tree(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"one, then hang"), deadline=None)
    await stream.__anext__()
    stream.cancel()
    with pytest.raises(errors.Cancelled):
        await stream.__anext__()
    await within(wire.servicer.cancelled)
    await stream.aclose()


async def settled(count: Callable[[], int]) -> int:
    """Return *count* once it has stood still for a while."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.3:
        await asyncio.sleep(0.02)
        if count() != last:
            last, since = count(), time.monotonic()
    return last


async def test_stream_stopped_reader_stops_the_servicer(wire: Wire) -> None:
    """Within 1 MiB (32 messages of 32 KiB) and one message in each hand."""
    stream = wire.channel.stream(STREAM, Bytes(value=b"endless"), deadline=None)
    await stream.__anext__()
    assert await settled(lambda: wire.servicer.produced) <= 32 + 3
    for _ in range(100):
        await stream.__anext__()
    assert await settled(lambda: wire.servicer.produced) <= 100 + 32 + 35
    await stream.aclose()


async def test_stream_of_small_messages_stopped_reader_stops_the_servicer(wire: Wire) -> None:
    stream = wire.channel.stream(STREAM, Bytes(value=b"endless, small"), deadline=None)
    await stream.__anext__()
    produced = await settled(lambda: wire.servicer.produced)
    # Over gRPC bytes are bounded, not messages; each carries a frame header besides its 18 bytes.
    assert produced <= (66 if wire.kind != "grpc" else (1 << 20) // 18)
    await stream.aclose()


async def test_stream_long_keeps_memory_flat(wire: Wire) -> None:
    """64 MiB pass through a reader that now and then stops."""
    stream = wire.channel.stream(STREAM, Bytes(value=b"endless"), deadline=None)
    for _ in range(200):
        await stream.__anext__()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(2000):
        await stream.__anext__()
        if number % 500 == 0:
            await asyncio.sleep(0.02)
    await stream.aclose()
    # KiB; what the allocator of a long run adds beside is not what passed.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 << 10


async def requests(*values: bytes, then: asyncio.Event | None = None) -> AsyncIterator[Any]:
    for value in values:
        yield Bytes(value=value)
    if then is not None:
        await then.wait()


async def test_bidi_answers_each_and_ends(wire: Wire) -> None:
    stream = wire.channel.bidi(BIDI, requests(b"a", b"b"), deadline=SOON)
    assert [m.value async for m in stream] == [b"echo a", b"echo b", b"end"]
    await stream.aclose()


async def test_bidi_servicer_ends_first_ends_the_call(wire: Wire) -> None:
    stream = wire.channel.bidi(BIDI, requests(b"a", b"bye", then=asyncio.Event()), deadline=SOON)
    assert [m.value async for m in stream] == [b"echo a"]
    await stream.aclose()


async def test_bidi_error_of_the_servicer_arrives(wire: Wire) -> None:
    wire.servicer.error = errors.Aborted("lost")
    stream = wire.channel.bidi(BIDI, requests(b"a", b"raise", then=asyncio.Event()), deadline=SOON)
    with pytest.raises(errors.Aborted):
        async for _ in stream:
            pass
    await stream.aclose()


async def test_bidi_error_of_the_requests_returns_to_the_caller(wire: Wire) -> None:
    async def broken() -> AsyncIterator[Any]:
        yield Bytes(value=b"a")
        await wire.servicer.started.wait()
        raise LookupError("the caller's own")

    stream = wire.channel.bidi(BIDI, broken(), deadline=SOON)
    with pytest.raises(LookupError):
        async for _ in stream:
            pass
    await within(wire.servicer.finished)
    await stream.aclose()


async def test_bidi_closed_early_cancels_the_servicer(wire: Wire) -> None:
    stream = wire.channel.bidi(BIDI, requests(b"a", then=asyncio.Event()), deadline=None)
    assert (await stream.__anext__()).value == b"echo a"
    await stream.aclose()
    await within(wire.servicer.cancelled)


async def test_bidi_servicer_that_does_not_read_stops_the_requests(wire: Wire) -> None:
    made = 0

    async def endless() -> AsyncIterator[Any]:
        nonlocal made
        yield Bytes(value=b"stop reading")
        while True:
            made += 1
            yield Bytes(value=b"x" * (32 << 10))

    stream = wire.channel.bidi(BIDI, endless(), deadline=None)
    reading = asyncio.ensure_future(stream.__anext__())
    await within(wire.servicer.started)
    assert await settled(lambda: made) <= 32 + 3
    wire.servicer.go_on.set()
    await reading
    await stream.aclose()


async def test_many_calls_leave_nothing_behind(
    wire: Wire, no_leaked_tasks: Callable[[], set[asyncio.Task[object]]]
) -> None:
    async def one(number: int) -> None:
        if number % 3 == 0:
            with pytest.raises(errors.DeadlineExceeded):
                await call(wire, b"hang", deadline=0.02)
        elif number % 3 == 1:
            await call(wire, b"hello")
        else:
            stream = wire.channel.stream(STREAM, Bytes(value=b"endless"), deadline=None)
            await stream.__anext__()
            await stream.aclose()

    before = len(no_leaked_tasks())
    await asyncio.gather(*(one(number) for number in range(60)))
    async with asyncio.timeout(SOON):
        while len(no_leaked_tasks()) > before + 3:  # noqa: ASYNC110 - tasks end without a sign
            await asyncio.sleep(0.01)


async def test_close_ends_calls_in_flight_with_an_error_of_the_tree(wire: Wire) -> None:
    task = asyncio.create_task(call(wire, b"hang"))
    await within(wire.servicer.started)
    await wire.channel.close()
    with pytest.raises(errors.PatchbayError):
        await task
    await within(wire.servicer.finished)
