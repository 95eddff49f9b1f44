"""
The queue for credentials that are at their cap: attempts wait their turn, first come, first served.

Acquire is a batch, and one attempt that waits must not hold back the others. So an attempt that finds every
ready credential full is answered at once with CREDENTIALS_QUEUED and keeps its place here by its uid. The
edge asks again for it alone, on a call of its own, and that call is held (`turn`) until the attempt is first
and something changed, or `HOLD` is over and the edge asks once more. The wait ends after `routing.queue.wait`
with CREDENTIALS_BUSY, as it does at once when the queue is full.

An attempt that nobody asks for any more loses its place after `_GONE`; one whose call is cancelled, at once.
Queues are this scheduler's: between schedulers places are taken as they come.

Not here: who is full (ring.py), how places are counted (leases.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from patchbay.errors import ResourceExhausted
from patchbay_gateway.kernel.clock import pause

if TYPE_CHECKING:
    from collections.abc import Hashable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import QueueEntry

QUEUED: Final = "CREDENTIALS_QUEUED"
"""Reason: the attempt has a place in the queue; ask again for it alone, at once."""
BUSY: Final = "CREDENTIALS_BUSY"
"""Reason: every ready credential is full, and the queue as well, or the wait was in vain."""

HOLD: Final = 1.0
"""Seconds that a call is held: less than an edge's deadline for Acquire, shared among four schedulers."""
# The first looks by itself this often: a place freed at another scheduler may not be heard of.
_POLL: Final = 0.5
_GONE: Final = 1.0
# Different sets of credentials with a queue; as many as models that are full at once.
_QUEUES: Final = 1024


@dataclass(slots=True, eq=False)
class _Place:
    """An attempt that waits."""

    deadline: float
    seen: float
    held: int = 0
    """Calls that wait for its turn."""
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """It is worth another try."""


_Queue = OrderedDict[str, _Place]


class Capacity:
    """The queues of one scheduler."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[Hashable, _Queue] = {}
        self._keys: dict[str, Hashable] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def may_try(self, key: Hashable, attempt_uid: str) -> bool:
        """Whether nobody else waits before the attempt for what *key* names."""
        if not self._queues:
            return True
        queue = self._queues.get(key)
        first = self._first(key, queue) if queue is not None else None
        return first is None or first == attempt_uid

    def refusal(self, key: Hashable, attempt_uid: str, limits: QueueEntry) -> ResourceExhausted:
        """
        Take or keep the attempt's place; return what to answer it now.

        Args:
            key: What names the credentials, the same for attempts that wait for the same.
            attempt_uid: The attempt.
            limits: `routing.queue`.
        """
        now = self._clock.monotonic()
        queue = self._queues.get(key)
        place = queue.get(attempt_uid) if queue is not None else None
        if place is None:
            full = len(queue) >= limits.length if queue is not None else limits.length <= 0
            if full or limits.wait <= 0 or (queue is None and len(self._queues) >= _QUEUES):
                return _busy("the queue for them is full" if full else "nobody waits for them")
            if queue is None:
                queue = self._queues[key] = OrderedDict()
            place = queue[attempt_uid] = _Place(now + limits.wait, now)
            self._keys[attempt_uid] = key
        elif now >= place.deadline:
            self.leave(attempt_uid)
            return _busy("none became free in time")
        place.seen = now
        return ResourceExhausted(
            "every ready credential has as many requests as it may have; this one waits for its turn",
            reason=QUEUED,
            retry_after=0.0,
        )

    def leave(self, attempt_uid: str) -> None:
        """The attempt was served or has given up; the next may try."""
        key = self._keys.pop(attempt_uid, None)
        if key is None:
            return
        queue = self._queues[key]
        place = queue.pop(attempt_uid)
        place.called.set()
        if not queue:
            del self._queues[key]
        else:
            self._call_first(key, queue)

    def wake(self) -> None:
        """A place may have become free: the first of each queue tries."""
        for key, queue in list(self._queues.items()):
            self._call_first(key, queue)

    async def turn(self, attempt_uid: str) -> None:
        """
        Return when the attempt should be tried or answered again; at once when it does not wait.

        A call that is cancelled here gives the attempt's place up.
        """
        place = self._place(attempt_uid)
        if place is None:
            return
        end = min(self._clock.monotonic() + HOLD, place.deadline)
        place.held += 1
        try:
            while (left := end - self._clock.monotonic()) > 0:
                await self._called(place, min(left, _POLL))
                key = self._keys.get(attempt_uid)
                if key is None or self._place(attempt_uid) is not place:
                    return
                if self._first(key, self._queues[key]) == attempt_uid:
                    return
        except asyncio.CancelledError:
            self.leave(attempt_uid)
            raise
        finally:
            place.held -= 1
            place.seen = self._clock.monotonic()

    async def _called(self, place: _Place, seconds: float) -> None:
        """Wait until the place is called, or *seconds* are over."""
        try:
            await pause(self._clock, seconds, place.called)
        finally:
            place.called.clear()

    def _place(self, attempt_uid: str) -> _Place | None:
        key = self._keys.get(attempt_uid)
        return self._queues[key].get(attempt_uid) if key is not None else None

    def _first(self, key: Hashable, queue: _Queue) -> str | None:
        """Return who is first, after those are gone for whom nobody asks any more."""
        now = self._clock.monotonic()
        while queue:
            uid, place = next(iter(queue.items()))
            if place.held or now - place.seen <= _GONE:
                return uid
            del queue[uid]
            del self._keys[uid]
        self._queues.pop(key, None)
        return None

    def _call_first(self, key: Hashable, queue: _Queue) -> None:
        first = self._first(key, queue)
        if first is not None:
            queue[first].called.set()


def _busy(why: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"every ready credential has as many requests as it may have, and {why}",
        reason=BUSY,
        retry_after=1.0,
    )
