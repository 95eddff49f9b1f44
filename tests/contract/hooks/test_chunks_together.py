"""Chunks that came together go to plugins together, and mean what they mean one by one; both channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.interceptors import (
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
)
from patchbay.transform import (
    ResponseAfterTranslator,
    ResponseBeforeTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)
from patchbay_gateway.edge.translation import Formats, StreamTranslation, Translation
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.response_interceptors import Executed
from patchbay_gateway.plugins.stream_interceptors import StreamChain, StreamInterceptors
from patchbay_gateway.translate.native import native_registry
from patchbay_gateway.translate.port import Context

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
EXECUTED = Executed("up", [], b"{}", b"")
FLAG = "response_stream_interceptor"
PATIENCE = 30.0
PATIENT: dict[str, Any] = {
    "timeouts": dict.fromkeys(
        (
            FLAG,
            "response_before_translator",
            "response_translator",
            "response_after_translator",
        ),
        PATIENCE,
    )
}
"""A busy machine may take its time."""


class Listening:
    """A channel that keeps the messages of streams as they pass."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.sent: list[Any] = []

    def bidi(self, method: Any, requests: AsyncIterable[Any], **how: Any) -> Any:
        return self._channel.bidi(method, self._kept(requests), **how)

    async def _kept(self, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for message in requests:
            self.sent.append(message)
            yield message

    @property
    def sizes(self) -> list[int]:
        """Chunks in each message, the first, which is about headers, apart."""
        return [1 + len(message.more) for message in self.sent[1:]]


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Editor(Named, StreamChunkInterceptor[None]):
    """Drops `drop`, fails at `boom`, capitals for the rest; keeps what it was told."""

    id: ClassVar = "editor"

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.history: list[bytes] = []

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        self.indexes.append(request.chunk_index)
        self.history = list(request.history_chunks)
        if request.body == b"boom":
            raise errors.FailedPrecondition("boom", reason="BOOM")
        return StreamChunkInterceptResponse(
            body=request.body.upper(),
            drop_chunk=request.body == b"drop",
            headers=[(b"x-at", b"%d" % request.chunk_index)],
        )


class Second(Editor):
    id: ClassVar = "second"


class Steps:
    """Time that goes on with each look at it: every answer takes a step."""

    def __init__(self, step: float = 0.0) -> None:
        self.step = step
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self.step
        return self._now


async def begun(hosted: Hosted, timer: Steps | None = None) -> StreamChain:
    calls = PluginCalls(hosted.registry, timer=timer or Steps())
    interceptors = StreamInterceptors(hosted.hooks, calls)
    execution = hosted.execution(stream=True)
    chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
    await chain.begin()
    return chain


def listening(hosted: Hosted, plugin: str, flag: str = FLAG) -> Listening:
    member = hosted.registry.pick_able(plugin, flag, [])
    assert member is not None
    found = Listening(member.channel)
    member.channel = found  # type: ignore[assignment] # all of it that streams use
    return found


async def test_waiting_chunks_cross_in_one_message_once_the_plugin_is_known_to_be_quick(
    channel: str,
) -> None:
    async with hosting([editor := Editor()], channel, editor=PATIENT) as hosted:
        heard = listening(hosted, "editor")
        chain = await begun(hosted)
        assert await chain.feed_all([b"a", b"b", b"drop", b"c"]) == [b"A", b"B", b"C"]
        assert await chain.feed_all([b"d"]) == [b"D"]
        await chain.aclose()
        assert heard.sizes == [1, 3, 1]
        assert editor.indexes == [0, 1, 2, 3, 4]
        # Seen with the last: what the client got before it.
        assert editor.history == [b"A", b"B", b"C"]
        assert chain.headers == [(b"x-at", b"4")]


async def test_more_than_a_message_holds_goes_in_several(channel: str) -> None:
    async with hosting([editor := Editor()], channel, editor=PATIENT) as hosted:
        heard = listening(hosted, "editor")
        chain = await begun(hosted)
        chunks = [b"%d." % n for n in range(200)]
        assert await chain.feed_all(chunks) == chunks
        big = [bytes(700 << 10)] * 3
        assert await chain.feed_all(big) == big
        await chain.aclose()
        assert editor.indexes == list(range(203))
        assert max(heard.sizes) <= 64
        assert heard.sizes[-3:] == [1, 1, 1]


async def test_slow_plugin_gets_no_more_than_it_has_time_for(channel: str) -> None:
    """The deadline of a message is that of one chunk."""
    async with hosting([editor := Editor()], channel, editor=PATIENT) as hosted:
        heard = listening(hosted, "editor")
        timer = Steps(PATIENCE / 5)
        chain = await begun(hosted, timer)
        assert await chain.feed_all([b"a", b"b", b"c", b"d"]) == [b"A", b"B", b"C", b"D"]
        timer.step = PATIENCE * 0.9
        assert await chain.feed_all([b"e", b"f"]) == [b"E", b"F"]
        assert await chain.feed_all([b"g", b"h"]) == [b"G", b"H"]
        await chain.aclose()
        # A fifth of the deadline each: two in half of it. Then a bad day, which is not forgotten.
        assert heard.sizes == [1, 2, 1, 2, 1, 1]
        assert editor.indexes == list(range(8))


async def test_with_two_plugins_each_chunk_goes_alone(channel: str) -> None:
    async with hosting(
        [first := Editor(), second := Second()], channel, editor=PATIENT, second=PATIENT
    ) as hosted:
        heard = listening(hosted, "second")
        chain = await begun(hosted)
        assert await chain.feed_all([b"a", b"drop", b"c", b"d"]) == [b"A", b"C", b"D"]
        await chain.aclose()
        assert set(heard.sizes) == {1}
        assert first.history == second.history == [b"A", b"C"]
        assert second.indexes == [0, 2, 3]


async def test_plugin_that_fails_behind_others_has_changed_those_before(channel: str) -> None:
    async with hosting([Editor()], channel, editor=PATIENT) as hosted:
        heard = listening(hosted, "editor")
        chain = await begun(hosted)
        await chain.feed_all([b"a"])
        assert await chain.feed_all([b"b", b"boom", b"c"]) == [b"B", b"boom", b"c"]
        assert await chain.feed_all([b"d"]) == [b"d"]
        await chain.aclose()
        assert heard.sizes == [1, 3]


async def test_plugin_that_must_be_passed_ends_the_stream_behind_others_too(channel: str) -> None:
    policies = {**PATIENT, "failure_policies": {FLAG: "Fail"}}
    async with hosting([Editor()], channel, editor=policies) as hosted:
        chain = await begun(hosted)
        await chain.feed_all([b"a"])
        with pytest.raises(errors.Unavailable):
            await chain.feed_all([b"b", b"boom", b"c"])
        await chain.aclose()


# -- translators and normalizers ----------------------------------------------------------------------


class Transformer(Named):
    """Waits, where it is told, until it has been given so many chunks; fails at `boom`."""

    def __init__(self, *, passes: bytes = b"") -> None:
        self.seen: list[bytes] = []
        self._passes = passes

    def taken(self, request: ResponseTransformRequest) -> bytes:
        self.seen.append(request.body)
        if b"boom" in request.body:
            raise errors.FailedPrecondition("boom", reason="BOOM")
        return b"" if self._passes and self._passes in request.body else request.body + b"."


class Before(Transformer, ResponseBeforeTranslator):
    id: ClassVar = "before"

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes:
        return self.taken(request)


class Instead(Transformer, ResponseTranslator):
    id: ClassVar = "instead"

    async def translate_response(self, request: ResponseTransformRequest) -> bytes:
        return self.taken(request)


class Other(Instead):
    id: ClassVar = "other"

    def taken(self, request: ResponseTransformRequest) -> bytes:
        return super().taken(request).replace(b".", b"!")


class After(Transformer, ResponseAfterTranslator):
    id: ClassVar = "after"

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes:
        return self.taken(request)


def stream(hosted: Hosted) -> StreamTranslation:
    translation = Translation(native_registry(), hosted.hooks, hosted.calls)
    context = Context("gpt-5.5", b"{}", b"{}")
    return translation.stream(hosted.execution(stream=True), Formats("openai", "own"), context)


class Ahead:
    """A channel whose peer answers nothing before it has been sent all that is expected."""

    def __init__(self, channel: Any, wanted: int) -> None:
        self._channel = channel
        self._wanted = wanted
        self._all = asyncio.Event()

    def bidi(self, method: Any, requests: AsyncIterable[Any], **how: Any) -> Any:
        return _Held(self._channel.bidi(method, self._counted(requests), **how), self._all)

    async def _counted(self, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for message in requests:
            self._wanted -= 1
            if not self._wanted:
                self._all.set()
            yield message


class _Held:
    def __init__(self, call: Any, until: asyncio.Event) -> None:
        self._call = call
        self._until = until
        self._first: asyncio.Task[Any] | None = None

    async def __anext__(self) -> Any:
        if self._first is None:
            # The call begins with the first read; what it brings is kept back.
            self._first = asyncio.ensure_future(anext(self._call))
            await self._until.wait()
            return await self._first
        return await anext(self._call)

    async def aclose(self) -> None:
        await self._call.aclose()


async def test_waiting_chunks_are_sent_before_their_answers_are_read(channel: str) -> None:
    async with hosting([instead := Instead()], channel, instead=PATIENT) as hosted:
        member = hosted.registry.pick_able("instead", "response_translator", [])
        assert member is not None
        member.channel = Ahead(member.channel, 50)  # type: ignore[assignment] # what streams use
        chunks = [b"%d" % n for n in range(50)]
        translation = stream(hosted)
        assert await translation.feed(chunks) == [chunk + b"." for chunk in chunks]
        await translation.aclose()
        assert instead.seen == chunks


async def test_each_chunk_goes_through_all_in_order(channel: str) -> None:
    before, instead, other, after = Before(), Instead(passes=b"2"), Other(), After()
    patience = dict.fromkeys(("before", "instead", "other", "after"), PATIENT)
    async with hosting([before, instead, other, after], channel, **patience) as hosted:
        translation = stream(hosted)
        assert await translation.feed([b"1", b"2", b"3"]) == [b"1...", b"2!!.", b"3..."]
        await translation.aclose()
        assert before.seen == [b"1", b"2", b"3"]
        assert instead.seen == [b"1.", b"2.", b"3."]
        assert other.seen == [b"2."]
        assert after.seen == [b"1..", b"2!!", b"3.."]


async def test_more_chunks_than_may_wait_are_sent_in_turns(channel: str) -> None:
    async with hosting([after := After()], channel, after=PATIENT) as hosted:
        translation = stream(hosted)
        chunks = [b"%d" % n for n in range(1000)]
        assert await translation.feed(chunks) == [chunk + b"." for chunk in chunks]
        await translation.aclose()
        assert after.seen == chunks


async def test_transformer_that_fails_is_silent_from_there_on(channel: str) -> None:
    async with hosting([Before(), After()], channel, before=PATIENT, after=PATIENT) as hosted:
        translation = stream(hosted)
        assert await translation.feed([b"a", b"boom", b"c"]) == [b"a..", b"boom", b"c"]
        assert await translation.feed([b"d"]) == [b"d"]
        await translation.aclose()
