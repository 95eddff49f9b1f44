"""Usage plugins: who hears of final rows, and which of them it has not taken yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "usage_plugins",
        sa.Column("plugin_id", sa.String, primary_key=True, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("plugin_id", sa.String, primary_key=True, nullable=False),
        sa.Column("attempt_uid", sa.String, primary_key=True, nullable=False),
        sa.Column("queued", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.BigInteger, nullable=False),
        sa.Column("due", sa.BigInteger, nullable=False),
    )
    op.create_index("deliveries_due", "deliveries", ["plugin_id", "due"])
