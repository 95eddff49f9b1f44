"""
The history of the ledger's schema, run at start inside the caller's transaction.

A new database is made as it is now and stamped, one up to date is recognised by its stamp, and only an
older one loads alembic, which takes longer to import than the ledger to open. Not here: the schema as it
is now (usage/schema.py); a test proves that the history leads there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, MetaData, String, Table, inspect, text

from patchbay.errors import FailedPrecondition
from patchbay_gateway.usage.schema import METADATA

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD: Final = "0002"
"""The newest revision in versions/."""


def upgrade(connection: Connection) -> None:
    """
    Bring the database behind *connection* to HEAD.

    Raises:
        FailedPrecondition: A newer Patchbay has written there.
    """
    if not inspect(connection).has_table("alembic_version"):
        METADATA.create_all(connection)
        stamp = Table(
            "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
        )
        stamp.create(connection)
        connection.execute(stamp.insert().values(version_num=HEAD))
        return
    present = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if present != HEAD:
        migrate(connection, present)


def migrate(connection: Connection, present: str | None = None) -> None:
    """
    Run the revisions after *present*; None means that there are no tables yet.

    Raises:
        FailedPrecondition: *present* is none of ours.
    """
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from alembic.util import CommandError  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:
        raise FailedPrecondition(
            f"the ledger has schema {present}, newer than this program's {HEAD}; "
            "start the version that wrote it, or name another usage.database_url",
            reason="DATABASE_SCHEMA",
        ) from error
