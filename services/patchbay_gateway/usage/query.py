"""
Sums over the ledger, by one grouping and since one instant.

Whole hours come from the rollups, the ragged beginning from final rows and refused requests. The hour in
which `since` falls is read from rows unless `since` is its beginning. Not here: the wire (service.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import case, func, literal_column, select, union_all

from patchbay_gateway.usage.reduce import HOUR, NO_MODEL, SUMS
from patchbay_gateway.usage.schema import ATTEMPTS, REQUESTS, ROLLUPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement, Connection, Select, Table

GROUPINGS: Final = {
    "model": "model",
    "provider": "provider",
    "credential": "credential_id",
    "client-key": "client_key",
    "plugin": "plugin_id",
    "hour": "hour",
}
"""Names of the groupings in reports → columns of the rollups."""


class Sums(NamedTuple):
    """One group."""

    key: str | int
    """The group; for hours Unix microseconds of the beginning."""
    requests: int
    attempts: int
    failed: int
    lost: int
    cancelled: int
    estimated: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    reasoning_tokens: int
    cost_nano: int


def sums(by: str, since: int) -> Callable[[Connection], list[Sums]]:
    """
    Return the query: a function of a connection that returns the groups in order.

    Args:
        by: One of `GROUPINGS`.
        since: Unix microseconds; only what was opened then or later. 0 for all.
    """
    column = GROUPINGS[by]
    start = -(-since // HOUR) * HOUR
    rolled: list[Any] = [ROLLUPS.c[column].label("key"), *(ROLLUPS.c[name] for name in SUMS)]
    parts = [select(*rolled).where(ROLLUPS.c.hour >= start)]
    if start != since:
        parts += [
            _of_attempts(column, since, start),
            _of_requests(column, since, start),
        ]
    every = union_all(*parts).subquery()
    total = [func.coalesce(func.sum(every.c[name]), 0).label(name) for name in SUMS]
    wanted = select(every.c.key, *total).group_by(every.c.key).order_by(every.c.key)

    def run(connection: Connection) -> list[Sums]:
        # Postgres sums BIGINT to NUMERIC, which arrives as Decimal.
        return [
            Sums(key, *(int(value) for value in values))
            for key, *values in connection.execute(wanted)
        ]

    return run


def _of_attempts(column: str, since: int, until: int) -> Select[Any]:
    c = ATTEMPTS.c
    values: dict[str, ColumnElement[Any]] = {
        "requests": _one_if(c.number == 1),
        "attempts": literal_column("1"),
        "failed": _one_if(c.outcome == "failed"),
        "lost": _one_if(c.outcome == "lost"),
        "cancelled": _one_if(c.outcome == "cancelled"),
    }
    columns: list[Any] = [
        values[name] if name in values else func.coalesce(c[name], 0) for name in SUMS
    ]
    return select(_key(ATTEMPTS, column), *[v.label(n) for v, n in _named(columns)]).where(
        c.state == "final", c.opened_at >= since, c.opened_at < until
    )


def _of_requests(column: str, since: int, until: int) -> Select[Any]:
    c = REQUESTS.c
    ones = {"requests", "failed"}
    columns: list[Any] = [literal_column("1" if name in ones else "0") for name in SUMS]
    key: ColumnElement[Any] = _key(REQUESTS, column)
    if column == "model":
        # As in the rollups: what no client may use has no group of its own.
        key = case((c.reason == NO_MODEL, ""), else_=c.model).label("key")
    return select(key, *[v.label(n) for v, n in _named(columns)]).where(
        c.opened_at >= since, c.opened_at < until
    )


def _named(columns: list[Any]) -> list[tuple[Any, str]]:
    return list(zip(columns, SUMS, strict=True))


def _one_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _key(table: Table, column: str) -> ColumnElement[Any]:
    if column != "hour":
        return table.c[column].label("key")
    return (table.c.opened_at - table.c.opened_at % HOUR).label("key")
