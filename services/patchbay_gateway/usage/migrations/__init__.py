"""
The history of the ledger's schema, run at start inside the caller's transaction.

A database that is up to date is recognised by its version alone, so that alembic, which takes longer to
import than the ledger to open, is loaded only for a new or older one. Not here: the schema as it is now
(usage/schema.py); a test proves that the history leads there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import inspect, text

from patchbay.errors import FailedPrecondition

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD: Final = "0001"
"""The newest revision in versions/."""


def upgrade(connection: Connection) -> None:
    """
    Bring the schema behind *connection* to HEAD.

    Raises:
        FailedPrecondition: A newer Patchbay has written there.
    """
    present = _present(connection)
    if present == HEAD:
        return
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


def _present(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar()
    return version
