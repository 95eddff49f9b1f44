"""
Final rows that usage plugins have not taken yet: a queue per plugin in the ledger's own database.

A row is queued in the transaction that makes it final, for every plugin that may want it, and leaves when the
plugin has taken it: so whatever dies, each final row is told at least once. A row that is corrected later
(settled after lost) is queued again. Costs nothing where there are no usage plugins.

Not here: who they are, asking them, when to ask again (fan_out.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import and_, delete, func, select, update

from patchbay.errors import PatchbayError
from patchbay_gateway.usage.schema import ATTEMPTS, DELIVERIES, USAGE_PLUGINS
from patchbay_gateway.usage.statements import Values, row_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from patchbay_gateway.usage.database import Database
    from patchbay_gateway.usage.reduce import Row


class Delivery(NamedTuple):
    """One row that a plugin is to take."""

    row: Row
    queued: int
    """Unix microseconds; tells whether the row was queued anew meanwhile."""
    tries: int
    """How often the plugin refused it."""


class Deliveries:
    """
    The queues.

    Args:
        database: The ledger's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last = 0
        self.plugins: tuple[str, ...] = ()
        """For whom rows are queued."""
        self.news = asyncio.Event()
        """Set when something may have been queued."""

    async def load(self) -> None:
        """Read for whom rows are queued. Raises Unavailable."""
        wanted = select(USAGE_PLUGINS.c.plugin_id).order_by(USAGE_PLUGINS.c.plugin_id)
        self.plugins = await self._database.read(
            lambda connection: tuple(connection.execute(wanted).scalars())
        )

    def tell(self) -> None:
        """Something was committed."""
        if self.plugins:
            self.news.set()

    def of(self, before: Mapping[str, Row], rows: Sequence[Row]) -> list[Values]:
        """Return what to queue: rows that have become final or say something else than they said."""
        plugins = self.plugins
        if not plugins:
            return []
        final = [row for row in rows if row.state == "final" and _news(before, row)]
        queued: list[Values] = []
        for row in final:
            # Later than all before, so that the order of the queue is that of the ledger.
            self._last = max(self._last + 1, time.time_ns() // 1000)
            queued += [(plugin, row.info[0], self._last, 0, self._last) for plugin in plugins]
        return queued

    async def follow(self, plugins: Collection[str]) -> None:
        """
        Queue for *plugins* from now on; what waits for others is forgotten.

        Raises:
            Unavailable: The database is away; nothing changed.
        """
        before, wanted = self.plugins, tuple(sorted(plugins))
        if wanted == before:
            return

        def work(connection: Connection) -> None:
            connection.execute(delete(USAGE_PLUGINS))
            if wanted:
                connection.execute(USAGE_PLUGINS.insert(), [{"plugin_id": p} for p in wanted])
            connection.execute(delete(DELIVERIES).where(DELIVERIES.c.plugin_id.not_in(wanted)))
            # Here, and not when we hear of it: the next transaction may have begun by then.
            self.plugins = wanted

        try:
            await self._database.write(work)
        except PatchbayError:
            self.plugins = before
            raise

    async def due(self, plugin_id: str, now: int, limit: int) -> list[Delivery]:
        """Return rows that *plugin_id* is to be asked to take at *now*, microseconds, oldest first."""
        wanted = (
            select(*ATTEMPTS.columns, DELIVERIES.c.queued, DELIVERIES.c.tries)
            .join(DELIVERIES, DELIVERIES.c.attempt_uid == ATTEMPTS.c.attempt_uid)
            .where(DELIVERIES.c.plugin_id == plugin_id, DELIVERIES.c.due <= now)
            .order_by(DELIVERIES.c.queued)
            .limit(limit)
        )
        return await self._database.read(
            lambda connection: [
                Delivery(row_of(tuple(r)[:-2]), r[-2], r[-1]) for r in connection.execute(wanted)
            ]
        )

    async def waiting(self) -> dict[str, int]:
        """Return plugin id → rows that wait. Raises Unavailable."""
        count = select(DELIVERIES.c.plugin_id, func.count()).group_by(DELIVERIES.c.plugin_id)
        return await self._database.read(
            lambda connection: {plugin: int(n) for plugin, n in connection.execute(count)}
        )

    async def settle(
        self, plugin_id: str, taken: Sequence[Delivery], refused: Sequence[tuple[Delivery, int]]
    ) -> None:
        """
        Remove what was taken, and put off what was refused.

        Args:
            plugin_id: By whom.
            taken: Rows as they were offered; those that were queued anew meanwhile stay.
            refused: Rows, and when to offer them again, Unix microseconds.

        Raises:
            Unavailable: The database is away; the rows come again.
        """
        if not taken and not refused:
            return

        def this(delivery: Delivery) -> ColumnElement[bool]:
            return and_(
                DELIVERIES.c.plugin_id == plugin_id,
                DELIVERIES.c.attempt_uid == delivery.row.info[0],
                DELIVERIES.c.queued == delivery.queued,
            )

        def work(connection: Connection) -> None:
            for delivery in taken:
                connection.execute(delete(DELIVERIES).where(this(delivery)))
            for delivery, due in refused:
                connection.execute(
                    update(DELIVERIES)
                    .where(this(delivery))
                    .values(tries=delivery.tries + 1, due=due)
                )

        await self._database.write(work)


def _news(before: Mapping[str, Row], row: Row) -> bool:
    old = before.get(row.info[0])
    if old is None or old.state != "final":
        return True
    return (old.outcome, old.usage, old.cost_nano) != (row.outcome, row.usage, row.cost_nano)
