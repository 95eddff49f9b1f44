"""
The edge's side of Acquire and Renew: requests that gather while a call is under way share the next one.

`Leases.acquire` is called once per attempt. What gathered in one loop tick goes out together, and while a
call runs the rest gathers: batches grow with load, and a larger one costs each attempt less. Nobody waits
for a call that is slow: after `_SLOW` another one takes those who wait. An attempt for which every
credential is at its cap keeps a place in the scheduler's queue: it is asked for again, alone, on a call that
the scheduler holds until its turn; how long in all is counted here, because the next call may reach another
scheduler, where the wait would begin anew. `Leases.run` renews every live lease each `renew_interval` with
the usage so far. Not here: the end of an attempt (outbox.py) and which scheduler answers (kernel/channels,
plugins/addresses.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay import errors, status
from patchbay.alarms import Alarms
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from patchbay.type.v1 import usage_pb2
    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.kernel.clock import Clock

# Items of one AcquireRequest (scheduler.proto).
_BATCH: Final = 256
# A second call only beside one that hangs; more would only make batches smaller.
_CALLS: Final = 2
# Seconds. Above what a busy scheduler takes, far below what a client notices.
_SLOW: Final = 0.02
# Requests that may wait for a lease; beyond it the edge is overloaded and says so.
_WAITING: Final = 8192
_DEADLINE: Final = 5.0
_RENEW_BATCH: Final = 4096
# Refusal of an attempt that has a place in the scheduler's queue (scheduler/capacity.py).
_QUEUED: Final = "CREDENTIALS_QUEUED"

_log = logs.get_logger("edge.leases")

_Entry = tuple[scheduler_pb2.AcquireItem, asyncio.Future[scheduler_pb2.AcquireResult]]
_Batch = list[_Entry]


class LiveLease(msgspec.Struct):
    """A lease and what its attempt has consumed so far."""

    lease: scheduler_pb2.Lease
    usage: usage_pb2.Usage | None = None
    renewed: int = 0
    """Ordinal of the last renewal that carried usage, whether or not it arrived."""
    reported: usage_pb2.Usage | None = None
    """The usage of the last renewal that arrived."""


class Leases:
    """Permissions of this edge."""

    def __init__(
        self,
        scheduler: SchedulerCalls,
        *,
        edge_id: str,
        clock: Clock,
        renew_interval: float,
        orphaned: Callable[[scheduler_pb2.Lease], None],
    ) -> None:
        """Leases granted after their request had gone are handed to *orphaned*."""
        self._orphaned = orphaned
        self._scheduler = scheduler
        self._edge_id = edge_id
        self._clock = clock
        self._renew_interval = renew_interval
        self._waiting: deque[_Entry] = deque()
        self._calls: dict[asyncio.Task[None], float] = {}
        """Loop time at which each call of a batch began."""
        self._alarms = Alarms()
        self._held: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False
        self._live: dict[str, LiveLease] = {}

    async def acquire(
        self, item: scheduler_pb2.AcquireItem, patience: float = 0.0, *, alone: bool = False
    ) -> LiveLease:
        """
        Lease a credential for one attempt.

        Args:
            item: The attempt.
            patience: Seconds that it may wait in queues (`routing.queue.wait`); it is asked for a second time
                in any case.
            alone: On a call of its own from the start: a plugin chooses its credential, and that plugin's
                time must not be the others'.

        Raises:
            PatchbayError: The refusal, by its code and reason; Unavailable with `retry_after` when no
                scheduler answers, and with reason SHUTDOWN after `aclose`.
        """
        if self._closed:
            raise _shutdown()
        if len(self._waiting) + len(self._held) >= _WAITING:
            raise errors.Unavailable(
                "too many requests wait for a lease", reason="OVERLOADED", retry_after=1
            )
        result = await (self._turn(item) if alone else self._together(item))
        if result.HasField("refusal"):
            end = self._clock.monotonic() + patience
            again = False
            while result.HasField("refusal") and result.refusal.reason == _QUEUED:
                if again and self._clock.monotonic() >= end:
                    raise _in_vain()
                again = True
                result = await self._turn(item)
            if result.HasField("refusal"):
                raise _refused(result.refusal)
        live = LiveLease(result.lease)
        self._live[result.lease.attempt.attempt_uid] = live
        return live

    async def _together(self, item: scheduler_pb2.AcquireItem) -> scheduler_pb2.AcquireResult:
        """Ask with the next batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[scheduler_pb2.AcquireResult] = loop.create_future()
        self._waiting.append((item, future))
        if not self._calls:
            if not self._scheduled:
                self._scheduled = True
                loop.call_soon(self._flush)
        elif len(self._waiting) == 1:
            self._wait()
        return await self._answer(future)

    async def _answer(
        self, future: asyncio.Future[scheduler_pb2.AcquireResult]
    ) -> scheduler_pb2.AcquireResult:
        try:
            return await future
        except asyncio.CancelledError:
            # The lease may have arrived in the very turn in which this request was cancelled.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._hand_back(future.result())
            raise

    async def _turn(self, item: scheduler_pb2.AcquireItem) -> scheduler_pb2.AcquireResult:
        """Ask again for an attempt that waits. The call goes on without us: its lease is handed back."""
        if self._closed:
            raise _shutdown()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[scheduler_pb2.AcquireResult] = loop.create_future()
        batch: _Batch = [(item, future)]
        task = loop.create_task(self._call(batch))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        task.add_done_callback(partial(self._called, batch))
        return await self._answer(future)

    def release(self, live: LiveLease) -> None:
        """Stop renewing; the Report ends the lease."""
        self._live.pop(live.lease.attempt.attempt_uid, None)

    async def run(self) -> None:
        """Renew live leases until cancelled."""
        while True:
            await self._clock.sleep(self._renew_interval)
            await self._renew_all()

    async def aclose(self) -> None:
        """Cancel what runs; attempts that wait fail as Unavailable, now and later."""
        self._closed = True
        _fail(self._waiting, _shutdown)
        self._waiting.clear()
        calls = [*self._calls, *self._held]
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _renew_all(self) -> None:
        live = list(self._live.values())
        for start in range(0, len(live), _RENEW_BATCH):
            await self._renew(live[start : start + _RENEW_BATCH])

    async def _renew(self, live: list[LiveLease]) -> None:
        request = scheduler_pb2.RenewRequest(edge_id=self._edge_id)
        carried: list[tuple[LiveLease, usage_pb2.Usage]] = []
        for entry in live:
            item = request.items.add(attempt=entry.lease.attempt, n=entry.renewed)
            if entry.usage is not None and entry.usage is not entry.reported:
                # Grows even when the call fails: it may have arrived all the same, and then other usage
                # under the same ordinal would be taken for a repetition.
                entry.renewed += 1
                carried.append((entry, entry.usage))
                item.n = entry.renewed
                item.usage.CopyFrom(entry.usage)
        try:
            await self._scheduler.call(methods.RENEW, request, deadline=_DEADLINE)
        except errors.PatchbayError:
            # The next round carries this usage again, or newer. A lease that ends meanwhile settles as
            # lost and is corrected by the Report.
            return
        for entry, usage in carried:
            entry.reported = usage

    def _flush(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._waiting and self._may_call(loop.time()):
            batch: _Batch = []
            while self._waiting and len(batch) < _BATCH:
                entry = self._waiting.popleft()
                if not entry[1].done():
                    batch.append(entry)
            if batch:
                task = loop.create_task(self._call(batch))
                self._calls[task] = loop.time()
                task.add_done_callback(partial(self._called, batch))
        self._wait()

    def _may_call(self, now: float) -> bool:
        return len(self._calls) < _CALLS and all(
            now >= began + _SLOW for began in self._calls.values()
        )

    def _wait(self) -> None:
        """See to it that those who wait do not wait for a call that hangs."""
        if self._waiting and len(self._calls) < _CALLS:
            self._alarms.set(self, max(self._calls.values()) + _SLOW)
        else:
            self._alarms.drop(self)

    def ring(self) -> None:
        """A call takes long (Alarms)."""
        self._flush()

    def _called(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        self._calls.pop(task, None)
        if task.cancelled():
            _fail(batch, _shutdown)
        elif (error := task.exception()) is not None:
            _log.error("a batch of attempts got no leases", attempts=len(batch), exc_info=error)
            _fail(batch, partial(_bug, error))
        if self._waiting:
            self._flush()

    async def _call(self, batch: _Batch) -> None:
        request = scheduler_pb2.AcquireRequest(edge_id=self._edge_id)
        add = request.items.add
        for item, _ in batch:
            add().CopyFrom(item)
        try:
            response = await self._scheduler.call(methods.ACQUIRE, request, deadline=_DEADLINE)
        except errors.PatchbayError as error:
            _fail(batch, partial(_no_scheduler, error))
            return
        # Paired before any is given out: of an answer of another length none can be trusted.
        for (_, future), result in list(zip(batch, response.results, strict=True)):
            if not future.done():
                future.set_result(result)
            else:
                self._hand_back(result)

    def _hand_back(self, result: scheduler_pb2.AcquireResult) -> None:
        if result.HasField("lease"):
            self._orphaned(result.lease)


def _refused(refusal: scheduler_pb2.Refusal) -> errors.PatchbayError:
    """Return the error of a refusal; the provider's last word explains it."""
    message = refusal.message
    if refusal.HasField("last_error"):
        last = refusal.last_error
        told = ": ".join(filter(None, (str(last.http_status or ""), last.message)))
        message = f"{message}; the provider's last error was {told}"
    return status.from_code(
        refusal.code,
        message,
        reason=refusal.reason,
        retry_after=refusal.retry_after.ToMilliseconds() / 1000
        if refusal.HasField("retry_after")
        else None,
    )


def _in_vain() -> errors.PatchbayError:
    return errors.ResourceExhausted(
        "every ready credential has as many requests as it may have, and none became free in time",
        reason="CREDENTIALS_BUSY",
        retry_after=1.0,
    )


def _fail(batch: Iterable[_Entry], make: Callable[[], errors.PatchbayError]) -> None:
    """Fail who still waits, each with an error of its own."""
    for _, future in batch:
        if not future.done():
            future.set_exception(make())


def _no_scheduler(cause: errors.PatchbayError) -> errors.PatchbayError:
    error = errors.Unavailable(
        "no scheduler answers; try again in a moment", reason="NO_SCHEDULER", retry_after=2
    )
    error.__cause__ = cause
    return error


def _bug(cause: BaseException) -> errors.PatchbayError:
    error = errors.Internal("the scheduler's answer could not be used")
    error.__cause__ = cause
    return error


def _shutdown() -> errors.PatchbayError:
    return errors.Unavailable(
        "this process is shutting down; try again", reason="SHUTDOWN", retry_after=1
    )
