"""
The ledger's hot statements, compiled once per database and run on the driver.

Core builds the SQL, so there is one schema and one text for both databases. Running it through Core was
measured to cost more than the rest of the ledger: it takes every row as a dictionary, and about 40 µs a
statement even for plain SQL, of which a small batch has ten. So on SQLite these go to the driver's own
connection, many rows to a statement: the driver gives up the interpreter's lock with every step, and a
busy event loop in the same process makes it wait to get it back. Postgres takes rows by executemany.

Not here: transactions (database.py) and their order (ledger.py).
"""

from __future__ import annotations

import importlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from sqlalchemy import ARRAY, String, bindparam, func, select

from patchbay_gateway.usage.events import Info, Usage
from patchbay_gateway.usage.reduce import SUMS, Owner, Refused, Row
from patchbay_gateway.usage.schema import (
    ATTEMPTS,
    DELIVERIES,
    EVENTS,
    PRICES,
    REQUESTS,
    ROLLUPS,
    WATERMARKS,
)
from patchbay_gateway.usage.watermarks import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Column, Connection, Dialect, Select, Table

T = TypeVar("T")
Values = tuple[Any, ...]

# Rows or keys per statement, largest first; each size is one text and so one prepared statement of the
# driver's cache of 128. 64 rows of the widest table are 2,624 parameters; SQLite allows 32,766.
_SIZES: Final = (64, 32, 16, 8, 4, 2, 1)

_INFO: Final = len(Info._fields)


