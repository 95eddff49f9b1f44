"""Model calls of plugins: the exchange in memory, and what becomes of requests and answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors
from patchbay.host.v1 import model_pb2
from patchbay_gateway.edge.callbacks.exchange import MAX_WRITES, MemoryExchange
from patchbay_gateway.edge.callbacks.models import ModelCalls
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.exchange import ClientGone, Head
from patchbay_gateway.plugins.callbacks.callers import Caller
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.grants import Grants
from patchbay_gateway.plugins.snapshot import PluginEntry
from patchbay_gateway.translate.native import native_registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.edge.routes.request import RoutedRequest

HEAD = Head("POST", "/", b"", [], "127.0.0.1")
SSE = [(b"content-type", b"text/event-stream")]
CALLER = Caller("p", PluginEntry("p"), Grants(models=True), None)


def exchange(payload: bytes = b"{}", *, stall: float = 0.0) -> MemoryExchange:
    """Return an exchange."""
    return MemoryExchange(HEAD, payload, stall=stall)


async def test_writer_waits_for_a_reader_and_goes_on_when_it_took() -> None:
    ex = exchange()
    await ex.send_head(200, SSE)
    for _ in range(MAX_WRITES - 1):
        await ex.send(b"x")
    last = asyncio.ensure_future(ex.send(b"y"))
    await asyncio.sleep(0)
    assert not last.done()
    assert await ex.take() == [b"x"] * (MAX_WRITES - 1) + [b"y"]
    await last


async def test_large_write_waits_too() -> None:
    ex = exchange()
    await ex.send_head(200, SSE)
    sending = asyncio.ensure_future(ex.send(bytes(2 << 20)))
    await asyncio.sleep(0)
    assert not sending.done()
    await ex.take()
    await sending


async def test_reader_that_leaves_ends_the_writer() -> None:
    ex = exchange()
    await ex.send_head(200, SSE)
    sending = asyncio.ensure_future(ex.send(bytes(2 << 20)))
    await asyncio.sleep(0)
    ex.leave()
    with pytest.raises(ClientGone):
        await sending
    assert ex.gone.done()
    with pytest.raises(ClientGone):
        await ex.send(b"more")


async def test_reader_that_takes_nothing_is_gone_after_the_stall() -> None:
    ex = exchange(stall=0.01)
    await ex.send_head(200, SSE)
    with pytest.raises(ClientGone):
        await ex.send(bytes(2 << 20))
    assert ex.gone.done()


async def test_body_is_limited_and_charged() -> None:
    charged: list[int] = []
    assert await exchange(b"{ }").body(3, 1, charged.append) == b"{ }"
    assert charged == [3]
    with pytest.raises(errors.InvalidRequest):
        await exchange(b"{ }").body(2, 1)


class Pipeline:
    """A pipeline that does what a test says."""

    def __init__(self, script: Callable[[RoutedRequest], Awaitable[None]]) -> None:
        self.seen: list[RoutedRequest] = []
        self.bodies: list[bytes] = []
        self._script = script

    async def run(self, routed: RoutedRequest) -> None:
        self.seen.append(routed)
        self.bodies.append(await routed.exchange.body(1 << 20, 1))
        await self._script(routed)


def calls(
    script: Callable[[RoutedRequest], Awaitable[None]], **limits: Any
) -> tuple[ModelCalls, Pipeline]:
    """Return model calls over a pipeline."""
    pipeline = Pipeline(script)
    made = ModelCalls(
        pipeline,
        holder=SnapshotHolder(),
        dialects=dialects(),
        native=native_registry(),
        mint=lambda: "01REQUEST",
        now=lambda: 1_800_000_000.0,
        **limits,
    )
    return made, pipeline


def asked(body: bytes = b'{"model":"m"}', **fields: Any) -> model_pb2.HostModelExecutionRequest:
    """Return a request for a model call."""
    return model_pb2.HostModelExecutionRequest(
        **{"entry_protocol": "openai", "model": "m", "body": body, **fields}
    )


async def answers(routed: RoutedRequest) -> None:
    """Answer well."""
    await routed.exchange.send_head(200, [(b"content-type", b"application/json")])
    await routed.exchange.send(b'{"ok":true}')
    await routed.exchange.finish()


@pytest.mark.parametrize(
    ("given", "stream", "sent"),
    [
        (b'{"model":"m","x":1.0}', False, b'{"model":"m","x":1.0}'),
        (b'{"model": "other", "x":1e3}', False, b'{"model": "m", "x":1e3}'),
        (b'{"x":1e3}', False, b'{"model":"m","x":1e3}'),
        (b"{}", False, b'{"model":"m"}'),
        (b'{"model":"m"}', True, b'{"stream":true,"model":"m"}'),
        (b'{"model":"m","stream":true}', True, b'{"model":"m","stream":true}'),
        (b'{"model":"m","stream":true}', False, b'{"model":"m","stream":false}'),
        (b'{"model":"m","stream":null}', True, b'{"model":"m","stream":true}'),
        (b"no json", False, b"no json"),
    ],
)
async def test_body_says_the_calls_model_and_stream(
    given: bytes, stream: bool, sent: bytes
) -> None:
    made, pipeline = calls(answers)
    async with made.call(CALLER, asked(given, stream=stream), stream=stream):
        pass
    assert pipeline.bodies == [sent]
    routed = pipeline.seen[0]
    assert (routed.stream_from_path, routed.model_from_path) == (stream, None)
    await made.aclose()


async def test_gemini_names_the_model_outside_of_the_body() -> None:
    made, pipeline = calls(answers)
    async with made.call(CALLER, asked(b'{"contents":[]}', entry_protocol="gemini"), stream=False):
        pass
    assert pipeline.bodies == [b'{"contents":[]}']
    assert pipeline.seen[0].model_from_path == "m"


async def test_plugin_is_the_client_and_is_left_out() -> None:
    made, pipeline = calls(answers)
    request = asked()
    request.headers["X-One"].values.append("1")
    request.headers["authorization"].values.append("test")
    request.query["a"].values.extend(["b c", "d"])
    async with made.call(CALLER, request, stream=False) as call:
        assert await call.whole() == b'{"ok":true}'
        assert (call.status, call.content_type) == (200, "application/json")
    routed = pipeline.seen[0]
    assert routed.client is not None
    assert (routed.client.name, routed.client.tenant) == ("plugin:p", "default")
    assert (routed.skip_plugin, routed.depth) == ("p", 1)
    assert routed.source == "plugin_host_model_callback"
    assert routed.exchange.head.headers == [(b"x-one", b"1")]
    assert routed.exchange.head.query == b"a=b+c&a=d"


@pytest.mark.parametrize(
    ("fields", "stream", "reason"),
    [
        ({"stream": True}, False, "STREAM_MISMATCH"),
        ({}, True, "STREAM_MISMATCH"),
        ({"operation": "sing"}, False, "UNKNOWN_OPERATION"),
        ({"operation": "embeddings", "stream": True}, True, "UNKNOWN_OPERATION"),
        ({"model": ""}, False, "MISSING_MODEL"),
        ({"entry_protocol": "klingon"}, False, "UNKNOWN_FORMAT"),
        ({"exit_protocol": "klingon"}, False, "UNKNOWN_FORMAT"),
        ({"exit_protocol": "gemini"}, False, "NO_TRANSLATION"),
        ({"exit_protocol": "claude", "operation": "embeddings"}, False, "NO_TRANSLATION"),
    ],
)
async def test_call_that_cannot_be_meant_is_refused(
    fields: dict[str, Any], stream: bool, reason: str
) -> None:
    made, pipeline = calls(answers)
    with pytest.raises(errors.InvalidRequest) as refused:
        async with made.call(CALLER, asked(**fields), stream=stream):
            pass
    assert refused.value.reason == reason
    assert pipeline.seen == []


async def test_chunks_are_events_however_they_were_written() -> None:
    async def script(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, SSE)
        await routed.exchange.send(b"data: 1\n\ndata: 2\r\n\r\n: note\n\n")
        await routed.exchange.send(b"event: x\ndata: 3\n\n")
        await routed.exchange.finish()

    made, _ = calls(script)
    async with made.call(CALLER, asked(stream=True), stream=True) as call:
        found = [chunk async for batch in call.chunks() for chunk in batch]
    assert found == [
        b"data: 1\n\n",
        b"data: 2\r\n\r\n",
        b": note\n\n",
        b"event: x\ndata: 3\n\n",
    ]


async def test_failure_after_content_is_an_error_and_no_event() -> None:
    async def script(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, SSE)
        await routed.exchange.send(b"data: 1\n\n")
        assert routed.on_error is not None
        routed.on_error(errors.UpstreamError(529, "overloaded", reason="OVERLOADED"))
        await routed.exchange.send(b"data: error event\n\n")
        await routed.exchange.finish()

    made, _ = calls(script)
    found = []
    async with made.call(CALLER, asked(stream=True), stream=True) as call:
        with pytest.raises(errors.UpstreamError) as failed:  # noqa: PT012 - chunks, then the failure
            async for batch in call.chunks():
                found += batch
    assert found == [b"data: 1\n\n"]
    assert failed.value.reason == "OVERLOADED"


async def test_answer_that_was_cut_is_an_error() -> None:
    async def script(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, SSE)
        await routed.exchange.send(b"{")
        await routed.exchange.abort()

    made, _ = calls(script)
    async with made.call(CALLER, asked(), stream=False) as call:
        with pytest.raises(errors.UpstreamError) as failed:
            await call.whole()
    assert (failed.value.http_status, failed.value.reason) == (502, "UPSTREAM_TRUNCATED")


async def test_bug_in_the_pipeline_shows_an_id_and_no_text() -> None:
    async def script(_: RoutedRequest) -> None:
        raise RuntimeError("the secret text")

    made, _ = calls(script)
    with pytest.raises(errors.UpstreamError) as failed:
        async with made.call(CALLER, asked(), stream=False):
            pass
    assert failed.value.http_status == 500
    assert "secret text" not in failed.value.message + failed.value.body.decode()


async def test_call_that_is_left_cancels_the_pipeline() -> None:
    cancelled = asyncio.Event()

    async def script(routed: RoutedRequest) -> None:
        await routed.exchange.send_head(200, SSE)
        await routed.exchange.gone
        cancelled.set()

    made, _ = calls(script)
    async with made.call(CALLER, asked(stream=True), stream=True):
        pass
    async with asyncio.timeout(30):
        await cancelled.wait()
    await made.aclose()


async def test_plugin_has_so_many_calls_at_once_and_no_more() -> None:
    blocked = asyncio.Event()

    async def hang(routed: RoutedRequest) -> None:
        await answers(routed)
        await blocked.wait()

    made, _ = calls(hang, most=2)
    for _ in range(2):
        async with made.call(CALLER, asked(), stream=False):
            pass
    with pytest.raises(errors.ResourceExhausted) as refused:
        async with made.call(CALLER, asked(), stream=False):
            pass
    assert refused.value.reason == "TOO_MANY_MODEL_CALLS"
    other = Caller("q", PluginEntry("q"), Grants(models=True), None)
    async with made.call(other, asked(), stream=False):
        pass
    blocked.set()
    await made.aclose()
    async with made.call(CALLER, asked(), stream=False):
        pass
    await made.aclose()
