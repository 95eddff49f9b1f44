"""
What makes refreshes happen by themselves: timers that this scheduler sets, claims and ends.

Every scheduler arms the timers of all credentials from the durable records, as they change and again now and
then, so that a lost timer is armed by the next look. A timer that fires here becomes a flight (refresh.py).
While Redis is away no timer fires; then only tokens that have run out are refreshed.

Not here: the timers (timers.py), when a credential is due (refresh_rules.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.scheduler.refresh import MOST_FLIGHTS

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.scheduler.refresh import Refresher
    from patchbay_gateway.scheduler.timers import Claim, Timers

_log = logs.get_logger("scheduler.refresh")

LONGEST_PAUSE: Final = 5.0
ARM_EVERY: Final = 30.0
"""Seconds after which all timers are armed again, wherever they may have got lost."""
ALONE_EVERY: Final = 1.0
AGAIN: Final = 1.0
"""Least pause of a timer that has fired."""
NOT_HERE: Final = 10.0
"""Seconds after which a timer that this process can do nothing for fires again."""
# Several schedulers that wake for the same timer need not ask in the same millisecond.
_LEAST_PAUSE: Final = 0.02


class RefreshLoop:
    """
    The timers of this scheduler.

    Args:
        refresher: Flies.
        timers: Fire.
        clock: Paces.
    """

    def __init__(self, refresher: Refresher, timers: Timers, *, clock: Clock) -> None:
        self._refresher = refresher
        self._timers = timers
        self._clock = clock
        self._dirty: set[str] = set()
        self._woken = asyncio.Event()
        self._epoch: str | None = None
        self._armed_at = 0.0
        self._running: set[asyncio.Task[Any]] = set()
        self._urgent: set[str] = set()
        """Credentials that are being refreshed without a timer."""

    def changed(self, credential_id: str) -> None:
        """Arm the timer of *credential_id* anew."""
        self._dirty.add(credential_id)
        self._woken.set()

    def changed_all(self) -> None:
        """Arm all timers anew."""
        self._epoch = None
        self._woken.set()

    async def run(self) -> None:
        """Arm, claim, fly; for ever."""
        try:
            while True:
                self._woken.clear()
                self._refresher.count_lost()
                try:
                    pause = await self._turn()
                except Unavailable:
                    pause = await self._alone()
                except PatchbayError as error:
                    _log.error("timers of refreshes are out of order", why=error.message)
                    pause = LONGEST_PAUSE
                await self._wait(pause)
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    async def _turn(self) -> float:
        refresher = self._refresher
        if not refresher.known:
            return LONGEST_PAUSE
        await self._arm()
        able = any(refresher.able(id_) for id_ in refresher.known)
        free = MOST_FLIGHTS - len(self._running) if able else 0
        found = await self._timers.claim(max(free, 0))
        for claim in found.claims:
            task = asyncio.get_running_loop().create_task(
                self._fire(claim), name=f"refresh-timer {claim.credential_id}"
            )
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if found.epoch != self._epoch:
            # Another life of the server: what we had armed is gone.
            self._epoch = found.epoch
            self._armed_at = 0.0
            return 0.0
        if found.pause is None or (found.pause <= 0 and free <= len(found.claims)):
            return LONGEST_PAUSE if free > 0 and able else ALONE_EVERY
        return min(max(found.pause, _LEAST_PAUSE), LONGEST_PAUSE)

    async def _arm(self) -> None:
        refresher = self._refresher
        now = self._clock.monotonic()
        dirty, self._dirty = self._dirty, set()
        if everything := not self._armed_at or now - self._armed_at > ARM_EVERY:
            dirty = dirty | set(refresher.known)
        if not dirty:
            return
        try:
            await self._timers.arm({id_: refresher.due(id_) for id_ in dirty})
        except PatchbayError:
            self._dirty |= dirty
            raise
        if everything:
            self._armed_at = now

    async def _fire(self, claim: Claim) -> None:
        refresher, id_ = self._refresher, claim.credential_id
        try:
            await refresher.fly(id_)
        except asyncio.CancelledError:
            # The flight goes on to its end; its timer is for others, and not only when the claim is over.
            await self._finish(claim, self._clock.now() + AGAIN)
            raise
        due = refresher.due(id_)
        if due is not None:
            due = max(due, self._clock.now() + (AGAIN if refresher.able(id_) else NOT_HERE))
        await self._finish(claim, due)
        self._woken.set()

    async def _finish(self, claim: Claim, due: float | None) -> None:
        try:
            await self._timers.finish(claim, due)
        except PatchbayError as error:
            # The claim ends by itself, and the timer fires again.
            _log.debug("a timer was not set", credential=claim.credential_id, why=error.message)

    async def _alone(self) -> float:
        """Without timers: refresh what has run out."""
        urgent = [id_ for id_ in self._refresher.urgent() if id_ not in self._urgent]
        for id_ in urgent[: MOST_FLIGHTS - len(self._urgent)]:
            task = asyncio.get_running_loop().create_task(
                self._fly_alone(id_), name=f"refresh-urgent {id_}"
            )
            self._urgent.add(id_)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return ALONE_EVERY

    async def _fly_alone(self, credential_id: str) -> None:
        try:
            await self._refresher.fly(credential_id)
        finally:
            self._urgent.discard(credential_id)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await pause(self._clock, seconds, self._woken)
