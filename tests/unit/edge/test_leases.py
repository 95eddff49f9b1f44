"""Acquire in batches, Renew in rounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.harness.virtual_time import virtual

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.type.v1 import usage_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.edge.leases import Leases
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.clock import ManualClock


class FakeScheduler:
    """Answers when told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: errors.PatchbayError | None = None
        self.refuse: scheduler_pb2.Refusal | None = None
        self.renewed = asyncio.Event()
        self.renew_error: errors.PatchbayError | None = None
        self.forget = 0
        """So many results are missing from each answer."""

    async def call(self, method, request, *, deadline):
        self.requests.append(request)
        if method is methods.RENEW:
            self.renewed.set()
            if self.renew_error:
                raise self.renew_error
            return scheduler_pb2.RenewResponse(alive=[True] * len(request.items))
        await self.gate.wait()
        if self.error:
            raise self.error
        results = []
        for item in request.items:
            if self.refuse:
                results.append(scheduler_pb2.AcquireResult(refusal=self.refuse))
            else:
                lease = scheduler_pb2.Lease(attempt=item.attempt)
                results.append(scheduler_pb2.AcquireResult(lease=lease))
        return scheduler_pb2.AcquireResponse(results=results[self.forget :])


def make_item(n: int = 1) -> scheduler_pb2.AcquireItem:
    return scheduler_pb2.AcquireItem(attempt=journal_pb2.AttemptInfo(attempt_uid=f"r{n}-1"))


def make_leases(scheduler: FakeScheduler, clock: ManualClock | None = None) -> Leases:
    orphans: list[scheduler_pb2.Lease] = []
    leases = Leases(
        scheduler,
        edge_id="e",
        clock=clock or ManualClock(),
        renew_interval=15,
        orphaned=orphans.append,
    )
    leases.orphans = orphans  # type: ignore[attr-defined]
    return leases


async def test_acquire_together_shares_one_call() -> None:
    scheduler = FakeScheduler()
    leases = make_leases(scheduler)
    got = await asyncio.gather(*(leases.acquire(make_item(n)) for n in range(5)))
    assert [live.lease.attempt.attempt_uid for live in got] == [f"r{n}-1" for n in range(5)]
    assert len(scheduler.requests) == 1


async def test_acquire_while_a_call_is_under_way_gathers() -> None:
    """What comes meanwhile goes out in one."""
    scheduler = FakeScheduler()
    scheduler.gate.clear()
    leases = make_leases(scheduler)
    tasks = []
    for n in range(6):
        tasks.append(asyncio.create_task(leases.acquire(make_item(n))))
        for _ in range(4):
            await asyncio.sleep(0)
    assert len(scheduler.requests) == 1
    scheduler.gate.set()
    await asyncio.gather(*tasks)
    assert [len(r.items) for r in scheduler.requests] == [1, 5]


class HangingScheduler(FakeScheduler):
    """Answers no call whose first attempt is in *hung*."""

    def __init__(self, *hung: str) -> None:
        super().__init__()
        self._hung = hung
        self._never = asyncio.Event()

    async def call(self, method, request, *, deadline):
        if request.items[0].attempt.attempt_uid in self._hung:
            self.requests.append(request)
            await self._never.wait()
        return await super().call(method, request, deadline=deadline)


@virtual
async def test_acquire_beside_a_call_that_hangs_waits_a_moment_and_no_longer() -> None:
    scheduler = HangingScheduler("r0-1")
    leases = make_leases(scheduler)
    now = asyncio.get_running_loop().time
    hung = asyncio.create_task(leases.acquire(make_item(0)))
    await asyncio.sleep(0.005)
    began = now()
    await asyncio.gather(*(leases.acquire(make_item(n)) for n in (1, 2)))
    assert now() - began <= 0.05
    # The one that hangs is known to by now: the next find nobody to wait for.
    began = now()
    await leases.acquire(make_item(3))
    assert now() - began <= 0.001
    assert [len(r.items) for r in scheduler.requests] == [1, 2, 1]
    await leases.aclose()
    with pytest.raises(errors.Unavailable):
        await hung


@virtual
async def test_acquire_beside_two_calls_that_hang_goes_out_with_the_next_end() -> None:
    scheduler = HangingScheduler("r0-1", "r1-1")
    leases = make_leases(scheduler)
    tasks = []
    for n in range(4):
        tasks.append(asyncio.create_task(leases.acquire(make_item(n))))
        await asyncio.sleep(0.1)
    assert [len(r.items) for r in scheduler.requests] == [1, 1]
    await leases.aclose()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(e, "reason", e) for e in ended] == ["SHUTDOWN"] * 4


async def test_acquire_refusal_becomes_the_error() -> None:
    scheduler = FakeScheduler()
    scheduler.refuse = scheduler_pb2.Refusal(code=8, reason="NO_CREDENTIAL", message="all cool")
    scheduler.refuse.retry_after.FromMilliseconds(1500)
    with pytest.raises(errors.ResourceExhausted) as caught:
        await make_leases(scheduler).acquire(make_item())
    assert (caught.value.reason, caught.value.retry_after) == ("NO_CREDENTIAL", 1.5)


