"""
Booking of leases: attempts that come together share one call to Redis, and go on without it.

Acquires, renewals, ends and journal events that gather while a call is under way share the next one: under
load a call serves dozens of attempts. An end waits up to `_LINGER` for company, because nobody waits for it:
its event is in the write-ahead file already. When Redis does not answer within the store's timeout, leases
are local to this scheduler (`Local`) and the journal falls behind; attempts go on.

Not here: the call itself (leases.py), choosing (selection.py), what waits in the file (redelivery.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError, ResourceExhausted, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.scheduler.leases import Applied, EpochChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.leases import LeaseStore

_log = logs.get_logger("scheduler.leases")

# Attempts and events of one script call: about 2 ms of the server's time.
_BATCH: Final = 512
_EVENTS: Final = 1024
# Attempts that may wait for a call; beyond it the scheduler is overloaded and says so.
_WAITING: Final = 16_384
_LINGER: Final = 0.005
# Leases given while Redis was away; the oldest are forgotten first, which only costs idempotence.
_LOCAL: Final = 65_536


class Local:
    """Leases given while Redis was away, so that a repeated Acquire gets the same one."""

    def __init__(self, *, clock: Clock, ttl: float) -> None:
        self._clock = clock
        self._ttl = ttl
        self._leases: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def take(self, uid: str, value: str) -> str | None:
        """Take a lease; return the value of the one that stands already, if any."""
        if (standing := self.standing(uid)) is not None:
            return standing
        now = self._clock.monotonic()
        while self._leases:
            oldest = next(iter(self._leases.values()))
            if oldest[0] > now and len(self._leases) < _LOCAL:
                break
            self._leases.popitem(last=False)
        self._leases[uid] = (now + self._ttl, value)
        return None

    def standing(self, uid: str) -> str | None:
        """Return the value of a lease that lives."""
        found = self._leases.get(uid)
        return found[1] if found is not None and found[0] > self._clock.monotonic() else None

    def renew(self, uid: str) -> None:
        """Extend a lease that lives."""
        if (value := self.standing(uid)) is not None:
            self._leases.move_to_end(uid)
            self._leases[uid] = (self._clock.monotonic() + self._ttl, value)

    def end(self, uid: str) -> bool:
        """Forget a lease; return whether it lived."""
        lived = self.standing(uid) is not None
        self._leases.pop(uid, None)
        return lived


@dataclass(slots=True)
class _Wanted:
    """What one Acquire or Renew call waits for."""

    take: list[tuple[str, str]]
    renew: list[tuple[str, str]]
    done: asyncio.Future[Applied | None]
    """None: Redis did not answer."""


class LeaseBook:
    """
    The leases of this scheduler, in Redis or local.

    `run` is its one worker; whoever builds it owns that task. Waiting calls end when it ends.
    """

    def __init__(
        self, store: LeaseStore, journal: Journal, local: Local, *, on_behind: asyncio.Event
    ) -> None:
        """A call that fails sets *on_behind*."""
        self._store = store
        self._journal = journal
        self._local = local
        self._on_behind = on_behind
        self._queue: deque[_Wanted] = deque()
        self._queued = 0
        self._ends: list[str] = []
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def admit(self) -> None:
        """
        Refuse before anything is journaled what `take` and `renew` would refuse.

        Raises:
            ResourceExhausted: Too many wait.
            Unavailable: This scheduler is shutting down.
        """
        if self._ended:
            raise Unavailable("this scheduler is shutting down", reason="DRAINING")
        if self._queued >= _WAITING:
            raise ResourceExhausted(
                "too many attempts wait for a lease", reason="SCHEDULER_BUSY", retry_after=1.0
            )

    async def take(self, leases: list[tuple[str, str]]) -> list[str | None]:
        """
        Take a lease for each (attempt_uid, value), whose opened events are recorded already.

        Returns:
            For each, None when it is the caller's, or the value of the lease that the attempt already has.

        Raises:
            ResourceExhausted: Too many wait.
        """
        applied = await self._submit(leases, [])
        if applied is not None and not applied.standing and not len(self._local):
            return [None] * len(leases)
        standing = applied.standing if applied is not None else {}
        found: list[str | None] = []
        for index, (uid, value) in enumerate(leases):
            if applied is None:
                found.append(self._local.take(uid, value))
            else:
                found.append(standing.get(index) or self._local.standing(uid))
        if applied is None:
            await self._journal.durable()
        return found

    async def renew(self, leases: list[tuple[str, str]]) -> list[bool]:
        """
        Extend each lease (attempt_uid, value); return which were alive. While Redis is away all are.

        Raises:
            ResourceExhausted: Too many wait.
        """
        applied = await self._submit([], leases)
        if applied is None:
            for uid, _ in leases:
                self._local.renew(uid)
            return [True] * len(leases)
        alive = [index not in applied.ended for index in range(len(leases))]
        if len(self._local):
            # From now on they are in Redis.
            alive = [
                self._local.end(uid) or known for (uid, _), known in zip(leases, alive, strict=True)
            ]
        return alive

    def end(self, uids: Sequence[str]) -> None:
        """End leases with one of the next calls, and let recorded events go out."""
        if len(self._local):
            for uid in uids:
                self._local.end(uid)
        # While Redis is away nobody takes these; the leases expire by themselves.
        if len(self._ends) < _WAITING:
            self._ends.extend(uids)
        if self._timer is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self._due)

    async def _submit(
        self, take: list[tuple[str, str]], renew: list[tuple[str, str]]
    ) -> Applied | None:
        self.admit()
        wanted = _Wanted(take, renew, asyncio.get_running_loop().create_future())
        self._queue.append(wanted)
        self._queued += len(take) + len(renew)
        self.nudge()
        return await wanted.done

    def _due(self) -> None:
        self._timer = None
        self.nudge()

    def nudge(self) -> None:
        """Look whether something waits."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Make calls until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._queue and (self._timer is not None or not self._something()):
                    self._wake = loop.create_future()
                    await self._wake
                    self._wake = None
                await self._call()
        finally:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            while self._queue:
                self._queue.popleft().done.cancel()

    async def flush(self) -> None:
        """Send what waits now, for a graceful end; `run` must have ended."""
        while self._something():
            await self._call()

    def _something(self) -> bool:
        return bool(self._queue or self._ends or self._journal.waiting)

    async def _call(self) -> None:
        batch: list[_Wanted] = []
        size = 0
        while self._queue and size < _BATCH:
            wanted = self._queue.popleft()
            size += len(wanted.take) + len(wanted.renew)
            batch.append(wanted)
        self._queued -= size
        ends, self._ends = self._ends[:_BATCH], self._ends[_BATCH:]
        parcel = self._journal.take(_EVENTS)
        take = [lease for wanted in batch for lease in wanted.take]
        renew = [lease for wanted in batch for lease in wanted.renew]
        try:
            applied = await self._store.apply(take, renew, ends, parcel.events)
        except (EpochChanged, PatchbayError) as error:
            if not isinstance(error, EpochChanged | Unavailable):
                _log.error("the lease script failed", error=str(error))
            self._journal.fall_behind()
            self._on_behind.set()
            self._answer(batch, None)
        except BaseException:
            # The worker ends; nobody else would tell those who wait.
            self._journal.fall_behind()
            for wanted in batch:
                wanted.done.cancel()
            raise
        else:
            self._journal.delivered(parcel)
            self._answer(batch, applied)

    def _answer(self, batch: list[_Wanted], applied: Applied | None) -> None:
        if applied is None or not (applied.standing or applied.ended):
            for wanted in batch:
                if not wanted.done.done():
                    wanted.done.set_result(applied)
            return
        take = renew = 0
        for wanted in batch:
            takes, renews = len(wanted.take), len(wanted.renew)
            part = Applied(
                {i - take: v for i, v in applied.standing.items() if take <= i < take + takes},
                {i - renew for i in applied.ended if renew <= i < renew + renews},
            )
            take, renew = take + takes, renew + renews
            if not wanted.done.done():
                wanted.done.set_result(part)
