"""What a server does around its servicers: deadlines, tokens, health, drain (patchbay/server.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from tests.fakes.probe_service import SERVICE, STREAM, UNARY, Bytes, ProbeServicer

from patchbay import errors
from patchbay.server import Server
from patchbay.tokens import ServiceAuthenticator, TokenSource
from patchbay_gateway.kernel.channels.port import TRANSPORT
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.plugins.addresses import WATCH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = b"test-key of a service, 32 bytes."


class Served:
    """A server on a free port, and a channel to it."""

    def __init__(self, **options: Any) -> None:
        self.servicer = ProbeServicer()
        self.server = Server({SERVICE: self.servicer}, **options)
        self.address = ""

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1:0')}"
        self.channel = RemoteChannel(self.address)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop()


@pytest.fixture
async def served(
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after the server has stopped
) -> AsyncIterator[Served]:
    made = Served()
    await made.start()
    yield made
    await made.stop()


async def test_unary_without_a_deadline_is_refused(served: Served) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await served.channel.unary(UNARY, Bytes(), deadline=None)
    assert caught.value.reason == "NO_DEADLINE"
    assert not served.servicer.started.is_set()


async def test_unary_that_keeps_its_own_limits_needs_no_deadline() -> None:
    served = Served(without_deadline=[UNARY.path])
    await served.start()
    assert (await served.channel.unary(UNARY, Bytes(value=b"a"), deadline=None)).value == b"echo a"
    await served.stop()


async def test_stream_needs_no_deadline(served: Served) -> None:
    stream = served.channel.stream(STREAM, Bytes(value=b"three"), deadline=None)
    assert len([m async for m in stream]) == 3


async def test_call_without_a_token_is_refused_and_with_one_served() -> None:
    served = Served(authenticate=ServiceAuthenticator([KEY]))
    await served.start()
    with pytest.raises(errors.Unauthenticated):
        await served.channel.unary(UNARY, Bytes(), deadline=60)
    with pytest.raises(errors.Unauthenticated):
        await served.channel.stream(STREAM, Bytes(), deadline=60).__anext__()
    own = RemoteChannel(served.address, metadata=TokenSource(KEY, SERVICE, "edge-1").metadata)
    assert (await own.unary(UNARY, Bytes(value=b"a"), deadline=60)).value == b"echo a"
    await own.close()
    await served.stop()


async def asking(served: Served) -> None:
    """Call again and again: nothing tells when the notice is over."""
    while True:
        await served.channel.unary(UNARY, Bytes(value=b"a"), deadline=60)
        await asyncio.sleep(0.05)


async def test_health_is_told_before_calls_are_refused_and_calls_in_flight_finish(
    served: Served,
) -> None:
    watch = served.channel.stream(WATCH, health_pb2.HealthCheckRequest(), deadline=None)
    assert (await watch.__anext__()).status == health_pb2.HealthCheckResponse.SERVING
    call = asyncio.create_task(
        served.channel.unary(UNARY, Bytes(value=b"hang, then work on"), deadline=60)
    )
    stream = served.channel.stream(STREAM, Bytes(value=b"one, then hang"), deadline=None)
    await stream.__anext__()
    draining = asyncio.create_task(served.server.drain(300.0, notice=1.0))
    assert (await watch.__anext__()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    # During the notice calls are still served: their callers could not know.
    assert (await served.channel.unary(UNARY, Bytes(value=b"a"), deadline=60)).value == b"echo a"
    with pytest.raises(errors.Unavailable) as caught:
        await asyncio.wait_for(asking(served), 60)
    assert (caught.value.reason, caught.value.sent) == ("DRAINING", errors.Sent.NO)
    assert not call.done(), "it may go on"
    assert not draining.done(), "calls are in flight"
    call.cancel()
    await asyncio.wait([call])
    served.servicer.go_on.set()
    await stream.aclose()
    async with asyncio.timeout(60):
        await draining
    await watch.aclose()


async def test_drain_past_its_grace_cuts(served: Served) -> None:
    stream = served.channel.stream(STREAM, Bytes(value=b"one, then hang"), deadline=None)
    await stream.__anext__()
    await served.server.drain(0.05, notice=0.0)
    with pytest.raises(errors.Unavailable) as caught:
        await stream.__anext__()
    assert caught.value.reason == TRANSPORT
    async with asyncio.timeout(30):
        await served.servicer.cancelled.wait()


async def test_call_to_nobody_was_not_sent(free_port: int) -> None:
    channel = RemoteChannel(f"127.0.0.1:{free_port}")
    with pytest.raises(errors.Unavailable) as caught:
        await channel.unary(UNARY, Bytes(), deadline=60)
    assert (caught.value.reason, caught.value.sent) == (TRANSPORT, errors.Sent.NO)
    await channel.close()


async def test_call_after_close_is_unavailable(served: Served) -> None:
    await served.channel.unary(UNARY, Bytes(), deadline=60)
    await served.channel.close()
    with pytest.raises(errors.Unavailable) as caught:
        await served.channel.unary(UNARY, Bytes(), deadline=60)
    assert caught.value.reason == "CHANNEL_CLOSED"


async def test_port_that_is_taken_says_so(served: Served) -> None:
    second = Server({SERVICE: ProbeServicer()})
    with pytest.raises(errors.FailedPrecondition, match="another process"):
        await second.start(served.address)
    await second.stop()


async def test_plain_grpc_client_sees_code_message_and_details(served: Served) -> None:
    """Without our SDK: the rich status is gRPC's own convention."""
    served.servicer.error = errors.NotFound("no such thing", reason="GONE")
    async with grpc.aio.insecure_channel(served.address) as channel:
        call = channel.unary_unary(
            UNARY.path,
            request_serializer=Bytes.SerializeToString,
            response_deserializer=Bytes.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(Bytes(value=b"raise"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no such thing"
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata() or ())
