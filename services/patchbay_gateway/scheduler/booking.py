"""
Booking of leases: attempts that come together share one call to Redis, and go on without it.

Acquires, renewals, ends and journal events that gather while a call is under way share the next one: under
load a call serves dozens of attempts. An end waits up to `_LINGER` for company, because nobody waits for it:
its event is in the write-ahead file already. When Redis does not answer within the store's timeout, leases
are local to this scheduler (`Local`), its own view of the pool decides, and the journal falls behind;
attempts go on.

Not here: the call itself (leases.py), choosing (selection.py, placing.py), what waits in the file
(redelivery.py), how the view is kept current (pool.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError, ResourceExhausted, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels.port import DRAINING
from patchbay_gateway.scheduler.alone import PROBING, Local, Refused, Taken, take_alone
from patchbay_gateway.scheduler.leases import Applied, EpochChanged, Special

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.journal import Draft, Journal
    from patchbay_gateway.scheduler.leases import Check, LeaseStore, Sign
    from patchbay_gateway.scheduler.marks import End

_log = logs.get_logger("scheduler.leases")

# Attempts and events of one script call: about 2 ms of the server's time.
_BATCH: Final = 512
_EVENTS: Final = 1024
# Attempts that may wait for a call; beyond it the scheduler is overloaded and says so.
_WAITING: Final = 16_384
_LINGER: Final = 0.005


_NOTHING: Final[Mapping[int, Any]] = MappingProxyType({})


@dataclass(slots=True)
class _Wanted:
    """What one Acquire or Renew call waits for."""

    take: list[tuple[str, str]]
    renew: list[tuple[str, str]]
    done: asyncio.Future[Applied | None]
    """None: Redis did not answer."""
    checks: Mapping[int, Check]
    signs: Mapping[int, Sign]
    version: int


class LeaseBook:
    """
    The leases of this scheduler, in Redis or local.

    `run` is its one worker; whoever builds it owns that task. Waiting calls end when it ends.
    """

    def __init__(
        self,
        store: LeaseStore,
        journal: Journal,
        local: Local,
        *,
        on_behind: asyncio.Event,
        view: HealthView,
        on_alone: Callable[[Sequence[End]], None],
    ) -> None:
        """A call that fails sets *on_behind*; ends that it should have settled go to *on_alone*."""
        self._store = store
        self._journal = journal
        self._local = local
        self._on_behind = on_behind
        self._view = view
        self._on_alone = on_alone
        self._queue: deque[_Wanted] = deque()
        self._queued = 0
        self._ends: list[str] = []
        self._special_ends: list[End] = []
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
            raise Unavailable("this scheduler is shutting down", reason=DRAINING)
        if self._queued >= _WAITING:
            raise ResourceExhausted(
                "too many attempts wait for a lease", reason="SCHEDULER_BUSY", retry_after=1.0
            )

    async def take(
        self,
        leases: list[tuple[str, str]],
        checks: Mapping[int, Check] | None = None,
        version: int = 0,
    ) -> list[Taken]:
        """
        Take a lease for each (attempt_uid, value).

        Args:
            leases: What was chosen.
            checks: Index → what Redis has to look at.
            version: Of the view that they were chosen by.

        Raises:
            ResourceExhausted: Too many wait.
        """
        applied = await self._submit(leases, [], checks=checks or {}, version=version)
        if applied is None:
            caps = checks or {}
            return [
                take_alone(
                    self._local, self._view, uid, value, caps[index].cap if index in caps else 0
                )
                for index, (uid, value) in enumerate(leases)
            ]
        local = self._local if len(self._local) else None
        if not (applied.standing or applied.refused or applied.probes or local):
            return [None] * len(leases)
        found: list[Taken] = []
        for index, (uid, _) in enumerate(leases):
            standing = applied.standing.get(index) or (local.standing(uid) if local else None)
            if standing is None and index in applied.refused:
                found.append(Refused(applied.refused[index]))
            elif standing is None and index in applied.probes:
                found.append(PROBING)
            else:
                found.append(standing)
        return found

    def opened(self, drafts: Sequence[Draft]) -> None:
        """
        Journal attempts whose leases were taken, before anybody is told of them; then wait for `durable`.

        They go to Redis with one of the next calls.

        Raises:
            ResourceExhausted: The write-ahead file is full; nothing was written.
            Unavailable: The disk failed.
        """
        self._journal.record(drafts)
        if self._timer is None:
            self._linger()

    @property
    def safe(self) -> bool:
        """Whether what was journaled goes to Redis now, so that nobody waits for the disk."""
        return self._journal.live

    async def durable(self) -> None:
        """Wait until what was journaled survives this machine, or goes to Redis."""
        await self._journal.durable()

    async def renew(
        self, leases: list[tuple[str, str]], signs: Mapping[int, Sign] | None = None
    ) -> list[bool]:
        """
        Extend each lease (attempt_uid, value); return which were alive. While Redis is away all are.

        Args:
            leases: One without value is not made again if it is gone.
            signs: Index → what else the sign of life says.

        Raises:
            ResourceExhausted: Too many wait.
        """
        applied = await self._submit([], leases, signs=signs or {})
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

    def end(self, uids: Sequence[str], special: Sequence[End] = ()) -> None:
        """
        End leases with one of the next calls, and let recorded events go out.

        Args:
            uids: Attempts whose ends change nothing else.
            special: Ends that free places or concern marks.
        """
        if len(self._local):
            for uid in uids:
                self._local.end(uid)
            for end in special:
                end.known = int(self._local.end(end.uid))
        # While Redis is away nobody takes these; the leases expire by themselves.
        if len(self._ends) < _WAITING:
            self._ends.extend(uids)
        if special and len(self._special_ends) < _WAITING:
            # What is held against a credential binds all schedulers soon, and others wait for places.
            self._special_ends.extend(special)
            self._due()
        else:
            self._linger()

    def _linger(self) -> None:
        if self._timer is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self._due)

    async def _submit(
        self,
        take: list[tuple[str, str]],
        renew: list[tuple[str, str]],
        *,
        checks: Mapping[int, Check] = _NOTHING,
        signs: Mapping[int, Sign] = _NOTHING,
        version: int = 0,
    ) -> Applied | None:
        self.admit()
        done = asyncio.get_running_loop().create_future()
        wanted = _Wanted(take, renew, done, checks, signs, version)
        self._queue.append(wanted)
        self._queued += len(take) + len(renew)
        self.nudge()
        return await wanted.done

    def _due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
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
        return bool(self._queue or self._ends or self._special_ends or self._journal.waiting)

    async def _call(self) -> None:
        batch: list[_Wanted] = []
        size = 0
        while self._queue and size < _BATCH:
            wanted = self._queue.popleft()
            count = len(wanted.take) + len(wanted.renew)
            self._queued -= count
            if wanted.done.done():
                # Its caller has gone, to another scheduler perhaps: nobody would end these leases.
                continue
            size += count
            batch.append(wanted)
        ends, self._ends = self._ends[:_BATCH], self._ends[_BATCH:]
        special = Special(ends=self._special_ends[:_BATCH])
        self._special_ends = self._special_ends[_BATCH:]
        version = _gather(batch, special)
        parcel = self._journal.take(_EVENTS)
        take = [lease for wanted in batch for lease in wanted.take]
        renew = [lease for wanted in batch for lease in wanted.renew]
        try:
            applied = await self._store.apply(take, renew, ends, parcel.events, special, version)
        except (EpochChanged, PatchbayError) as error:
            if not isinstance(error, EpochChanged | Unavailable):
                _log.error("the lease script failed", error=str(error))
            self._journal.fall_behind()
            self._on_behind.set()
            if special.ends:
                self._on_alone(special.ends)
            self._answer(batch, None)
        except BaseException as error:
            # The worker ends; nobody else would tell those who wait.
            if isinstance(error, asyncio.CancelledError):
                # Whether Redis has heard is unknown. Ends and events do nothing twice: `flush` sends them.
                self._journal.give_back(parcel)
                self._ends = ends + self._ends
                self._special_ends = special.ends + self._special_ends
            else:
                self._journal.fall_behind()
            for wanted in batch:
                wanted.done.cancel()
            raise
        else:
            self._journal.delivered(parcel)
            if applied.changes:
                self._view.learn(applied.changes)
            for credential_id, busy in applied.counts:
                self._view.count(credential_id, busy)
            self._answer(batch, applied)

    def _answer(self, batch: list[_Wanted], applied: Applied | None) -> None:
        if applied is None or not (
            applied.standing or applied.ended or applied.refused or applied.probes
        ):
            for wanted in batch:
                if not wanted.done.done():
                    wanted.done.set_result(applied)
            return
        take = renew = 0
        for wanted in batch:
            takes, renews = len(wanted.take), len(wanted.renew)
            mine = range(take, take + takes)
            part = Applied(
                standing={i - take: v for i, v in applied.standing.items() if i in mine},
                ended={i - renew for i in applied.ended if renew <= i < renew + renews},
                refused={i - take: v for i, v in applied.refused.items() if i in mine},
                probes={i - take for i in applied.probes if i in mine},
            )
            take, renew = take + takes, renew + renews
            if not wanted.done.done():
                wanted.done.set_result(part)


def _gather(batch: list[_Wanted], special: Special) -> int:
    """Number the checks and signs of *batch* through; return the oldest version that it was chosen by."""
    take = renew = 1
    version = None
    for wanted in batch:
        if wanted.take:
            version = wanted.version if version is None else min(version, wanted.version)
        for index, check in wanted.checks.items():
            special.takes[take + index] = check
        for index, sign in wanted.signs.items():
            special.renews[renew + index] = sign
        take, renew = take + len(wanted.take), renew + len(wanted.renew)
    return version or 0
