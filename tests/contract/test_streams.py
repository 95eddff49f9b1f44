"""Stream chunk interceptors and streamed transforms over both channels: order, history, state, ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors, keys
from patchbay.headers import header, merged
from patchbay.interceptors import (
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
    StreamStart,
)
from patchbay.plugin.v1 import stream_chunk_interceptor_pb2 as pb
from patchbay.plugin.v1 import transform_pb2
from patchbay.serve import PluginServer, build_servicers
from patchbay.tokens import TokenSource
from patchbay.transform import ResponseTransformRequest, ResponseTranslator
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from patchbay_gateway.kernel.channels.port import Channel

KEY = b"test-key of the stream plugin..."


class Streams(StreamChunkInterceptor[list[str]], ResponseTranslator):
    """Upper-cases chunks, drops `drop`, fails on `fail`, and tells what it saw."""

    id = "streams"
    name = "Streams"
    version = "1.0"
    author = "tests"

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes, list[bytes]]] = []
        self.starts: list[StreamStart] = []
        self.headers: list[str] = []
        self.closed: list[list[str]] = []
        self.all_closed = asyncio.Event()

    async def open_stream(self, start: StreamStart) -> list[str]:
        self.starts.append(start)
        return [start.request_id]

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: list[str]
    ) -> StreamChunkInterceptResponse:
        state.append("start")
        self.headers.append(header(request.response_headers, "x-state"))
        return StreamChunkInterceptResponse(headers=[(b"x-new", b"1")], clear_headers=["x-old"])

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: list[str]
    ) -> StreamChunkInterceptResponse | None:
        state.append(request.body.decode())
        self.headers.append(header(request.response_headers, "x-state"))
        self.seen.append((request.chunk_index, request.body, list(request.history_chunks)))
        if request.body == b"fail":
            raise errors.FailedPrecondition("told to", reason="TOLD_TO")
        if request.body == b"drop":
            return StreamChunkInterceptResponse(drop_chunk=True)
        if request.body == b"same":
            return None
        return StreamChunkInterceptResponse(body=request.body.upper())

    async def close_stream(self, state: list[str]) -> None:
        self.closed.append(state)
        self.all_closed.set()

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        seen = request.state.setdefault("seen", [])
        seen.append(request.body)
        if request.body == b"keep":
            return None
        return b"%d:%s:%s" % (len(seen), request.original_request, request.body)


@pytest.fixture
def plugin() -> Streams:
    return Streams()


@pytest.fixture(params=["inprocess strict", "grpc"])
async def channel(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    plugin: Streams,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after all is closed
) -> AsyncIterator[Channel]:
    plugin_keys = {"streams": [KEY]}
    if request.param == "grpc":
        server = PluginServer([plugin], plugin_keys)
        await server.start(f"unix:{tmp_path}/s")
        remote = RemoteChannel(f"unix:{tmp_path}/s")
        yield remote
        await remote.close()
        await server.stop()
    else:
        local = InProcessChannel(build_servicers([plugin], plugin_keys), strict=True)
        yield local
        await local.close()


def metadata() -> tuple[tuple[str, str], ...]:
    token = TokenSource(keys.channel_key(KEY), "streams", "host-1").metadata()
    return (("patchbay-plugin", "streams"), *token)


def begin(**fields: Any) -> pb.StreamChunkInterceptRequest:
    message = pb.StreamChunkInterceptRequest(
        request_id="r-1", trace_id="t-1", source_format="openai", chunk_index=-1, **fields
    )
    message.response_headers["x-state"].values.append("first")
    return message


def chunk(
    index: int,
    body: bytes,
    previous: pb.ChunkFate.ValueType = pb.CHUNK_FATE_UNCHANGED,
    previous_body: bytes = b"",
) -> pb.StreamChunkInterceptRequest:
    return pb.StreamChunkInterceptRequest(
        chunk_index=index, body=body, previous=previous, previous_body=previous_body
    )


async def sent(
    messages: Sequence[pb.StreamChunkInterceptRequest],
) -> AsyncIterator[pb.StreamChunkInterceptRequest]:
    for message in messages:
        yield message


async def run(
    channel: Channel, *messages: pb.StreamChunkInterceptRequest
) -> list[pb.StreamChunkInterceptResponse]:
    call = channel.bidi(
        methods.INTERCEPT_STREAM_CHUNK, sent(messages), deadline=60, metadata=metadata()
    )
    try:
        return [answer async for answer in call]
    finally:
        await call.aclose()


async def test_each_message_is_answered_in_order(channel: Channel) -> None:
    answers = await run(
        channel,
        begin(),
        chunk(0, b"a", pb.CHUNK_FATE_UNSPECIFIED),
        chunk(1, b"drop"),
        chunk(3, b"same", pb.CHUNK_FATE_DROPPED),
    )
    assert [(a.chunk_index, a.body, a.drop_chunk) for a in answers] == [
        (-1, b"", False),
        (0, b"A", False),
        (1, b"", True),
        (3, b"", False),
    ]
    assert answers[0].headers["x-new"].values == ["1"]
    assert answers[0].clear_headers == ["x-old"]


async def test_history_is_what_was_delivered(channel: Channel, plugin: Streams) -> None:
    """`unchanged` is what this plugin answered, `replaced` what came of it later."""
    await run(
        channel,
        begin(),
        chunk(0, b"a", pb.CHUNK_FATE_UNSPECIFIED),
        chunk(1, b"same"),
        chunk(2, b"b", pb.CHUNK_FATE_UNCHANGED),
        chunk(3, b"drop", pb.CHUNK_FATE_REPLACED, b"later"),
        chunk(4, b"c", pb.CHUNK_FATE_DROPPED),
        chunk(5, b"d", pb.CHUNK_FATE_DROPPED),
    )
    assert plugin.seen == [
        (0, b"a", []),
        (1, b"same", [b"A"]),
        (2, b"b", [b"A", b"same"]),
        (3, b"drop", [b"A", b"same", b"later"]),
        (4, b"c", [b"A", b"same", b"later"]),
        (5, b"d", [b"A", b"same", b"later"]),
    ]


async def test_chunks_that_wait_together_are_answered_together(
    channel: Channel, plugin: Streams
) -> None:
    together = chunk(0, b"a", pb.CHUNK_FATE_UNSPECIFIED)
    together.more.extend([b"drop", b"same", b"b"])
    answers = await run(channel, begin(), together, chunk(4, b"c"))
    assert [(a.chunk_index, a.body, a.drop_chunk) for a in answers[1].more] == [
        (1, b"", True),
        (2, b"", False),
        (3, b"B", False),
    ]
    assert answers[2].chunk_index == 4
    assert plugin.seen[-1] == (4, b"c", [b"A", b"same", b"B"])
    assert plugin.seen[2] == (2, b"same", [b"A"])


async def test_start_and_state_are_of_the_stream(channel: Channel, plugin: Streams) -> None:
    first = begin(model="m-1", requested_model="m", original_request=b"{}", metadata=b'{"k":[1]}')
    first.request_headers["x-a"].values.append("b")
    await asyncio.gather(run(channel, first, chunk(0, b"x")), run(channel, begin()))
    start = next(start for start in plugin.starts if start.model)
    assert (start.request_id, start.trace_id, start.source_format) == ("r-1", "t-1", "openai")
    assert (start.model, start.requested_model, start.original_request) == ("m-1", "m", b"{}")
    assert (start.request_headers, start.metadata) == ([(b"x-a", b"b")], {"k": [1]})
    assert sorted(plugin.closed) == [["r-1", "start"], ["r-1", "start", "x"]]


async def test_headers_are_those_last_told(channel: Channel, plugin: Streams) -> None:
    later = chunk(1, b"b")
    later.response_headers_changed = True
    later.response_headers["x-state"].values.append("second")
    await run(channel, begin(), chunk(0, b"a", pb.CHUNK_FATE_UNSPECIFIED), later, chunk(2, b"c"))
    assert plugin.headers == ["first", "first", "second", "second"]


async def test_an_error_ends_the_stream_and_frees_it(channel: Channel, plugin: Streams) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await run(channel, begin(), chunk(0, b"fail", pb.CHUNK_FATE_UNSPECIFIED))
    assert caught.value.reason == "TOLD_TO"
    await asyncio.wait_for(plugin.all_closed.wait(), 30)


async def test_a_cancelled_stream_is_freed(channel: Channel, plugin: Streams) -> None:
    never = asyncio.Event()

    async def unfinished() -> AsyncIterator[pb.StreamChunkInterceptRequest]:
        yield begin()
        await never.wait()

    call = channel.bidi(
        methods.INTERCEPT_STREAM_CHUNK, unfinished(), deadline=60, metadata=metadata()
    )
    assert (await call.__anext__()).chunk_index == -1
    await call.aclose()
    await asyncio.wait_for(plugin.all_closed.wait(), 30)
    assert plugin.closed == [["r-1", "start"]]


async def test_a_stream_begins_with_headers(channel: Channel) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await run(channel, chunk(0, b"a"))
    assert caught.value.reason == "STREAM_NOT_BEGUN"


async def test_chunks_of_an_answer_are_translated_one_by_one(channel: Channel) -> None:
    """The request's bodies cross once and are there for each chunk; None passes a chunk on."""

    async def chunks() -> AsyncIterator[transform_pb2.ResponseTransformRequest]:
        for number, body in enumerate((b"a", b"keep", b"c")):
            yield transform_pb2.ResponseTransformRequest(
                stream=True, body=body, original_request=b"{}" if number == 0 else b""
            )

    call = channel.bidi(
        methods.TRANSLATE_RESPONSE_STREAM, chunks(), deadline=60, metadata=metadata()
    )
    assert [answer.body async for answer in call] == [b"1:{}:a", b"", b"3:{}:c"]
    await call.aclose()


def test_headers_merge_by_clearing_first() -> None:
    current = [(b"x-a", b"1"), (b"x-b", b"1"), (b"x-b", b"2"), (b"x-c", b"1")]
    changed = merged(current, [(b"X-B", b"3"), (b"x-a", b"4")], ["X-A", "x-c"])
    assert changed == [(b"x-b", b"3"), (b"x-a", b"4")]
