"""
One database behind one way of working: a function of a synchronous SQLAlchemy connection is one transaction.

SQLite runs in a thread of its own over the standard driver: a batch is one hop to the thread, where the
asyncio driver makes one for every statement. Postgres runs the same functions over asyncpg by `run_sync`.
`synchronous=FULL`: a commit is on disk before the journal's entries are acknowledged and the writers
truncate their files, so a power cut cannot take what nobody holds any more; the wait is the thread's.

Not here: what is written (ledger.py), the schema's history (migrations/).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from sqlalchemy import create_engine, event, exc, make_url, text
from sqlalchemy.pool import StaticPool

from patchbay.errors import FailedPrecondition, InvalidRequest, Unavailable
from patchbay_gateway.usage import migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection

T = TypeVar("T")

# "pblg": one writer of the ledger at a time, whatever the number of usage services.
_LOCK: Final = 0x70626C67

_BUSY_MS: Final = 10_000

# SQLSTATE classes "data exception" and "integrity constraint violation".
_VALUE_STATES: Final = frozenset({"22", "23"})


class Database(Protocol):
    """A ledger's database; transactions that write are one after the other."""

    async def write(self, work: Callable[[Connection], T]) -> T:
        """
        Run *work* in one transaction, alone among writers, and commit.

        Raises:
            Unavailable: The database is away, locked or full; nothing is known to be written.
            InvalidRequest: It refuses a value; nothing was written.
        """
        ...

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* in one transaction that sees one state; raises as `write`."""
        ...

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""


async def open_database(url: str) -> Database:
    """
    Open the database at *url* (`sqlite:///path`, `postgresql://…`) and bring its schema up to date.

    Raises:
        FailedPrecondition: The URL is wrong, its driver is not installed, or the schema is newer.
        Unavailable: It cannot be reached.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise FailedPrecondition(
            "usage.database_url is no URL; write sqlite:///path or postgresql://user@host/name",
            reason="DATABASE_URL",
        ) from error
    kind = parsed.get_backend_name()
    database: Database
    if kind == "sqlite":
        database = SqliteDatabase(parsed)
    elif kind in {"postgresql", "postgres"}:
        database = _postgres(parsed)
    else:
        raise FailedPrecondition(
            f"usage.database_url names {kind}; the ledger knows sqlite and postgresql",
            reason="DATABASE_URL",
        )
    try:
        await database.write(migrations.upgrade)
    except BaseException:
        await database.aclose()
        raise
    return database


def _postgres(url: URL) -> Database:
    try:
        return PostgresDatabase(url.set(drivername="postgresql+asyncpg"))
    except ImportError as error:
        raise FailedPrecondition(
            "the driver for PostgreSQL is missing; install patchbay-gateway[postgres]",
            reason="DATABASE_DRIVER",
        ) from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """
    Turn errors about a value into InvalidRequest and all others into Unavailable.

    In doubt the database is at fault: what waits for it is kept, what it refuses is put aside for good.
    """
    try:
        yield
    except exc.DBAPIError as error:
        if _about_a_value(error):
            raise InvalidRequest(
                f"the ledger cannot hold this: {error.orig}", reason="DATA"
            ) from error
        raise Unavailable(f"the ledger's database: {error.orig}", reason="DATABASE") from error
    # Hot statements run on SQLite's driver itself, whose errors come as they are. Its word for a number
    # beyond 64 bits is OverflowError.
    except (sqlite3.DataError, sqlite3.IntegrityError, OverflowError) as error:
        raise InvalidRequest(f"the ledger cannot hold this: {error}", reason="DATA") from error
    except (sqlite3.Error, exc.TimeoutError, OSError) as error:
        raise Unavailable(f"the ledger's database: {error}", reason="DATABASE") from error


def _about_a_value(error: exc.DBAPIError) -> bool:
    # SQLAlchemy has one class for nearly all that asyncpg raises; its states tell them apart.
    cause = getattr(error.orig, "__cause__", None)
    state = str(getattr(cause, "sqlstate", ""))
    return isinstance(error, exc.DataError | exc.IntegrityError) or state[:2] in _VALUE_STATES


class SqliteDatabase:
    """SQLite in WAL: one connection that writes, one that reads, a thread for each."""

    def __init__(self, url: URL) -> None:
        if url.database in {None, "", ":memory:"}:
            raise FailedPrecondition(
                "usage.database_url must name a file: sqlite:///path", reason="DATABASE_URL"
            )
        try:
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(
                f"the ledger's folder cannot be made: {error}; correct usage.database_url",
                reason="DATABASE_URL",
            ) from error
        # The asyncio driver is understood as a name; the standard one does the work.
        url = url.set(drivername="sqlite+pysqlite")
        self._writer, self._reader = _sqlite(url, "BEGIN IMMEDIATE"), _sqlite(url, "BEGIN")
        self._write_thread = ThreadPoolExecutor(1, "ledger-write")
        self._read_thread = ThreadPoolExecutor(1, "ledger-read")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run *work* in the writer's thread."""
        return await self._run(self._write_thread, self._writer, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* in the reader's thread."""
        return await self._run(self._read_thread, self._reader, work)

    async def _run(
        self, thread: ThreadPoolExecutor, engine: Engine, work: Callable[[Connection], T]
    ) -> T:
        def transaction() -> T:
            with _translated(), engine.begin() as connection:
                return work(connection)

        # A transaction that has begun goes on to its end when its caller is cancelled; whether it was
        # committed does not matter, for the same events may come again.
        return await asyncio.get_running_loop().run_in_executor(thread, transaction)

    async def aclose(self) -> None:
        """Wait for what runs, and close."""

        def close(engine: Engine) -> Callable[[], None]:
            return engine.dispose

        for thread, engine in (
            (self._read_thread, self._reader),
            (self._write_thread, self._writer),
        ):
            with contextlib.suppress(RuntimeError):  # closed before
                await asyncio.get_running_loop().run_in_executor(thread, close(engine))
            thread.shutdown()


def _sqlite(url: URL, begin: str) -> Engine:
    # One connection per engine, used by one thread at a time.
    engine = create_engine(
        url,
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": _BUSY_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: object) -> None:
        # Transactions are begun below: the driver's own rules know no BEGIN IMMEDIATE, without which a
        # reader that turns writer fails instead of waiting.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-8192"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


class PostgresDatabase:
    """PostgreSQL over asyncpg. Any number of usage services: a lock makes them write in turn."""

    def __init__(self, url: URL) -> None:
        # It loads all of SQLAlchemy's ORM, half a second that `patchbay up` on SQLite need not wait.
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - see above

        self._engine = create_async_engine(url, pool_size=3, max_overflow=2, pool_pre_ping=True)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run *work* under the ledger's lock, which ends with the transaction."""

        def locked(connection: Connection) -> T:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            return work(connection)

        return await self.read(locked)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on a connection of the pool."""
        with _translated():
            async with self._engine.begin() as connection:
                return await connection.run_sync(work)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._engine.dispose()
