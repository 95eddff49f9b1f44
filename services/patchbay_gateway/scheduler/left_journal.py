"""
The journal of a scheduler that is gone, brought into the ledger by another process.

Nothing is appended: its events go to Redis as they are, with their own writer and sequences, by the rules of
redelivery.py, until the ledger's watermark for that writer covers the newest. Then nobody needs the file.

Not here: which journals are left, and the removal of their directories (adoption.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.scheduler.journal import Journal
from patchbay_gateway.scheduler.leases import EpochChanged, RedisLeases
from patchbay_gateway.scheduler.redelivery import LOOK_EVERY, STREAM_BOUND, Redelivery

if TYPE_CHECKING:
    from patchbay_gateway.kernel.appendlog import AppendLog
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store

_log = logs.get_logger("scheduler.journal")

_CHUNK: Final = 256


async def bring_to_ledger(
    log: AppendLog, *, store: Store, clock: Clock, stream_bound: int = STREAM_BOUND
) -> None:
    """
    Send what *log* holds above the watermark; return when the ledger has all of it.

    While Redis is away, or the ledger does not follow, it waits.

    Raises:
        OSError: The file cannot be read.
    """
    newest = await asyncio.to_thread(log.newest)
    if not newest:
        return
    journal = Journal(log, clock=clock, installation="")
    leases = RedisLeases(store, ttl=1.0, clock=clock)  # it takes none
    redelivery = Redelivery(
        store,
        journal,
        leases,
        clock=clock,
        behind=asyncio.Event(),
        nudge=lambda: None,
        metrics=NoMetrics(),
        stream_bound=stream_bound,
    )
    away = False
    while True:
        try:
            await redelivery.look()
            # The last of them wait in memory, for the lease calls that nobody makes here.
            while journal.waiting:
                parcel = journal.take(_CHUNK)
                await leases.apply([], [], [], parcel.events)
                journal.delivered(parcel)
        except EpochChanged:
            journal.fall_behind()  # the next look meets the new one
        except PatchbayError as error:
            journal.fall_behind()
            if not away:
                _log.warning(
                    "a journal that was left waits for Redis", writer=log.writer_id, why=str(error)
                )
            away = True
        else:
            away = False
            if redelivery.watermark >= newest:
                return
        await clock.sleep(LOOK_EVERY)