class QueueingScheduler(FakeScheduler):
    """Has no place for an attempt when it is asked first; holds the next call until told."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = asyncio.Event()

    async def call(self, method, request, *, deadline):
        seen = [i.attempt.attempt_uid for r in self.requests for i in r.items]
        if request.items[0].attempt.attempt_uid in seen:
            response = await super().call(method, request, deadline=deadline)
            await self.turn.wait()
            return response
        self.refuse = scheduler_pb2.Refusal(code=8, reason="CREDENTIALS_QUEUED", message="wait")
        try:
            return await super().call(method, request, deadline=deadline)
        finally:
            self.refuse = None


async def test_acquire_queued_asks_again_alone_and_holds_back_nobody() -> None:
    scheduler = QueueingScheduler()
    leases = make_leases(scheduler)
    waiting = [asyncio.create_task(leases.acquire(make_item(n))) for n in range(4)]
    while len(scheduler.requests) < 5:  # noqa: ASYNC110 - the loop's own turns
        await asyncio.sleep(0)
    assert [len(r.items) for r in scheduler.requests] == [4, 1, 1, 1, 1]
    other = asyncio.create_task(leases.acquire(make_item(9)))
    while len(scheduler.requests) < 7:  # noqa: ASYNC110 - the loop's own turns
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    scheduler.turn.set()
    got = await asyncio.gather(*waiting, other)
    assert [live.lease.attempt.attempt_uid for live in got] == [f"r{n}-1" for n in (0, 1, 2, 3, 9)]


async def test_acquire_queued_anew_by_each_scheduler_ends_after_its_patience() -> None:
    """Calls go to one scheduler after the other; each gives a new place, with a wait of its own."""
    scheduler, clock = FakeScheduler(), ManualClock()
    scheduler.refuse = scheduler_pb2.Refusal(code=8, reason="CREDENTIALS_QUEUED", message="wait")
    held = scheduler.call

    async def call(method, request, *, deadline):
        await clock.sleep(1.0)
        return await held(method, request, deadline=deadline)

    scheduler.call = call  # type: ignore[method-assign]
    waiting = asyncio.create_task(make_leases(scheduler, clock).acquire(make_item(), 5.0))
    for _ in range(100):
        await asyncio.sleep(0)
        await clock.advance(0.1)
    assert waiting.done()
    with pytest.raises(errors.ResourceExhausted) as caught:
        await waiting
    assert caught.value.reason == "CREDENTIALS_BUSY"
    assert len(scheduler.requests) == 6


async def test_acquire_cancelled_while_queued_returns_the_lease() -> None:
    scheduler = QueueingScheduler()
    leases = make_leases(scheduler)
    waiting = asyncio.create_task(leases.acquire(make_item()))
    while len(scheduler.requests) < 2:  # noqa: ASYNC110 - the loop's own turns
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    scheduler.turn.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert [lease.attempt.attempt_uid for lease in leases.orphans] == ["r1-1"]  # type: ignore[attr-defined]


async def test_aclose_ends_calls_that_are_held() -> None:
    scheduler = QueueingScheduler()
    leases = make_leases(scheduler)
    waiting = asyncio.create_task(leases.acquire(make_item()))
    while len(scheduler.requests) < 2:  # noqa: ASYNC110 - the loop's own turns
        await asyncio.sleep(0)
    await leases.aclose()
    with pytest.raises(errors.Unavailable):
        await waiting


async def test_acquire_no_scheduler_says_when_to_come_back() -> None:
    scheduler = FakeScheduler()
    scheduler.error = errors.Unavailable("refused")
    with pytest.raises(errors.Unavailable) as caught:
        await make_leases(scheduler).acquire(make_item())
    assert caught.value.reason == "NO_SCHEDULER"
    assert caught.value.retry_after == 2


async def test_acquire_cancelled_while_under_way_returns_the_lease() -> None:
    """A lease that was granted for somebody who left is handed back, not left to expire."""
    scheduler = FakeScheduler()
    scheduler.gate.clear()
    leases = make_leases(scheduler)
    task = asyncio.create_task(leases.acquire(make_item()))
    for _ in range(4):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    scheduler.gate.set()
    for _ in range(4):
        await asyncio.sleep(0)
    assert [o.attempt.attempt_uid for o in leases.orphans] == ["r1-1"]  # type: ignore[attr-defined]


async def test_acquire_cancelled_as_the_lease_arrives_returns_it() -> None:
    """The future holds a lease, but its waiter is cancelled before it runs again."""
    scheduler = FakeScheduler()
    scheduler.gate.clear()
    leases = make_leases(scheduler)
    task = asyncio.create_task(leases.acquire(make_item()))
    for _ in range(4):
        await asyncio.sleep(0)
    scheduler.gate.set()
    # One turn: the call gives the lease out; the waiter would go on in the next.
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert [o.attempt.attempt_uid for o in leases.orphans] == ["r1-1"]  # type: ignore[attr-defined]


async def test_acquire_answer_too_short_fails_the_whole_batch() -> None:
    """Nobody waits for ever, nobody gets another's lease, and the next batch goes on."""
    scheduler = FakeScheduler()
    scheduler.forget = 1
    leases = make_leases(scheduler)
    async with asyncio.timeout(30):
        got = await asyncio.gather(
            *(leases.acquire(make_item(n)) for n in range(3)), return_exceptions=True
        )
    assert [type(error) for error in got] == [errors.Internal] * 3
    scheduler.forget = 0
    assert (await leases.acquire(make_item())).lease.attempt.attempt_uid == "r1-1"


