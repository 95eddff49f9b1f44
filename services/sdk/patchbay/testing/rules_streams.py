"""Rules of streams: order, ends, cancellation, readers that are slow. Not here: unary calls."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final

from patchbay.plugin.v1 import stream_chunk_interceptor_pb2, transform_pb2
from patchbay.testing import requests
from patchbay.testing.answers import header_complaint
from patchbay.testing.connection import CallFailed
from patchbay.testing.rules import NOT_DECLARED, Broken, Rule, Skipped
from patchbay.testing.rules_calls import PROMPT, TRIES, none_in_flight
from patchbay.testing.upstream import COUNT, Mode

if TYPE_CHECKING:
    from patchbay.testing.connection import Connection
    from patchbay.testing.rules import Subject

MOST: Final = 16 << 20
"""Bytes that may be under way between a provider and a reader who stands still, all buffers together."""
_STANDSTILL: Final = 0.5
_NUMBER: Final = re.compile(rb"\bn(\d+) ")
_EXECUTOR: Final = ("ExecutorService", "ExecuteStream")
_INTERCEPTOR: Final = ("StreamChunkInterceptorService", "InterceptStreamChunk")
_UNCHANGED: Final = stream_chunk_interceptor_pb2.CHUNK_FATE_UNCHANGED
_TRANSFORMS: Final = {
    "response_translator": ("ResponseTranslatorService", "TranslateResponseStream"),
    "response_before_translator": (
        "ResponseBeforeTranslatorService",
        "NormalizeResponseStream",
    ),
    "response_after_translator": ("ResponseAfterTranslatorService", "NormalizeResponseStream"),
}


async def _executor(subject: Subject, mode: Mode) -> tuple[Connection, Any]:
    facts = await subject.facts()
    if not facts.capabilities.HasField("executor"):
        raise Skipped(NOT_DECLARED)
    subject.upstream.expect(mode)
    call = facts.connection.stream(*_EXECUTOR, requests.executor_request(facts, stream=True))
    return facts.connection, call


async def _order(subject: Subject) -> None:
    connection, call = await _executor(subject, Mode.NUMBERED)
    path = "/".join(_EXECUTOR)
    numbers: list[int] = []
    kinds: list[str] = []
    try:
        while (message := await connection.read(call, path)) is not None:
            kind = message.WhichOneof("message") or "nothing"
            if kind == "head" and (found := header_complaint(message.head.headers)):
                raise Broken(f"in the head {found}")
            if kind == "batch":
                if not message.batch.chunks or not all(message.batch.chunks):
                    raise Broken("a batch without chunks, or an empty chunk")
                for chunk in message.batch.chunks:
                    numbers += map(int, _NUMBER.findall(chunk))
            if kind != "batch" or kinds[-1:] != ["batch"]:
                kinds.append(kind)
    except CallFailed as error:
        if not error.failure.reason or error.failure.reason == "INTERNAL":
            raise Broken(str(error)) from None
        raise Skipped(f"the executor does not stream here: {error}") from None
    finally:
        call.cancel()
        subject.upstream.expect(Mode.ANSWER)
    if kinds not in (["head", "batch", "tail"], ["head", "tail"]):
        raise Broken(f"not one head, batches, one tail, but {kinds}")
    if numbers and numbers != list(range(COUNT)):
        raise Broken(
            f"the provider's {COUNT} chunks came as {numbers[:8]}…, {len(numbers)} of them"
        )


async def _backpressure(subject: Subject) -> None:
    connection, call = await _executor(subject, Mode.ENDLESS)
    path = "/".join(_EXECUTOR)
    try:
        await connection.read(call, path)
        await _arrived(subject)
        until = time.monotonic() + 10
        seen = -1
        while seen != subject.upstream.sent:
            seen = subject.upstream.sent
            if seen > MOST or time.monotonic() > until:
                raise Broken(
                    f"nobody reads, and the executor took {seen >> 20} MiB from its provider"
                )
            await asyncio.sleep(_STANDSTILL)
    except CallFailed as error:
        raise Skipped(f"the executor does not stream here: {error}") from None
    finally:
        call.cancel()
        subject.upstream.expect(Mode.ANSWER)


async def _cancellation(subject: Subject) -> None:
    facts = await subject.facts()
    if facts.capabilities.HasField("executor"):
        took = float("inf")
        for _ in range(TRIES):
            took = min(took, await _hang_up(subject))
            if took <= PROMPT:
                return
        told = "never" if took > 60 else f"after {took * 1000:.0f} ms"
        raise Broken(f"a stream was cancelled, and the provider's connection closed {told}")
    running = subject.running
    if not facts.capabilities.response_stream_interceptor:
        raise Skipped("the plugin has no streams of its own")
    if running is None or running.in_flight() is None:
        raise Skipped("the end of a stream cannot be seen from here")
    for _ in range(TRIES):
        call = facts.connection.stream(*_INTERCEPTOR)
        await call.write(_start())
        await call.read()
        call.cancel()
        if await none_in_flight(subject, 2 * PROMPT):
            return
    raise Broken("a cancelled stream still runs in the plugin")


async def _arrived(subject: Subject) -> None:
    """Return when the provider was called; Skipped when it is not."""
    try:
        await asyncio.wait_for(subject.upstream.arrived.wait(), 2.0)
    except TimeoutError:
        raise Skipped("the executor does not call the provider that it was sent to") from None


async def _hang_up(subject: Subject) -> float:
    """Return the seconds from the cancellation of a stream to the end of the provider's connection."""
    connection, call = await _executor(subject, Mode.ENDLESS)
    try:
        await connection.read(call, "/".join(_EXECUTOR))
        await _arrived(subject)
        cancelled = time.monotonic()
    except CallFailed as error:
        raise Skipped(f"the executor does not stream here: {error}") from None
    finally:
        call.cancel()
    try:
        await asyncio.wait_for(subject.upstream.hung_up.wait(), 1.0)
    except TimeoutError:
        return float("inf")
    finally:
        subject.upstream.expect(Mode.ANSWER)
    return subject.upstream.hung_up_at - cancelled


