"""Chains of interceptors, asked as the pipeline asks them, behind both channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
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
    StreamStart,
)
from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin
from patchbay_gateway.plugins.lifecycle import Completion, Lifecycle
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
EXECUTED = Executed("up", [(b"x-in", b"1")], b'{"a":1}', b"")


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Appender(Named, RequestInterceptor):
    """Appends its id to the body and sets a header."""

    seen: list[RequestInterceptRequest]

    def __init__(self) -> None:
        self.seen = []

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        self.seen.append(request)
        return RequestInterceptResponse(
            body=request.body + self.id.encode(),
            headers=[(b"x-by", self.id.encode())],
            clear_headers=["X-Gone"],
        )


class First(Appender):
    id: ClassVar = "first"


class Second(Appender):
    id: ClassVar = "second"


class Failing(Named, RequestInterceptor):
    id: ClassVar = "failing"

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        raise errors.FailedPrecondition("no", reason="OUT_OF_ORDER")


class Hanging(Named, RequestInterceptor):
    id: ClassVar = "hanging"

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        await asyncio.Event().wait()
        raise AssertionError


class Bouncer(Named, RequestInterceptor):
    id: ClassVar = "bouncer"
    status: ClassVar = 451

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        return RequestInterceptResponse(
            terminate=True,
            status_code=self.status,
            response_headers=[(b"x-why", b"law"), (b"Set-Cookie", b"a=b"), (b"x-patchbay-x", b"1")],
            response_body=b"no",
        )


async def before(hosted: Hosted, **changes: Any) -> Intercepted:
    chain = RequestInterceptors(hosted.hooks, hosted.calls)
    execution = hosted.execution(**changes)
    headers = [(b"x-gone", b"1"), (b"x-by", b"client"), (b"x-kept", b"1")]
    return await chain.before(chain.of(execution), execution, headers, b"body ")


async def test_each_interceptor_gets_its_predecessors_result(channel: str) -> None:
    async with hosting([first := First(), second := Second()], channel) as hosted:
        result = await before(hosted)
        assert result.body == b"body firstsecond"
        assert result.headers == [(b"x-kept", b"1"), (b"x-by", b"second")]
        assert second.seen[0].body == b"body first"
        assert (b"x-by", b"first") in second.seen[0].headers
        assert first.seen[0].requested_model == "gpt-5.5"
        assert first.seen[0].request_id == "01REQUEST"


async def test_method_that_is_not_overridden_is_not_called(channel: str) -> None:
    async with hosting([First()], channel) as hosted:
        chain = RequestInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        result = await chain.after(
            chain.of(execution),
            execution,
            Intercepted([], b"x"),
            model="up",
            to_format="claude",
            attempt=1,
        )
        assert result == Intercepted([], b"x")


async def test_failing_interceptor_changes_nothing(channel: str) -> None:
    async with hosting([Failing(), second := Second()], channel) as hosted:
        assert (await before(hosted)).body == b"body second"
        assert second.seen


async def test_failing_interceptor_that_must_be_passed_fails_the_request(channel: str) -> None:
    policies = {"failure_policies": {"request_interceptor": "Fail"}}
    async with hosting([Failing()], channel, failing=policies) as hosted:
        with pytest.raises(errors.Unavailable) as caught:
            await before(hosted)
        assert caught.value.reason == "PLUGIN_FAILED"


@pytest.mark.parametrize("strict", [False, True])
async def test_body_that_is_no_request_is_a_failure_of_its_plugin(
    channel: str, *, strict: bool
) -> None:
    """Its headers count for nothing either, and the next one gets what it had."""
    looked_at: list[bytes] = []

    async def check(body: bytes) -> None:
        looked_at.append(body)
        if body.endswith(b"first"):
            raise errors.InvalidRequest("it is not valid JSON", reason="INVALID_JSON")

    policies = {"failure_policies": {"request_interceptor": "Fail"}} if strict else {}
    async with hosting([First(), second := Second()], channel, first=policies) as hosted:
        chain = RequestInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        running = chain.before(
            chain.of(execution), execution, [(b"x-gone", b"1")], b"body ", check=check
        )
        if strict:
            with pytest.raises(errors.Unavailable) as caught:
                await running
            assert caught.value.reason == "PLUGIN_FAILED"
            assert second.seen == []
        else:
            assert (await running).body == b"body second"
            assert second.seen[0].headers == [(b"x-gone", b"1")]
            assert looked_at == [b"body first", b"body second"]


async def test_hanging_interceptor_costs_its_deadline_and_nothing_else(channel: str) -> None:
    limits = {"timeouts": {"request_interceptor": 0.2}}
    async with hosting([Hanging(), Second()], channel, hanging=limits) as hosted:
        assert (await before(hosted)).body == b"body second"
        (status,) = [s for s in hosted.registry.status() if s["id"] == "hanging"]
        assert status["addresses"][0]["errors"] == 1


async def test_terminate_ends_the_chain_with_the_plugins_answer(channel: str) -> None:
    async with hosting([Bouncer(), second := Second()], channel) as hosted:
        with pytest.raises(Terminated) as caught:
            await before(hosted)
        assert caught.value.status == 451
        assert caught.value.headers == [(b"x-why", b"law")]
        assert caught.value.body == b"no"
        assert second.seen == []


async def test_terminate_with_a_status_that_is_none_is_403(channel: str) -> None:
    class Odd(Bouncer):
        status: ClassVar = 42

    async with hosting([Odd()], channel) as hosted:
        with pytest.raises(Terminated) as caught:
            await before(hosted)
        assert caught.value.status == 403


async def test_plugin_that_started_an_execution_is_left_out(channel: str) -> None:
    async with hosting([First(), Second()], channel) as hosted:
        assert (await before(hosted, skip="first")).body == b"body second"


async def test_match_keeps_requests_away(channel: str) -> None:
    async with hosting([First()], channel, first={"match": {"models": ("claude-*",)}}) as hosted:
        assert (await before(hosted)).body == b"body "


class Stamp(Named, ResponseInterceptor):
    id: ClassVar = "stamp"
    needs_request_body: ClassVar = False

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse:
        assert request.original_request == b""
        return ResponseInterceptResponse(
            body=request.body + b"!", headers=[(b"x-seen", request.response_headers[0][1])]
        )


class Censored(Named, ResponseInterceptor):
    """Must see each answer."""

    id: ClassVar = "censored"
    bodies: ClassVar[list[tuple[int, int]]] = []

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse:
        self.bodies.append((len(request.original_request), len(request.request_body)))
        return ResponseInterceptResponse(body=b"censored")


async def test_answer_is_seen_however_large_the_request_was(channel: str) -> None:
    """What has no room beside the answer is left out; else a client could keep its answer from plugins."""
    large = b"x" * (20 << 20)
    Censored.bodies.clear()
    async with hosting([Censored()], channel) as hosted:
        chain = ResponseInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        for answer, original, executed in (
            (b"hi", large, large),
            (large, large, b""),
            (large, b"{}", b"{ }"),
        ):
            request = Executed("up", [], original, executed)
            result = await chain.run(
                chain.of(execution), execution, request, Answered(200, [], answer)
            )
            assert result.body == b"censored"
    assert Censored.bodies == [(20 << 20, 0), (0, 0), (2, 3)]


async def test_stream_is_seen_however_large_the_request_was(channel: str) -> None:
    large = b"x" * (20 << 20)
    async with hosting([Shouter()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        request = Executed("up", [], large, large)
        chain = interceptors.chain(interceptors.of(execution), execution, request, [])
        await chain.begin()
        assert await chain.feed(b"word") == b"WORD"
        await chain.aclose()


async def test_answers_pass_the_chain_with_the_providers_headers(channel: str) -> None:
    async with hosting([Stamp()], channel) as hosted:
        chain = ResponseInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        answer = Answered(200, [(b"x-upstream", b"7")], b"hi", "application/json")
        result = await chain.run(chain.of(execution), execution, EXECUTED, answer)
        assert result.body == b"hi!"
        assert result.headers == [(b"x-upstream", b"7"), (b"x-seen", b"7")]


class Censor(Named, StreamChunkInterceptor[list[bytes]]):
    """Drops chunks with `drop`, replaces `a` by `b`, tells its history in a header."""

    id: ClassVar = "censor"

    def __init__(self) -> None:
        self.closed: asyncio.Queue[list[bytes]] = asyncio.Queue()

    async def open_stream(self, start: StreamStart) -> list[bytes]:
        assert start.original_request == b'{"a":1}'
        return []

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: list[bytes]
    ) -> StreamChunkInterceptResponse:
        return StreamChunkInterceptResponse(headers=[(b"x-censored", b"yes")])

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: list[bytes]
    ) -> StreamChunkInterceptResponse | None:
        state[:] = request.history_chunks
        if b"drop" in request.body:
            return StreamChunkInterceptResponse(drop_chunk=True)
        if b"boom" in request.body:
            raise errors.FailedPrecondition("boom", reason="BOOM")
        if b"a" in request.body:
            return StreamChunkInterceptResponse(body=request.body.replace(b"a", b"b"))
        return None

    async def close_stream(self, state: list[bytes]) -> None:
        self.closed.put_nowait(state)


class Shouter(Named, StreamChunkInterceptor[None]):
    id: ClassVar = "shouter"
    indexes: ClassVar[list[int]] = []

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        self.indexes.append(request.chunk_index)
        return StreamChunkInterceptResponse(body=request.body.upper())


@pytest.fixture(autouse=True)
def forget() -> None:
    Shouter.indexes.clear()


async def test_chunks_pass_the_chain_and_history_holds_what_was_delivered(channel: str) -> None:
    async with hosting([censor := Censor(), Shouter()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(
            interceptors.of(execution), execution, EXECUTED, [(b"x-up", b"1")]
        )
        await chain.begin()
        assert chain.headers == [(b"x-up", b"1"), (b"x-censored", b"yes")]
        assert [await chain.feed(c) for c in (b"xa", b"drop me", b"xy", b"za")] == [
            b"XB",
            None,
            b"XY",
            b"ZB",
        ]
        await chain.aclose()
        # Seen with the last chunk: what was delivered before it, as the client got it.
        assert await asyncio.wait_for(censor.closed.get(), 60) == [b"XB", b"XY"]
        assert censor.closed.empty()
        assert Shouter.indexes == [0, 2, 3]


async def test_stream_counts_as_long_as_its_first_answer_took(channel: str) -> None:
    async with hosting([Shouter()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        (begun,) = hosted.registry.status()
        assert begun["addresses"][0]["seconds"] > 0
        await chain.feed(b"a")
        await chain.aclose()
        (ended,) = hosted.registry.status()
        assert ended["addresses"][0]["seconds"] == begun["addresses"][0]["seconds"]
        assert (ended["calls"], ended["latency_ms"] > 0) == (1, True)


async def test_address_that_answers_in_a_stream_serves_others_before_its_end(channel: str) -> None:
    """It had been left alone, and the stream is the call by which it is tried."""
    async with hosting([Shouter()], channel) as hosted:
        member = hosted.registry.pick("shouter")
        assert member is not None
        member.peer.breaker.until = 1e-9
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        assert hosted.registry.pick("shouter") is member
        await chain.aclose()


class Witness(Named, StreamChunkInterceptor[None]):
    """Comes last and writes down what it is told."""

    id: ClassVar = "witness"

    def __init__(self) -> None:
        self.histories: list[list[bytes]] = []

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> None:
        self.histories.append(list(request.history_chunks))


async def test_history_outlasts_a_chunk_that_was_dropped_before(channel: str) -> None:
    """What became of a chunk is told with the next one that the plugin sees."""
    async with hosting([Censor(), witness := Witness()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        for chunk in (b"one", b"drop me", b"drop me", b"two", b"three"):
            await chain.feed(chunk)
        await chain.aclose()
        assert witness.histories == [[], [b"one"], [b"one", b"two"]]


async def test_interceptor_that_fails_is_left_out_for_the_rest(channel: str) -> None:
    async with hosting([Censor(), Shouter()], channel) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        assert [await chain.feed(c) for c in (b"a", b"boom", b"a")] == [b"B", b"BOOM", b"A"]
        await chain.aclose()


async def test_interceptor_that_must_be_passed_ends_the_stream(channel: str) -> None:
    policies = {"failure_policies": {"response_stream_interceptor": "Fail"}}
    async with hosting([Censor()], channel, censor=policies) as hosted:
        interceptors = StreamInterceptors(hosted.hooks, hosted.calls)
        execution = hosted.execution(stream=True)
        chain = interceptors.chain(interceptors.of(execution), execution, EXECUTED, [])
        await chain.begin()
        with pytest.raises(errors.Unavailable):
            await chain.feed(b"boom")
        await chain.aclose()


class Listener(Named, RequestLifecyclePlugin):
    id: ClassVar = "listener"

    def __init__(self) -> None:
        self.heard: asyncio.Queue[RequestCompletion] = asyncio.Queue()

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        self.heard.put_nowait(completion)


async def test_every_lifecycle_plugin_hears_of_an_end_once(channel: str) -> None:
    async with hosting([listener := Listener()], channel) as hosted:
        lifecycle = Lifecycle(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        assert lifecycle.wanted(execution)
        lifecycle.complete(execution, Completion(request_id="r", status_code=200))
        heard = await asyncio.wait_for(listener.heard.get(), 60)
        assert heard.request_id == "r"
        await lifecycle.aclose()
        assert listener.heard.empty()
