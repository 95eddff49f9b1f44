"""The ledger: events, attempts, refused requests, rollups, watermarks, prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String, primary_key=key, nullable=False)


def _number(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, primary_key=key, nullable=nullable, autoincrement=False)


def _described() -> list[sa.Column[str] | sa.Column[int]]:
    texts = (
        "tenant",
        "installation",
        "client_key",
        "client_request_id",
        "provider",
        "plugin_id",
        "plugin_revision",
        "credential_id",
        "model",
        "upstream_model",
        "format",
        "operation",
    )
    numbers = ("stream", "snapshot_version", "opened_at")
    return [*(_text(name) for name in texts), *(_number(name) for name in numbers)]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        _text("attempt_uid", key=True),
        _number("kind", key=True),
        _number("n", key=True),
        _number("at"),
        _text("writer"),
        _number("sequence"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "attempts",
        _text("attempt_uid", key=True),
        _text("request_uid"),
        _number("number"),
        *_described(),
        _number("opened"),
        _text("state"),
        _text("outcome"),
        _text("reached"),
        _number("last_seen"),
        _number("settled_at", nullable=True),
        _number("latency", nullable=True),
        _number("first_byte", nullable=True),
        _number("http_status"),
        _number("client_status"),
        _text("reason"),
        _number("nested"),
        _number("renewed_n"),
        _number("own_usage"),
        _number("estimated"),
        _number("input_tokens", nullable=True),
        _number("output_tokens", nullable=True),
        _number("cache_read_tokens", nullable=True),
        _number("cache_creation_tokens", nullable=True),
        _number("reasoning_tokens", nullable=True),
        sa.Column("other_units", sa.Text, nullable=False),
        _number("cost_nano"),
        _number("price_version"),
    )
    op.create_index("attempts_opened_at", "attempts", ["opened_at"])
    op.create_index("attempts_client_key", "attempts", ["client_key", "opened_at"])
    still_open = sa.text("state = 'open'")
    op.create_index(
        "attempts_open",
        "attempts",
        ["last_seen"],
        sqlite_where=still_open,
        postgresql_where=still_open,
    )
    op.create_table(
        "requests",
        _text("request_uid", key=True),
        *_described(),
        _number("http_status"),
        _number("client_status"),
        _text("reason"),
    )
    op.create_index("requests_opened_at", "requests", ["opened_at"])
    op.create_table(
        "rollups",
        _number("hour", key=True),
        _text("tenant", key=True),
        _text("model", key=True),
        _text("provider", key=True),
        _text("credential_id", key=True),
        _text("client_key", key=True),
        _text("plugin_id", key=True),
        _number("requests"),
        _number("attempts"),
        _number("failed"),
        _number("lost"),
        _number("cancelled"),
        _number("estimated"),
        _number("input_tokens"),
        _number("output_tokens"),
        _number("cache_read_tokens"),
        _number("cache_creation_tokens"),
        _number("reasoning_tokens"),
        _number("cost_nano"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "watermarks",
        _text("writer", key=True),
        _number("sequence"),
        sa.Column("ahead", sa.Text, nullable=False),
    )
    op.create_table(
        "prices",
        _number("version", key=True),
        sa.Column("entries", sa.Text, nullable=False),
    )
