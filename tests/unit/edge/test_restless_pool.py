"""A scheduler that could not choose for all the changes in its pool is asked again, in virtual time."""

from __future__ import annotations

import asyncio

from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.scheduler.v1 import scheduler_pb2


def restless() -> scheduler_pb2.Refusal:
    refusal = scheduler_pb2.Refusal(code=14, reason="POOL_RESTLESS", message="it changes")
    refusal.retry_after.FromMilliseconds(100)
    return refusal


@virtual
async def test_restless_pool_is_asked_again_without_rounds_configured() -> None:
    script = Script(refusals=[restless(), restless()])
    client = await Edge(script, pool("a")).ask()
    assert client.status == 200
    assert len(script.acquired) == 3
    assert 0.2 <= asyncio.get_running_loop().time() < 0.5


@virtual
async def test_pool_that_stays_restless_is_told_the_client() -> None:
    script = Script(refusals=[restless() for _ in range(9)])
    client = await Edge(script, pool("a")).ask()
    assert client.status == 503
    assert client.headers[b"retry-after"] == b"1"
    assert len(script.acquired) == 4
