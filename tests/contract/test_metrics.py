"""What a plugin's process tells Prometheus (patchbay/metrics.py), of calls over real gRPC."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest

from patchbay import errors
from patchbay.executor import Executor, ExecutorRequest, ExecutorResponse
from patchbay.metrics import health_port, serving_metrics
from patchbay.plugin.v1 import executor_pb2
from patchbay.serve import build_servicers
from patchbay.server import Server
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem


class Waiting(Executor):
    id = "waiting"
    name = "Waiting"
    version = "1"
    author = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    def __init__(self) -> None:
        self.streaming = asyncio.Event()

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        if request.payload == b"bad":
            raise errors.UpstreamError(429, "slow down")
        return ExecutorResponse(b"fine")

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        self.streaming.set()
        await asyncio.Event().wait()
        yield  # type: ignore[misc]


async def test_page_counts_calls_by_code_and_open_streams() -> None:
    plugin = Waiting()
    server = Server(build_servicers([plugin], {}))
    port = await server.start("127.0.0.1:0")
    channel = RemoteChannel(f"127.0.0.1:{port}", metadata=lambda: (("patchbay-plugin", "waiting"),))
    async with serving_metrics(0, server.served, ready=lambda: False, host="127.0.0.1") as health:
        request = executor_pb2.ExecutorRequest()
        await channel.unary(methods.EXECUTE, request, deadline=30)
        bad = executor_pb2.ExecutorRequest(payload=b"bad")
        with pytest.raises(errors.PatchbayError):
            await channel.unary(methods.EXECUTE, bad, deadline=30)
        stream = channel.stream(methods.EXECUTE_STREAM, request, deadline=None)
        reading = asyncio.ensure_future(stream.__anext__())
        await plugin.streaming.wait()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{health}", timeout=60) as client:
            page = (await client.get("/metrics")).text
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/else")).status_code == 404
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await stream.aclose()
    await channel.close()
    await server.stop()
    execute = 'patchbay_plugin_served_total{method="plugin.v1.ExecutorService/Execute"'
    assert f'{execute},code="ok"}} 1\n' in page
    assert f'{execute},code="resource_exhausted"}} 1\n' in page
    assert "patchbay_plugin_open_streams 1\n" in page
    assert "patchbay_plugin_open_calls 1\n" in page


def test_port_is_read_from_the_environment() -> None:
    assert health_port({}) is None
    assert health_port({"PATCHBAY_HEALTH_PORT": "9103"}) == 9103
    # What Kubernetes derives from a Service called patchbay-health.
    assert health_port({"PATCHBAY_HEALTH_PORT": "tcp://10.0.0.1:80"}) is None
    with pytest.raises(errors.FailedPrecondition, match="is no port"):
        health_port({"PATCHBAY_HEALTH_PORT": "many"})


async def test_port_that_is_taken_is_named() -> None:
    async with serving_metrics(0, {}, ready=lambda: True, host="127.0.0.1") as port:
        with pytest.raises(errors.FailedPrecondition, match="PATCHBAY_HEALTH_PORT"):
            async with serving_metrics(port, {}, ready=lambda: True, host="127.0.0.1"):
                pass
