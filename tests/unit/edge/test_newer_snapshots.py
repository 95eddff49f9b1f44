"""A request whose snapshot the scheduler does not know, in virtual time."""

from __future__ import annotations

import asyncio

import msgspec
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.scheduler.v1 import scheduler_pb2


def unknown() -> scheduler_pb2.Refusal:
    return scheduler_pb2.Refusal(code=10, reason="SNAPSHOT_UNKNOWN", message="not known here")


def versions(script: Script) -> list[int]:
    return [item.attempt.snapshot_version for item in script.acquired]


@virtual
async def test_request_waits_for_the_snapshot_that_the_scheduler_has_already() -> None:
    """Of two that were published in a row the scheduler has the second and never saw the first."""
    script = Script(refusals=[unknown()])
    edge = Edge(script, pool("a"))
    newer = msgspec.structs.replace(edge.snapshot, version=2)
    asyncio.get_running_loop().call_later(0.1, edge.holder.set, newer)
    client = await edge.ask()
    assert client.status == 200
    assert versions(script) == [1, 2]
    assert asyncio.get_running_loop().time() < 0.2


@virtual
async def test_request_waits_for_the_scheduler_that_does_not_have_its_snapshot_yet() -> None:
    script = Script(refusals=[unknown(), unknown()])
    client = await Edge(script, pool("a")).ask()
    assert client.status == 200
    assert versions(script) == [1, 1, 1]


@virtual
async def test_snapshot_that_no_scheduler_ever_knows_is_told_the_client() -> None:
    script = Script(refusal=unknown())
    client = await Edge(script, pool("a")).ask()
    assert client.status is not None
    assert client.status >= 400
    assert asyncio.get_running_loop().time() < 3
