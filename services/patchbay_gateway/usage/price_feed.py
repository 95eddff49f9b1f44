"""
Brings the prices of each snapshot into the ledger before an attempt that was pinned to it is counted.

Not here: what things cost (pricing.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from patchbay_gateway.kernel import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
    from patchbay_gateway.usage.ledger import Ledger

# Processes look for a new snapshot each second. One that is not here after this many seconds will not come
# soon; its prices are then taken to be those of the newest one known.
PATIENCE: Final = 5.0

_LOOK_EVERY: Final = 0.1
_WAITING: Final = 1024

_log = logs.get_logger("usage.prices")


class Snapshots(Protocol):
    """The part of a snapshot holder that is used here."""

    @property
    def current(self) -> Snapshot | None:
        """The newest one."""

    def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call *callback* with each new one; the returned function ends that."""
        ...

    async def first(self) -> Snapshot:
        """Wait until there is one."""
        ...


class PriceFeed:
    """
    Prices from snapshots to the ledger.

    Args:
        snapshots: Where they appear.
        ledger: Where they are kept.
        clock: Paces waiting.
    """

    def __init__(self, snapshots: Snapshots, ledger: Ledger, *, clock: Clock) -> None:
        self._snapshots = snapshots
        self._ledger = ledger
        self._clock = clock
        self._waiting: dict[int, tuple[PriceEntry, ...]] = {}
        self._newest = self._missing = 0
        self._taking = asyncio.Lock()
        self._forget = snapshots.on_change(self._changed)
        if snapshots.current is not None:
            self._changed(snapshots.current)

    def _changed(self, snapshot: Snapshot) -> None:
        self._newest = max(self._newest, snapshot.version)
        self._waiting[snapshot.version] = snapshot.prices
        if len(self._waiting) > _WAITING:
            del self._waiting[min(self._waiting)]

    async def ready(self, version: int) -> None:
        """
        Return when attempts of snapshot *version* can be priced.

        Raises:
            Unavailable: The ledger's database is away.
        """
        if version > self._newest:
            await self._wait(version)
        if not self._waiting:
            return
        async with self._taking:
            for each in sorted(self._waiting):
                await self._ledger.add_prices(each, self._waiting[each])
                self._waiting.pop(each, None)

    async def _wait(self, version: int) -> None:
        if not self._newest and not self._ledger.book.newest:
            # Nothing was ever priced here. Counting for nothing what has a price cannot be made good.
            await self._snapshots.first()
        until = self._clock.monotonic() + PATIENCE
        while version > max(self._newest, self._missing):
            if self._clock.monotonic() >= until:
                self._missing = version
                _log.warning("prices of a snapshot are unknown", version=version, used=self._newest)
                return
            await self._clock.sleep(_LOOK_EVERY)

    def close(self) -> None:
        """Take no more snapshots."""
        self._forget()