class Insert:
    """
    One INSERT for any number of rows.

    Args:
        dialect: Of the connections it will run on.
        table: Where to.
        update: What to do with a row whose key is there: `nothing`, `replace` or `add` (to its numbers).
    """

    def __init__(self, dialect: Dialect, table: Table, update: str) -> None:
        self._many = dialect.name == "sqlite"
        keys = [c.name for c in table.primary_key]
        others = [c.name for c in table.columns if c.name not in keys]
        # Only the database in use is loaded.
        module = importlib.import_module(f"sqlalchemy.dialects.{dialect.name}")
        insert: Any = module.insert(table)
        if update == "nothing":
            insert = insert.on_conflict_do_nothing(index_elements=keys)
        else:
            new = insert.excluded
            insert = insert.on_conflict_do_update(
                index_elements=keys,
                set_={c: new[c] if update == "replace" else table.c[c] + new[c] for c in others},
            )
        compiled = insert.compile(dialect=dialect)
        assert list(compiled.positiontup or ()) == [c.name for c in table.columns]
        self._sql = str(compiled)
        self._by_size: dict[int, str] = {}
        if self._many:
            one = "(" + ", ".join("?" * len(table.columns)) + ")"
            for size in _SIZES:
                self._by_size[size] = self._sql.replace(one, ", ".join([one] * size), 1)

    def run(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Insert *rows*, whose values are in the order of the table's columns."""
        if not rows:
            return
        if not self._many:
            connection.exec_driver_sql(self._sql, list(rows))
            return
        driver = _driver(connection)
        for part in _parts(rows):
            flat = [value for row in part for value in row]
            driver.execute(self._by_size[len(part)], flat).close()


class Lookup:
    """
    One SELECT for any number of keys.

    Args:
        dialect: Of the connections it will run on.
        wanted: What to select.
        key: The column that is looked up.
    """

    def __init__(self, dialect: Dialect, wanted: Select[Any], key: Column[str]) -> None:
        self._many = dialect.name == "sqlite"
        if self._many:
            condition = key.in_(bindparam("keys", expanding=True))
            text = str(wanted.where(condition).compile(dialect=dialect))
            head, found, tail = text.partition("(__[POSTCOMPILE_keys])")
            assert found
            self._by_size = {size: f"{head}({', '.join('?' * size)}){tail}" for size in _SIZES}
        else:
            any_of = key == func.any(bindparam("keys", type_=ARRAY(String)))
            self._sql = str(wanted.where(any_of).compile(dialect=dialect))

    def run(self, connection: Connection, keys: Sequence[str]) -> list[Values]:
        """Return the records of *keys*."""
        if not keys:
            return []
        if not self._many:
            return [tuple(r) for r in connection.exec_driver_sql(self._sql, (list(keys),))]
        driver = _driver(connection)
        return [
            record
            for part in _parts(keys)
            for record in driver.execute(self._by_size[len(part)], part).fetchall()
        ]


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield *items* in parts of the sizes that statements have."""
    start, count = 0, len(items)
    for size in _SIZES:
        while count - start >= size:
            yield items[start : start + size]
            start += size


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


class Statements:
    """All of them for one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.events = Insert(dialect, EVENTS, "nothing")
        self.attempts = Insert(dialect, ATTEMPTS, "replace")
        self.requests = Insert(dialect, REQUESTS, "nothing")
        self.rollups = Insert(dialect, ROLLUPS, "add")
        self.watermarks = Insert(dialect, WATERMARKS, "replace")
        self.prices = Insert(dialect, PRICES, "nothing")
        self.deliveries = Insert(dialect, DELIVERIES, "replace")
        self._attempts = Lookup(dialect, select(ATTEMPTS), ATTEMPTS.c.attempt_uid)
        self._refused = Lookup(dialect, select(REQUESTS.c.request_uid), REQUESTS.c.request_uid)
        self._progress = Lookup(dialect, select(WATERMARKS), WATERMARKS.c.writer)

    def attempts_of(self, connection: Connection, uids: Sequence[str]) -> dict[str, Row]:
        """Return the rows of those *uids* that have one."""
        return {record[0]: row_of(record) for record in self._attempts.run(connection, uids)}

    def refused_among(self, connection: Connection, uids: Sequence[str]) -> set[str]:
        """Return those *uids* that are known as refused requests."""
        return {record[0] for record in self._refused.run(connection, uids)}

    def progress_of(self, connection: Connection, writers: Sequence[str]) -> dict[str, Progress]:
        """Return the progress of those *writers* that have any."""
        return {
            record[0]: progress_of(record) for record in self._progress.run(connection, writers)
        }


_NO_QUANTITIES: Final = (None,) * 5


def attempt_values(row: Row) -> Values:
    """Return *row* in the order of the columns of `attempts`."""
    usage = row.usage
    return (
        *row.info,
        row.opened,
        row.state,
        row.outcome,
        row.reached,
        row.last_seen,
        row.settled_at,
        row.latency,
        row.first_byte,
        row.http_status,
        row.client_status,
        row.reason,
        row.nested,
        row.renewed_n,
        row.own_usage,
        *((0, *_NO_QUANTITIES, "") if usage is None else _quantities(usage)),
        row.cost_nano,
        row.price_version,
    )


def _quantities(usage: Usage) -> Values:
    # Any text means that usage was given, were it of no known unit.
    other = orjson.dumps(dict(usage.other)).decode() if usage.other else "{}"
    return (
        int(usage.estimated),
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_creation_tokens,
        usage.reasoning_tokens,
        other,
    )


def row_of(record: Sequence[Any]) -> Row:
    """Return the row in *record*, a record of `attempts`: the inverse of `attempt_values`."""
    rest = record[_INFO:]
    usage = None
    if rest[20]:
        other = () if rest[20] == "{}" else tuple(sorted(orjson.loads(rest[20]).items()))
        usage = Usage(
            *(rest[15], rest[16], rest[17], rest[18], rest[19]),
            other=other,
            estimated=bool(rest[14]),
        )
    values = (Info._make(record[:_INFO]), *rest[:14], usage, *rest[21:])
    return Row(**dict(zip(Row.__struct_fields__, values, strict=True)))


def refused_values(refused: Refused) -> Values:
    """Return *refused* in the order of the columns of `requests`."""
    info = refused.info
    return (info[1], *info[3:], refused.http_status, refused.client_status, refused.reason)


def progress_of(record: Sequence[Any]) -> Progress:
    """Return the progress in *record*, a record of `watermarks`."""
    _, sequence, ahead = record
    return Progress(sequence, tuple((a, b) for a, b in orjson.loads(ahead)) if ahead else ())


def progress_values(progress: Mapping[str, Progress]) -> list[Values]:
    """Return *progress* in the order of the columns of `watermarks`."""
    return [
        (writer, p.sequence, orjson.dumps(p.ahead).decode() if p.ahead else "")
        for writer, p in sorted(progress.items())
    ]


def rollup_values(rollups: dict[Owner, tuple[int, ...]]) -> list[Values]:
    """Return *rollups* as rows in the order of their keys, so that concurrent writers cannot deadlock."""
    assert all(len(values) == len(SUMS) for values in rollups.values())
    return [(*owner, *rollups[owner]) for owner in sorted(rollups)]