async def test_aclose_fails_all_that_wait_and_starts_no_call() -> None:
    """Under way, not begun, and gathering: each attempt ends as unavailable."""
    scheduler = FakeScheduler()
    scheduler.gate.clear()
    leases = make_leases(scheduler)
    tasks = []
    for n in range(4):
        tasks.append(asyncio.create_task(leases.acquire(make_item(n))))
        for _ in range(4):
            await asyncio.sleep(0)
    assert len(scheduler.requests) == 1
    await leases.aclose()
    async with asyncio.timeout(30):
        got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(error, "reason", error) for error in got] == ["SHUTDOWN"] * 4
    assert len(scheduler.requests) == 1


async def test_aclose_before_the_call_began_fails_its_batch() -> None:
    scheduler = FakeScheduler()
    leases = make_leases(scheduler)
    task = asyncio.create_task(leases.acquire(make_item()))
    # One turn to ask, one to make the call's task; it would begin in the third.
    for _ in range(2):
        await asyncio.sleep(0)
    assert leases._calls
    await leases.aclose()
    async with asyncio.timeout(30):
        with pytest.raises(errors.Unavailable) as caught:
            await task
    assert caught.value.reason == "SHUTDOWN"
    assert scheduler.requests == []


async def test_acquire_after_aclose_is_refused() -> None:
    scheduler = FakeScheduler()
    leases = make_leases(scheduler)
    await leases.aclose()
    with pytest.raises(errors.Unavailable) as caught:
        await leases.acquire(make_item())
    assert caught.value.reason == "SHUTDOWN"
    assert scheduler.requests == []


async def test_run_renewal_failed_carries_its_usage_again() -> None:
    """Under a new ordinal: the failed one may have arrived."""
    clock, scheduler = ManualClock(), FakeScheduler()
    leases = make_leases(scheduler, clock)
    live = await leases.acquire(make_item())
    live.usage = usage_pb2.Usage(items=[usage_pb2.UsageItem(unit="output_tokens", quantity=3)])
    scheduler.renew_error = errors.DeadlineExceeded("slow")
    task = asyncio.create_task(leases.run())
    await asyncio.sleep(0)
    await clock.advance(15)
    scheduler.renew_error = None
    await clock.advance(15)
    await clock.advance(15)
    sent = [(r.items[0].n, r.items[0].HasField("usage")) for r in scheduler.requests[1:]]
    assert sent == [(1, True), (2, True), (2, False)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_run_renews_with_new_usage_only_once() -> None:
    clock, scheduler = ManualClock(), FakeScheduler()
    leases = make_leases(scheduler, clock)
    live = await leases.acquire(make_item())
    live.usage = usage_pb2.Usage(items=[usage_pb2.UsageItem(unit="output_tokens", quantity=3)])
    task = asyncio.create_task(leases.run())
    await asyncio.sleep(0)
    await clock.advance(15)
    await scheduler.renewed.wait()
    await clock.advance(15)
    first, second = scheduler.requests[1:]
    assert (first.items[0].n, first.items[0].HasField("usage")) == (1, True)
    assert (second.items[0].n, second.items[0].HasField("usage")) == (1, False)
    leases.release(live)
    await clock.advance(15)
    assert len(scheduler.requests) == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class HalfStuck(FakeScheduler):
    """Answers no call whose first attempt is one of `stuck`, before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[str] = set()
        self.let_go = asyncio.Event()

    async def call(self, method, request, *, deadline):
        if request.items[0].attempt.attempt_uid in self.stuck:
            await self.let_go.wait()
        return await super().call(method, request, deadline=deadline)


async def test_attempts_that_a_plugin_chooses_for_hold_up_no_others() -> None:
    """Each goes on a call of its own, however many hang."""
    scheduler = HalfStuck()
    scheduler.stuck = {f"r{n}-1" for n in range(10)}
    leases = make_leases(scheduler)
    held = [asyncio.ensure_future(leases.acquire(make_item(n), alone=True)) for n in range(10)]
    await asyncio.sleep(0)
    live = await leases.acquire(make_item(99))
    assert live.lease.attempt.attempt_uid == "r99-1"
    assert not any(task.done() for task in held)
    scheduler.let_go.set()
    await asyncio.gather(*held)
    assert all(len(r.items) == 1 for r in scheduler.requests)
