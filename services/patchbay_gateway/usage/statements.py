"""
The ledger's hot statements, compiled once per database and run on the driver.

Core builds the SQL, so there is one schema and one text for both databases. Running it through Core would
cost more than the rest of the ledger, for it takes every row as a dictionary. SQLite gets many rows per
statement, because its driver gives up the interpreter's lock with every step, and a busy event loop in
the same process makes it wait to get it back.

Not here: transactions (database.py) and their order (ledger.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from patchbay_gateway.usage.events import Info, Usage
from patchbay_gateway.usage.reduce import SUMS, Owner, Refused, Row
from patchbay_gateway.usage.schema import ATTEMPTS, EVENTS, PRICES, REQUESTS, ROLLUPS, WATERMARKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import BindParameter, Connection, Dialect, Table

Values = tuple[Any, ...]

# Rows per statement, largest first; each size is one text and so one prepared statement of the driver's
# cache. 64 rows of the widest table are 2,624 parameters; SQLite allows 32,766.
_SIZES: Final = (64, 16, 4, 1)

_KEYS_AT_ONCE: Final = 500

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
        insert: Any = (sqlite if self._many else postgresql).insert(table)
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
        start, count = 0, len(rows)
        for size in _SIZES:
            while count - start >= size:
                chunk = rows[start : start + size]
                flat = tuple([value for row in chunk for value in row])
                connection.exec_driver_sql(self._by_size[size], flat)
                start += size


class Statements:
    """All of them for one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.events = Insert(dialect, EVENTS, "nothing")
        self.attempts = Insert(dialect, ATTEMPTS, "replace")
        self.requests = Insert(dialect, REQUESTS, "nothing")
        self.rollups = Insert(dialect, ROLLUPS, "add")
        self.watermarks = Insert(dialect, WATERMARKS, "replace")
        self.prices = Insert(dialect, PRICES, "nothing")


def attempts_of(connection: Connection, uids: Sequence[str]) -> dict[str, Row]:
    """Return the rows of those *uids* that have one."""
    return {
        record[0]: row_of(record)
        for part in _parts(uids)
        for record in connection.execute(_ATTEMPTS, {"uids": part})
    }


def refused_among(connection: Connection, uids: Sequence[str]) -> set[str]:
    """Return those *uids* that are known as refused requests."""
    return {
        record[0]
        for part in _parts(uids)
        for record in connection.execute(_REFUSED, {"uids": part})
    }


_UIDS: Final[BindParameter[str]] = bindparam("uids", expanding=True)
_ATTEMPTS: Final = select(ATTEMPTS).where(ATTEMPTS.c.attempt_uid.in_(_UIDS))
_REFUSED: Final = select(REQUESTS.c.request_uid).where(REQUESTS.c.request_uid.in_(_UIDS))


def _parts(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(uids), _KEYS_AT_ONCE):
        yield uids[start : start + _KEYS_AT_ONCE]


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
    return (int(usage.estimated), *usage[:5], other)


def row_of(record: Sequence[Any]) -> Row:
    """Return the row in *record*, a record of `attempts`: the inverse of `attempt_values`."""
    rest = record[_INFO:]
    usage = None
    if rest[20]:
        other = () if rest[20] == "{}" else tuple(sorted(orjson.loads(rest[20]).items()))
        usage = Usage._make((*rest[15:20], other, bool(rest[14])))
    values = (Info._make(record[:_INFO]), *rest[:14], usage, *rest[21:])
    return Row(**dict(zip(Row.__struct_fields__, values, strict=True)))


def refused_values(refused: Refused) -> Values:
    """Return *refused* in the order of the columns of `requests`."""
    info = refused.info
    return (info[1], *info[3:], refused.http_status, refused.client_status, refused.reason)


def rollup_values(rollups: dict[Owner, tuple[int, ...]]) -> list[Values]:
    """Return *rollups* as rows in the order of their keys, so that concurrent writers cannot deadlock."""
    assert all(len(values) == len(SUMS) for values in rollups.values())
    return [(*owner, *rollups[owner]) for owner in sorted(rollups)]
