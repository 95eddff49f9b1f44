"""
Marks attempts as lost that show no life any more.

An attempt is lost when it has no final row, its last sign of life is older than lease and grace, its lease is
gone, and nothing that could tell otherwise is on its way: the consumer has read past that time, no other
consumer holds entries, no writer announces a backlog, and there was no outage lately, after which writers
need a moment to announce one. A settlement that comes all the same corrects the ledger.

A lease that lives saves an attempt that is silent in the journal: where there is no new usage, renewing
writes no event. When such an attempt ends, its lease goes and its settlement comes in one moment; so a lease
that is found gone counts only at a later sweep, when the consumer has read past that moment.

Not here: what lost means for a row (reduce.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.usage.consumer import Consumer
    from patchbay_gateway.usage.ledger import Ledger
    from patchbay_gateway.usage.stream import Stream

_AT_ONCE: Final = 500
_SLOWEST: Final = 15.0
# Soon after an attempt was found without a lease: a consumer that rests reads each second.
_CONFIRM: Final = 1.5

_log = logs.get_logger("usage.sweeper")


class Sweeper:
    """
    The sweeper of one ledger; several may run, for what is final stays so.

    Args:
        stream: Asked what is under way.
        ledger: Swept.
        consumer: Asked how far it has read.
        clock: The time, and the pace.
        lease_ttl: Seconds.
        lease_grace: Seconds after the lease's end.
    """

    def __init__(
        self,
        stream: Stream,
        ledger: Ledger,
        consumer: Consumer,
        *,
        clock: Clock,
        lease_ttl: float,
        lease_grace: float,
    ) -> None:
        self._stream = stream
        self._ledger = ledger
        self._consumer = consumer
        self._clock = clock
        self._silence = lease_ttl + lease_grace
        self._calm = lease_grace
        self.lost = 0
        """Attempts that it marked so far."""
        self._pause = min(_SLOWEST, max(0.2, lease_grace / 2))
        self._gone: dict[str, float] = {}
        """Attempt → Unix seconds by which its lease was gone."""

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._clock.sleep(min(self._pause, _CONFIRM) if self._gone else self._pause)
            try:
                if lost := await self.sweep():
                    _log.warning("attempts ended without a report", lost=lost)
            except Unavailable:
                pass  # the consumer tells of outages; the next sweep finds the same
            except PatchbayError as error:
                _log.error("sweep failed", why=error.message)

    async def sweep(self) -> int:
        """
        Mark what is lost now and return how many.

        Raises:
            Unavailable: Redis or the database is away.
        """
        read_to, steady = self._consumer.caught_up_at, self._consumer.steady_since
        if read_to is None or steady is None or read_to - steady < self._calm:
            return 0
        before = int((read_to - self._silence) * 1e6)
        uids = await self._ledger.silent_since(before, _AT_ONCE)
        if not uids:
            self._gone = {}
            return 0
        if await self._stream.backlog() or await self._stream.held_by_others():
            return 0
        alive = await self._stream.leased(uids)
        now, gone = self._clock.now(), self._gone
        self._gone = {uid: gone.get(uid, now) for uid in uids if uid not in alive}
        dead = [uid for uid, since in self._gone.items() if since < read_to]
        marked = await self._ledger.mark_lost(dead, before) if dead else 0
        for uid in dead:
            del self._gone[uid]
        self.lost += marked
        return marked
