"""
The ledger: one transaction per batch of events, after which every attempt has one row and rollups agree.

A batch may hold anything that was recorded before: the ids of events are kept, rows are functions of the
set of their events (reduce.py), and rollups change only by what rows changed. Opened and settled in one
batch write the final row once. Not here: where events come from (consumer.py), reports (query.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import orjson
from sqlalchemy import func, select

from patchbay_gateway.plugins.snapshot import PriceEntry
from patchbay_gateway.usage.database import open_database
from patchbay_gateway.usage.deliveries import Deliveries
from patchbay_gateway.usage.events import Event, Kind, lost
from patchbay_gateway.usage.pricing import PriceBook
from patchbay_gateway.usage.reduce import reduce
from patchbay_gateway.usage.schema import ATTEMPTS, PRICES, WATERMARKS
from patchbay_gateway.usage.statements import (
    Statements,
    attempt_values,
    progress_of,
    progress_values,
    refused_values,
    rollup_values,
    row_of,
)
from patchbay_gateway.usage.watermarks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from patchbay_gateway.usage.database import Database
    from patchbay_gateway.usage.reduce import Row

T = TypeVar("T")


class Ledger:
    """
    The ledger over one database.

    Args:
        database: Open and up to date.
        book: The prices that were kept there.
    """

    def __init__(self, database: Database, book: PriceBook) -> None:
        self._database = database
        self._statements: Statements | None = None
        self.book = book
        self._unkept: dict[int, str] = {}
        """Prices that hold and that the database does not have yet."""
        self.deliveries = Deliveries(database)

    @classmethod
    async def open(cls, url: str) -> Ledger:
        """
        Open the ledger at *url*, making or upgrading its tables.

        Raises:
            FailedPrecondition: The URL or the schema is not for us; the text says what to do.
            Unavailable: The database is away.
        """
        database = await open_database(url)
        try:
            ledger = cls(database, PriceBook(await database.read(_prices)))
            await ledger.deliveries.load()
        except BaseException:
            await database.aclose()
            raise
        return ledger

    async def aclose(self) -> None:
        """Close the database. Idempotent."""
        await self._database.aclose()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* in a transaction that only reads.

        Raises:
            Unavailable: The database is away.
        """
        return await self._database.read(work)

    # -- writing ----------------------------------------------------------------------------------

    async def record(
        self, events: Sequence[Event], *, skipped: Iterable[tuple[str, int]] = ()
    ) -> dict[str, Progress]:
        """
        Commit *events* and return the progress of their writers.

        Args:
            events: In any order; those that were recorded before change nothing.
            skipped: (writer, sequence) of events that count as committed without being counted.

        Raises:
            Unavailable: The database is away; the same batch may be recorded again.
            InvalidRequest: It refuses a value in this batch; nothing was recorded.
        """
        sequences: dict[str, list[int]] = {}
        for writer, sequence in [*((e.writer, e.sequence) for e in events), *skipped]:
            if writer:
                sequences.setdefault(writer, []).append(sequence)

        def work(connection: Connection) -> dict[str, Progress]:
            self._apply(connection, events)
            return self._progress(connection, sequences)

        progress = await self._database.write(work)
        self.deliveries.tell()
        return progress

    async def mark_lost(self, uids: Sequence[str], before: int) -> int:
        """
        Make final as lost those of *uids* that are open and were last seen before *before* (microseconds).

        Returns how many were. Raises as `record`.
        """

        def work(connection: Connection) -> int:
            rows = self._prepared(connection).attempts_of(connection, uids)
            verdicts = [lost(r.info, r.last_seen) for r in rows.values() if _silent(r, before)]
            self._apply(connection, verdicts)
            return len(verdicts)

        count = await self._database.write(work)
        self.deliveries.tell()
        return count

    async def add_prices(self, version: int, entries: tuple[PriceEntry, ...]) -> None:
        """
        Keep the prices of snapshot *version*, if they differ from those that held before it.

        Raises:
            Unavailable: The database is away; the prices hold in this process all the same.
        """
        if self.book.add(version, entries):
            self._unkept[version] = orjson.dumps([_price_json(e) for e in entries]).decode()
        if not self._unkept:
            return
        rows = list(self._unkept.items())
        await self._database.write(
            lambda connection: self._prepared(connection).prices.run(connection, rows)
        )
        for kept, _ in rows:
            self._unkept.pop(kept, None)

    async def skip_gaps(self, writers: Mapping[str, int]) -> dict[str, Progress]:
        """
        Give up what is missing in the journals of *writers*, given as writer → watermark at which it stuck.

        Returns the progress of those that moved.
        """

        def work(connection: Connection) -> dict[str, Progress]:
            to = self._prepared(connection)
            moved = {
                writer: progress.without_gaps()
                for writer, progress in to.progress_of(connection, list(writers)).items()
                if progress.sequence == writers[writer] and progress.ahead
            }
            to.watermarks.run(connection, progress_values(moved))
            return moved

        return await self._database.write(work)

    def _apply(self, connection: Connection, events: Sequence[Event]) -> None:
        if not events:
            return
        to = self._prepared(connection)
        refused = {e.uid for e in events if e.kind == Kind.REFUSED}
        uids = {e.uid for e in events if e.kind != Kind.REFUSED}
        before = to.attempts_of(connection, list(uids))
        changes = reduce(
            events,
            before,
            to.refused_among(connection, list(refused)),
            self.book.price,
        )
        to.events.run(
            connection, [(e.uid, e.kind, e.n, e.at, e.writer, e.sequence) for e in events]
        )
        to.attempts.run(connection, [attempt_values(row) for row in changes.rows])
        to.requests.run(connection, [refused_values(r) for r in changes.refused])
        to.rollups.run(connection, rollup_values(changes.rollups))
        to.deliveries.run(connection, self.deliveries.of(before, changes.rows))

    def _progress(
        self, connection: Connection, sequences: dict[str, list[int]]
    ) -> dict[str, Progress]:
        to = self._prepared(connection)
        before = to.progress_of(connection, list(sequences))
        after = {
            writer: before.get(writer, Progress()).committed(new)
            for writer, new in sequences.items()
        }
        to.watermarks.run(connection, progress_values(after))
        return after

    def _prepared(self, connection: Connection) -> Statements:
        if self._statements is None:
            self._statements = Statements(connection.dialect)
        return self._statements

    # -- reading ----------------------------------------------------------------------------------

    async def watermarks(self) -> dict[str, Progress]:
        """Return the progress of every writer. Raises Unavailable."""
        return await self.read(
            lambda connection: {
                record[0]: progress_of(record) for record in connection.execute(select(WATERMARKS))
            }
        )

    async def silent_since(self, before: int, limit: int) -> list[str]:
        """Return the attempt_uids that are open and were last seen before *before*, oldest first."""
        wanted = (
            select(ATTEMPTS.c.attempt_uid)
            .where(ATTEMPTS.c.state == "open", ATTEMPTS.c.last_seen < before)
            .order_by(ATTEMPTS.c.last_seen)
            .limit(limit)
        )
        return await self.read(lambda connection: list(connection.execute(wanted).scalars()))

    async def open_attempts(self) -> int:
        """Return how many attempts have no final row yet."""
        count = select(func.count()).select_from(ATTEMPTS).where(ATTEMPTS.c.state == "open")
        return await self.read(lambda connection: int(connection.execute(count).scalar_one()))

    async def rows(self) -> list[Row]:
        """Return the row of every attempt by attempt_uid: for tests and tools, not for large ledgers."""
        ordered = select(ATTEMPTS).order_by(ATTEMPTS.c.attempt_uid)
        return await self.read(lambda connection: [row_of(r) for r in connection.execute(ordered)])


def _silent(row: Row, before: int) -> bool:
    return row.state == "open" and row.last_seen < before


def _price_json(entry: PriceEntry) -> dict[str, object]:
    return {"provider": entry.provider, "model": entry.model, "per_million": entry.per_million}


def _prices(connection: Connection) -> list[tuple[int, tuple[PriceEntry, ...]]]:
    kept = connection.execute(select(PRICES).order_by(PRICES.c.version))
    return [(v, tuple(PriceEntry(**e) for e in orjson.loads(text))) for v, text in kept]
