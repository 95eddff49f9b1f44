"""Calls to schedulers find the one that answers, within their deadline."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge.clients import ChannelCalls
from patchbay_gateway.kernel.channels import methods


class FakeChannel:
    """Fails with what is next in *fails*, answers after that."""

    def __init__(self, *fails: errors.PatchbayError, always: bool = False) -> None:
        self.fails = list(fails)
        self.always = always
        self.deadlines: list[float] = []

    async def unary(self, method: Any, request: Any, *, deadline: float) -> Any:
        self.deadlines.append(deadline)
        # Calls side by side must meet at the failing one.
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails[0] if self.always else self.fails.pop(0)
        return scheduler_pb2.ReportResponse()


def dead(error: errors.PatchbayError | None = None) -> FakeChannel:
    return FakeChannel(error or errors.Unavailable("gone"), always=True)


def make_calls(*channels: FakeChannel) -> ChannelCalls:
    return ChannelCalls(cast("Any", list(channels)))


async def report(calls: ChannelCalls, deadline: float = 6.0) -> Any:
    return await calls.call(methods.REPORT, scheduler_pb2.ReportRequest(), deadline=deadline)


async def test_call_one_scheduler_dead_all_of_several_calls_are_answered() -> None:
    """What fails side by side does not lead each other past the one that answers."""
    gone, alive = dead(), FakeChannel()
    calls = make_calls(gone, alive)
    await asyncio.gather(*(report(calls) for _ in range(4)))
    assert len(alive.deadlines) == 4


async def test_call_after_a_failure_begins_with_the_one_that_answered() -> None:
    gone, alive = dead(), FakeChannel()
    calls = make_calls(gone, alive)
    await report(calls)
    await report(calls)
    assert (len(gone.deadlines), len(alive.deadlines)) == (1, 2)


async def test_call_all_dead_tries_each_once() -> None:
    channels = [dead(), dead(), dead()]
    with pytest.raises(errors.Unavailable):
        await report(make_calls(*channels))
    assert [len(channel.deadlines) for channel in channels] == [1, 1, 1]


async def test_call_several_schedulers_share_the_deadline() -> None:
    """A silent scheduler leaves time for the others, and all together keep to the deadline."""
    silent = dead(errors.DeadlineExceeded("silent"))
    alive = FakeChannel()
    await report(make_calls(silent, alive), deadline=6.0)
    assert silent.deadlines[0] == pytest.approx(3.0, abs=0.5)
    assert alive.deadlines[0] == pytest.approx(6.0, abs=0.5)
    assert alive.deadlines[0] <= 6.0


async def test_call_single_channel_is_tried_again_after_unavailable() -> None:
    """Behind one name there may be another scheduler."""
    channel = FakeChannel(errors.Unavailable("gone"))
    await report(make_calls(channel))
    assert len(channel.deadlines) == 2
    assert channel.deadlines[1] < channel.deadlines[0] == 6.0


@pytest.mark.parametrize(
    ("error", "calls"),
    [(errors.Unavailable("gone"), 2), (errors.DeadlineExceeded("slow"), 1)],
    ids=["unavailable", "slow"],
)
async def test_call_single_channel_dead_ends(error: errors.PatchbayError, calls: int) -> None:
    channel = dead(error)
    with pytest.raises(type(error)):
        await report(make_calls(channel))
    assert len(channel.deadlines) == calls


async def test_call_refused_is_not_tried_elsewhere() -> None:
    other = FakeChannel()
    with pytest.raises(errors.InvalidRequest):
        await report(make_calls(dead(errors.InvalidRequest("wrong")), other))
    assert other.deadlines == []


async def test_call_no_scheduler_says_so() -> None:
    with pytest.raises(errors.Unavailable) as caught:
        await report(make_calls())
    assert caught.value.reason == "NO_SCHEDULER"