def _start() -> stream_chunk_interceptor_pb2.StreamChunkInterceptRequest:
    message = stream_chunk_interceptor_pb2.StreamChunkInterceptRequest(
        request_id="01CONFORMANCE0000000000000",
        trace_id="conformance-trace",
        source_format="openai",
        model=requests.MODEL,
        requested_model=requests.MODEL,
        original_request=requests.CHAT,
        chunk_index=-1,
        metadata=b"{}",
    )
    message.response_headers["content-type"].values.append("text/event-stream")
    return message


async def _interceptor(subject: Subject) -> None:
    facts = await subject.facts()
    if not facts.capabilities.response_stream_interceptor:
        raise Skipped(NOT_DECLARED)
    chunk = stream_chunk_interceptor_pb2.StreamChunkInterceptRequest
    sent = [_start()]
    sent += [chunk(chunk_index=0, body=requests.CHUNK % 0)]
    sent += [
        chunk(chunk_index=i, body=requests.CHUNK % i, previous=_UNCHANGED) for i in range(1, 40)
    ]
    waiting = [requests.CHUNK % i for i in range(41, 44)]
    sent += [
        chunk(chunk_index=40, body=requests.CHUNK % 40, previous=_UNCHANGED, more=waiting),
        chunk(chunk_index=44, body=requests.CHUNK % 44, previous=_UNCHANGED),
    ]
    path = "/".join(_INTERCEPTOR)
    call = facts.connection.stream(*_INTERCEPTOR, seconds=20)
    try:
        for message in sent:
            await call.write(message)
        await call.done_writing()
        for message in sent:
            answer = await facts.connection.read(call, path)
            if answer is None:
                raise Broken(f"no answer to chunk {message.chunk_index}")
            found = [answer.chunk_index, *(more.chunk_index for more in answer.more)]
            first = message.chunk_index
            if found != list(range(first, first + 1 + len(message.more))):
                raise Broken(f"chunk {first} and {len(message.more)} more were answered as {found}")
        if await facts.connection.read(call, path) is not None:
            raise Broken("more answers than chunks")
    except CallFailed as error:
        if not error.failure.reason or error.failure.reason == "INTERNAL":
            raise Broken(str(error)) from None
    finally:
        call.cancel()


async def _transforms(subject: Subject) -> None:
    facts = await subject.facts()
    found = [method for flag, method in _TRANSFORMS.items() if getattr(facts.capabilities, flag)]
    if not found:
        raise Skipped(NOT_DECLARED)
    for service, method in found:
        call = facts.connection.stream(service, method, seconds=20)
        path = f"{service}/{method}"
        try:
            for number in range(20):
                await call.write(
                    transform_pb2.ResponseTransformRequest(
                        from_format="claude",
                        to_format="openai",
                        model=requests.MODEL,
                        stream=True,
                        operation="chat",
                        original_request=b"" if number else requests.CHAT,
                        translated_request=b"" if number else requests.CHAT,
                        body=requests.CHUNK % number,
                    )
                )
                if await facts.connection.read(call, path) is None:
                    raise Broken(f"{path}: no answer to chunk {number}")
            await call.done_writing()
            if await facts.connection.read(call, path) is not None:
                raise Broken(f"{path}: more answers than chunks")
        except CallFailed as error:
            if not error.failure.reason or error.failure.reason == "INTERNAL":
                raise Broken(str(error)) from None
        finally:
            call.cancel()


RULES: Final = (
    Rule(
        "streams.order",
        "An answer is one head, batches without empty chunks, one tail, in the provider's order.",
        "a provider of 200 numbered chunks",
        _order,
    ),
    Rule(
        "streams.backpressure",
        "A reader who stops stops the producer, with bounded memory between them.",
        "a provider without an end, an answer that nobody reads: 16 MiB at most are taken",
        _backpressure,
    ),
    Rule(
        "streams.cancellation",
        "A cancelled stream is over within 100 ms, also towards the provider.",
        "an executor's stream from an endless provider is cancelled; the best of 2",
        _cancellation,
    ),
    Rule(
        "streams.interceptor",
        "Every chunk is answered once, in order, under its index, also those that come together.",
        "45 chunks, 3 of them in `more`",
        _interceptor,
    ),
    Rule(
        "streams.transform",
        "Every chunk of a streamed translation is answered once.",
        "20 chunks to each",
        _transforms,
    ),
)
"""Streams."""
