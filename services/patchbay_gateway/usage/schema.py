"""
The ledger's tables, as SQLAlchemy Core sees them now. How a database gets there is in migrations/.

Every number is a BIGINT: counts outgrow 32 bits, and money is integer nano-units. Times are Unix
microseconds, which sort and compare alike in every database. Not here: statements (ledger.py, query.py).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import DDL, BigInteger, Column, Index, MetaData, String, Table, Text, event

from patchbay_gateway.usage.events import TOKENS, Info
from patchbay_gateway.usage.reduce import SUMS, Owner

METADATA: Final = MetaData()

_NUMBERS: Final = frozenset({"number", "stream", "snapshot_version", "opened_at", "hour"})


def _columns(names: tuple[str, ...], *, key: tuple[str, ...] = ()) -> list[Column[object]]:
    return [
        Column(
            name,
            BigInteger if name in _NUMBERS else String,
            primary_key=name in key,
            nullable=False,
            autoincrement=False,
        )
        for name in names
    ]


def _number(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


EVENTS: Final = Table(
    "events",
    METADATA,
    Column("attempt_uid", String, primary_key=True),
    Column("kind", BigInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    _number("at"),
    Column("writer", String, nullable=False),
    _number("sequence"),
    sqlite_with_rowid=False,
)
"""Which events were counted: the second one with the same id is ignored. For REFUSED the request's uid."""

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    *_columns(Info._fields, key=("attempt_uid",)),
    _number("opened"),
    Column("state", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reached", String, nullable=False),
    _number("last_seen"),
    _number("settled_at", nullable=True),
    _number("latency", nullable=True),
    _number("first_byte", nullable=True),
    _number("http_status"),
    _number("client_status"),
    Column("reason", String, nullable=False),
    _number("nested"),
    _number("renewed_n"),
    _number("own_usage"),
    _number("estimated"),
    *(_number(unit, nullable=True) for unit in TOKENS),
    Column("other_units", Text, nullable=False),
    _number("cost_nano"),
    _number("price_version"),
    Index("attempts_opened_at", "opened_at"),
    Index("attempts_client_key", "client_key", "opened_at"),
)
"""The single row of each attempt, `open` or `final`. NULL quantities are unknown."""

# As an Index with `postgresql_where` it would load that dialect into every process that has a ledger.
event.listen(
    ATTEMPTS,
    "after_create",
    DDL(  # type: ignore[no-untyped-call]  # the library's
        "CREATE INDEX attempts_open ON attempts (last_seen) WHERE state = 'open'"
    ),
)

REQUESTS: Final = Table(
    "requests",
    METADATA,
    *_columns(Info._fields[1:2], key=("request_uid",)),
    *_columns(Info._fields[3:]),
    _number("http_status"),
    _number("client_status"),
    Column("reason", String, nullable=False),
    Index("requests_opened_at", "opened_at"),
)
"""Requests that were refused before any attempt."""

ROLLUPS: Final = Table(
    "rollups",
    METADATA,
    *_columns(Owner._fields, key=Owner._fields),
    *(_number(name) for name in SUMS),
    sqlite_with_rowid=False,
)
"""Sums over final rows and refused requests by hour and owner."""

WATERMARKS: Final = Table(
    "watermarks",
    METADATA,
    Column("writer", String, primary_key=True),
    _number("sequence"),
    Column("ahead", Text, nullable=False),
)
"""Per writer, the sequence up to which everything is committed, and the ranges committed beyond it (JSON)."""

PRICES: Final = Table(
    "prices",
    METADATA,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("entries", Text, nullable=False),
)
"""Prices by the snapshot version at which they changed (JSON)."""

USAGE_PLUGINS: Final = Table(
    "usage_plugins", METADATA, Column("plugin_id", String, primary_key=True)
)
"""Plugins that hear of final rows, kept so that a start knows them before any plugin answers."""

DELIVERIES: Final = Table(
    "deliveries",
    METADATA,
    Column("plugin_id", String, primary_key=True),
    Column("attempt_uid", String, primary_key=True),
    _number("queued"),
    _number("tries"),
    _number("due"),
    Index("deliveries_due", "plugin_id", "due"),
)
"""Final rows that a plugin has not taken yet: since when, how often it refused, when it is asked again."""
