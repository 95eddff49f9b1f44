"""The built-in executors behind both channels: whole answers, errors, cancellation, backpressure."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from patchbay import errors, secrets, tokens
from patchbay.keys import channel_key, sealing_key
from patchbay.plugin.v1 import executor_pb2
from patchbay.serve import PluginServer
from patchbay.server import message_limit_for
from patchbay_gateway.executors.main import BUILT_IN, built_executors, running_executors
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.registry import remote as connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.upstream import FakeUpstream

    from patchbay_gateway.kernel.channels.port import Channel, Metadata

ROOT = b"r" * 32
OPENAI = "openai-compatible"


@pytest.fixture(params=["inprocess", "remote"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    if request.param == "inprocess":
        async with running_executors(roots=[ROOT], env={}) as running:
            made: Channel = InProcessChannel(running.servicers, strict=True)
            yield made
            await made.close()
        return
    keys = {id_: [plugin_key(ROOT, id_)] for id_ in BUILT_IN}
    async with built_executors(env={}) as executors:
        server = PluginServer(executors, keys)
        port = await server.start("127.0.0.1:0")
        remote = RemoteChannel(f"127.0.0.1:{port}")
        yield remote
        await remote.close()
        await server.stop()


def metadata(plugin_id: str) -> Metadata:
    key = channel_key(plugin_key(ROOT, plugin_id))
    token = tokens.mint(key, plugin_id, "test", int(time.time()) + 60)
    return (("patchbay-plugin", plugin_id), ("patchbay-token", token))


def make_request(url: str, *, stream: bool = True, **fake: object) -> executor_pb2.ExecutorRequest:
    message = executor_pb2.ExecutorRequest(
        model="m",
        format="openai",
        operation="chat",
        stream=stream,
        attempt_uid="01UID-1",
        payload=orjson.dumps({"model": "m", "stream": stream, "messages": [], "fake": fake}),
    )
    message.provider.base_url = url
    key = sealing_key(plugin_key(ROOT, OPENAI))
    message.secret.CopyFrom(
        secrets.seal(key, OPENAI, "main", 1, [url], time.time() + 60, {"api_key": "test-key"})
    )
    return message


async def test_unary_and_stream_with_the_sealed_secret(
    channel: Channel, fake: FakeUpstream
) -> None:
    answer = await channel.unary(
        methods.EXECUTE,
        make_request(fake.url, stream=False),
        deadline=None,
        metadata=metadata(OPENAI),
    )
    assert orjson.loads(answer.payload)["choices"]
    assert fake.last.headers["authorization"] == "Bearer test-key"
    call = channel.stream(
        methods.EXECUTE_STREAM, make_request(fake.url), deadline=None, metadata=metadata(OPENAI)
    )
    parts = [part.WhichOneof("message") async for part in call]
    await call.aclose()
    assert (parts[0], parts[-1]) == ("head", "tail")
    assert set(parts[1:-1]) == {"batch"}


async def test_upstream_error_arrives_whole(channel: Channel, fake: FakeUpstream) -> None:
    call = channel.stream(
        methods.EXECUTE_STREAM,
        make_request(fake.url, status=429, retry_after="3", error="slow"),
        deadline=None,
        metadata=metadata(OPENAI),
    )
    with pytest.raises(errors.UpstreamError) as caught:
        await anext(aiter(call))
    await call.aclose()
    assert (caught.value.http_status, caught.value.retry_after) == (429, 3)
    assert orjson.loads(caught.value.body)["error"]["message"] == "slow"


@pytest.mark.parametrize("stall", ["head", "2"])
async def test_cancel_reaches_the_provider_within_100_ms(
    channel: Channel, fake: FakeUpstream, stall: str
) -> None:
    took: list[float] = []
    # A busy machine may spoil some of them, not all.
    while len(took) < 5 and min(took, default=1.0) >= 0.1:
        asked = len(fake.records)
        call = channel.stream(
            methods.EXECUTE_STREAM,
            make_request(fake.url, stall=stall),
            deadline=None,
            metadata=metadata(OPENAI),
        )
        began = asyncio.Event()
        reading = asyncio.create_task(_read(call, began))
        await fake.until(
            lambda asked=asked: (  # type: ignore[misc]
                len(fake.records) > asked and fake.last.chunks_sent == int(stall != "head") * 2
            )
        )
        if stall != "head":
            await began.wait()
        left_at = time.time()
        reading.cancel()
        await asyncio.wait([reading])
        await fake.until(lambda: fake.last.aborted)
        await call.aclose()
        took.append(fake.last.ended_at - left_at)
    assert min(took) < 0.1, took


async def test_caller_that_stops_reading_holds_the_provider_back_and_can_leave(
    channel: Channel, fake: FakeUpstream
) -> None:
    call = channel.stream(
        methods.EXECUTE_STREAM,
        make_request(fake.url, chunks=100_000, frames_per_write=50),
        deadline=None,
        metadata=metadata(OPENAI),
    )
    parts = aiter(call)
    await anext(parts)
    await anext(parts)
    await asyncio.sleep(0.4)  # that it does not go on is told by nothing
    assert fake.last.chunks_sent < 100_000
    await call.aclose()
    await fake.until(lambda: fake.last.aborted)


async def test_echo_is_served_beside(channel: Channel) -> None:
    request = executor_pb2.ExecutorRequest(
        model="echo",
        format="openai",
        operation="chat",
        payload=b'{"messages":[{"role":"user","content":"hi"}]}',
    )
    answer = await channel.unary(methods.EXECUTE, request, deadline=None, metadata=metadata("echo"))
    assert orjson.loads(answer.payload)["choices"][0]["message"]["content"] == "hi"


async def test_unknown_built_in_is_refused() -> None:
    with pytest.raises(errors.NotFound):
        async with running_executors(["nothing"]):
            pass


async def _read(call: object, began: asyncio.Event) -> None:
    async for part in call:  # type: ignore[attr-defined]
        if part.WhichOneof("message") == "batch":
            began.set()


async def test_request_as_large_as_the_configured_body_arrives() -> None:
    """With `limits.body: 64MiB` on both sides; a larger one is refused by its own reason."""
    limit = message_limit_for(64 << 20)
    async with built_executors(env={}) as executors:
        server = PluginServer(
            executors, {id_: [plugin_key(ROOT, id_)] for id_ in BUILT_IN}, message_limit=limit
        )
        channel = connect(f"127.0.0.1:{await server.start('127.0.0.1:0')}", limit)
        try:
            message = make_request("http://unused.invalid/v1", stream=False)
            message.payload = orjson.dumps({"messages": [], "padding": "x" * (40 << 20)})
            response = await channel.unary(
                methods.EXECUTE, message, deadline=90, metadata=metadata("echo")
            )
            assert response.status in {0, 200}
            message.payload = b"x" * (limit + 1)
            with pytest.raises(errors.ResourceExhausted) as caught:
                await channel.unary(
                    methods.EXECUTE, message, deadline=90, metadata=metadata("echo")
                )
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
        finally:
            await channel.close()
            await server.stop()
