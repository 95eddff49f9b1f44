"""Rounds over a pool in memory, in virtual time: how often, how long and for what a request waits."""

import asyncio

import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual
from tests.unit.edge.provider_failures import DONE, STREAM, TEXT, answered

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.plugins.snapshot import (
    RetryEntry,
    SettingsEntry,
    StreamingEntry,
)


@virtual
async def test_round_waits_for_the_earliest_recovery_and_goes_on() -> None:
    script = Script(blocked={"a": 4.0, "b": 9.0})
    retry = RetryEntry(rounds=1, max_wait=10)
    client = await Edge(script, pool("a", "b", retry=retry)).ask()
    assert client.status == 200
    assert script.called == [("a", "up")]
    assert client.sent[0][0] == pytest.approx(5.0), "4 s and a quarter of spread"
    assert [item.round for item in script.acquired] == [0, 1]


def cooling_for(seconds: float) -> scheduler_pb2.Refusal:
    refusal = scheduler_pb2.Refusal(code=8, reason="MODEL_COOLDOWN", message="all cool down")
    refusal.retry_after.FromMilliseconds(int(seconds * 1000))
    return refusal


@virtual
async def test_round_whose_credential_recovers_a_little_later_than_told_waits_on() -> None:
    """What a failure takes to reach all schedulers is nobody's fault, and no further round's."""
    script = Script(refusals=[cooling_for(2.0), cooling_for(0.2)])
    client = await Edge(script, pool("a", retry=RetryEntry(rounds=1, max_wait=10))).ask()
    assert client.status == 200
    assert client.sent[0][0] == pytest.approx(2.75), "2.2 s and a quarter of spread"
    assert [item.round for item in script.acquired] == [0, 1, 1]


@virtual
async def test_round_whose_credential_always_recovers_later_than_told_ends() -> None:
    script = Script(refusals=[cooling_for(1.0) for _ in range(20)])
    client = await Edge(script, pool("a", retry=RetryEntry(rounds=1, max_wait=10))).ask()
    assert client.status == 429
    assert client.sent[0][0] == pytest.approx(5.0), "the wait, and three times on"


@virtual
async def test_round_longer_than_max_wait_is_not_waited_for() -> None:
    script = Script(blocked={"a": 11.0})
    client = await Edge(script, pool("a", retry=RetryEntry(rounds=3, max_wait=10))).ask()
    assert client.status == 429
    assert client.sent[0][0] == pytest.approx(0)


@virtual
async def test_round_none_are_configured_so_nobody_waits() -> None:
    script = Script(blocked={"a": 1.0})
    assert (await Edge(script, pool("a", retry=RetryEntry(max_wait=10))).ask()).status == 429


@virtual
async def test_round_after_passing_failures_tries_the_same_credentials_again() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(500), b"{}"]
    script.answers["b", "up"] = [answered(500)]
    client = await Edge(script, pool("a", "b", retry=RetryEntry(rounds=1))).ask()
    assert client.status == 200
    assert script.called == [("a", "up"), ("b", "up"), ("a", "up")]


@virtual
async def test_round_waits_when_the_pool_cooled_down_by_this_very_request() -> None:
    """The second round finds the only credential cooling down, and that is its wait."""
    script = Script(cooling=3)
    script.answers["a", "up"] = [answered(429), b"{}"]
    client = await Edge(script, pool("a", retry=RetryEntry(rounds=1, max_wait=10))).ask()
    assert client.status == 200
    assert client.sent[0][0] == pytest.approx(3.75)


@virtual
async def test_round_does_not_follow_a_failure_that_stays() -> None:
    script = Script(default=answered(402))
    await Edge(script, pool("a", "b", retry=RetryEntry(rounds=5))).ask()
    assert script.called == [("a", "up"), ("b", "up")]


@virtual
async def test_round_leaves_providers_out_that_want_none() -> None:
    """A provider with `rounds: 0` takes part in the first round only."""
    script = Script(default=answered(500))
    impatient = pool("a", name="p1")
    patient = pool("b", name="p2", retry=RetryEntry(rounds=1))
    await Edge(script, impatient, patient).ask()
    assert script.called == [("a", "up"), ("b", "up"), ("b", "up")]


@virtual
async def test_max_credentials_bounds_a_round() -> None:
    script = Script(default=answered(500))
    await Edge(script, pool("a", "b", "c", retry=RetryEntry(max_credentials=2))).ask()
    assert script.called == [("a", "up"), ("b", "up")]


@virtual
async def test_attempts_are_bounded_over_all() -> None:
    script = Script(default=answered(500))
    names = [f"c{n:03}" for n in range(200)]
    client = await Edge(script, pool(*names, retry=RetryEntry(rounds=9))).ask()
    assert len(script.called) == 10
    assert client.status == 500


@virtual
async def test_client_leaving_while_a_round_waits_ends_the_request() -> None:
    script = Script(blocked={"a": 300.0})
    edge = Edge(script, pool("a", retry=RetryEntry(rounds=1, max_wait=600)))
    client = await edge.ask(leaves_after=5)
    assert not client.committed
    assert script.called == []
    assert asyncio.get_running_loop().time() < 6


@virtual
async def test_keepalives_go_on_while_a_round_waits() -> None:
    script = Script(blocked={"a": 40.0}, default=[TEXT, DONE])
    limits = StreamingEntry(first_byte_grace=10, keepalive=10, first_byte_timeout=5)
    edge = Edge(
        script,
        pool("a", retry=RetryEntry(rounds=1, max_wait=60)),
        settings=SettingsEntry(streaming=limits),
    )
    client = await edge.ask(STREAM)
    times = [at for at, data in client.sent if data.startswith(b":")]
    assert times == [10, 20, 30, 40]
    assert client.answer.endswith(TEXT + DONE)


# What the client is told.


@virtual
async def test_wait_beyond_all_measure_is_no_wait() -> None:
    script = Script(default=answered(429, message=f"Please try again in {'9' * 306}s."))
    client = await Edge(script, pool("a")).ask()
    assert client.status == 429
    assert b"retry-after" not in client.headers
    assert not script.reports[0].fault.HasField("retry_after")
