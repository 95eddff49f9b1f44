"""Rules of interceptors that are easy to lose, behind both channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptor,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
)
from patchbay_gateway.plugins.request_interceptors import (
    Intercepted,
    RequestInterceptors,
    Terminated,
)
from patchbay_gateway.plugins.response_interceptors import Answered, Executed, ResponseInterceptors
from patchbay_gateway.plugins.stream_interceptors import StreamInterceptors

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
BASE = Intercepted([(b"x-keep", b"1"), (b"x-gone", b"1")], b"body")
EXECUTED = Executed("up", [(b"x-in", b"1")], b'{"a":1}', b"")


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class After(Named, RequestInterceptor):
    """Says after which attempt it was asked, and takes a header away."""

    id: ClassVar = "after"

    def __init__(self) -> None:
        self.seen: list[RequestInterceptRequest] = []

    async def intercept_request_after_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        self.seen.append(request)
        return RequestInterceptResponse(
            body=request.body + b"+%d" % request.attempt,
            headers=[(b"x-set", b"a"), (b"x-set", b"b")],
            clear_headers=["X-Gone", "x-set"],
            terminate=b"stop" in request.body,
            status_code=700,
        )


class Nothing(Named, RequestInterceptor, ResponseInterceptor):
    """Answers with nothing in it."""

    id: ClassVar = "nothing"

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        return RequestInterceptResponse(body=b"", headers=[])

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse:
        return ResponseInterceptResponse(body=b"", clear_headers=["x-up"])


async def after(hosted: Hosted, attempt: int, base: Intercepted = BASE) -> Intercepted:
    chain = RequestInterceptors(hosted.hooks, hosted.calls)
    execution = hosted.execution()
    return await chain.after(
        chain.of(execution), execution, base, model="up", to_format="claude", attempt=attempt
    )


async def test_header_can_be_taken_away_after_a_credential_was_chosen(channel: str) -> None:
    async with hosting([plugin := After()], channel) as hosted:
        found = await after(hosted, 1)
        assert found.headers == [(b"x-keep", b"1"), (b"x-set", b"a"), (b"x-set", b"b")]
        (seen,) = plugin.seen
        assert (seen.source_format, seen.to_format) == ("openai", "claude")
        assert (seen.model, seen.requested_model) == ("up", "gpt-5.5")


async def test_each_attempt_begins_with_the_request_before_any(channel: str) -> None:
    async with hosting([After()], channel) as hosted:
        assert (await after(hosted, 1)).body == b"body+1"
        assert (await after(hosted, 2)).body == b"body+2"
        assert BASE.body == b"body"


async def test_request_may_end_after_a_credential_was_chosen(channel: str) -> None:
    async with hosting([After()], channel) as hosted:
        with pytest.raises(Terminated) as caught:
            await after(hosted, 1, Intercepted([], b"stop"))
        assert caught.value.status == 403


async def test_empty_body_keeps_the_body(channel: str) -> None:
    async with hosting([Nothing()], channel) as hosted:
        chain = RequestInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        found = await chain.before(chain.of(execution), execution, BASE.headers, BASE.body)
        assert found == BASE
        answers = ResponseInterceptors(hosted.hooks, hosted.calls)
        answer = Answered(200, [(b"x-up", b"1"), (b"x-b", b"2")], b"hi", "application/json")
        kept = await answers.run(answers.of(execution), execution, EXECUTED, answer)
        assert (kept.body, kept.headers) == (b"hi", [(b"x-b", b"2")])


class Watcher(Named, StreamChunkInterceptor[None]):
    """Wants to drop the headers' call, which is no chunk; writes down the headers that it is shown."""

    id: ClassVar = "watcher"

    def __init__(self) -> None:
        self.shown: list[list[tuple[bytes, bytes]]] = []

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        return StreamChunkInterceptResponse(
            body=b"no chunk", drop_chunk=True, headers=[(b"x-init", b"1")]
        )

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        self.shown.append(sorted(request.response_headers))
        return StreamChunkInterceptResponse(headers=[(b"x-seen", b"%d" % request.chunk_index)])


async def test_first_call_of_a_stream_counts_for_headers_only(channel: str) -> None:
    async with hosting([watcher := Watcher()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        assert chain.headers == [(b"x-init", b"1")]
        assert await chain.feed(b"one") == b"one"
        assert await chain.feed(b"two") == b"two"
        await chain.aclose()
        assert watcher.shown == [[(b"x-init", b"1")], [(b"x-init", b"1"), (b"x-seen", b"0")]]
        assert chain.headers == [(b"x-init", b"1"), (b"x-seen", b"1")]
