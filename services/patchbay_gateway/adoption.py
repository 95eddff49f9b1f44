"""
Journals and outboxes of `patchbay up` that belong to nobody any more, brought to where they were going.

A data directory has a journal and an outbox for each process that forwards requests. When it is started with
fewer of them, or with another shape (`--workers`), some have no owner: nobody else would ever read what they
hold, and it is billing. One process, plain `up` or the control process, takes them over: reports go to its
scheduler, events to Redis under their own writer. When all has arrived the directory is removed.

    free (nobody holds its lock) ─ locked and moved to workers/adopted/ ─ sent ─ acknowledged ─ removed

Moved, so that a process that is to have a directory of that name makes a new one. Killed anywhere on the way,
the next start finds what is left there; reports and events that came twice count once. Directories of
processes that shall run are taken only when those have not come back for a while.

Not here: sending (edge/outbox.py, scheduler/left_journal.py), whose a directory is
(kernel/directory_lock.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from patchbay.errors import PatchbayError
from patchbay_gateway.edge.outbox import Outbox
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.directory_lock import try_lock
from patchbay_gateway.kernel.lifecycle import Tasks
from patchbay_gateway.scheduler.left_journal import bring_to_ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.lifecycle import Shutdown
    from patchbay_gateway.kernel.redis import Store

JOURNAL: Final = "journal"
OUTBOX: Final = "outbox"
LOOK_EVERY: Final = 2.0
PATIENCE: Final = 60.0
"""Seconds that a process which shall run may be away before its directories are taken: many starts."""

_log = logs.get_logger("adoption")


def worker_directory(data_dir: Path, name: str) -> Path:
    """Return where the data process *name* has its journal and outbox."""
    return data_dir / "workers" / name


class Adoption:
    """
    Finds what is left in one data directory and sees it through.

    Args:
        data_dir: The data directory.
        own: Directories of processes that shall run.
        store: Redis.
        scheduler: Takes reports.
        clock: Time.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        own: Iterable[Path],
        store: Store,
        scheduler: SchedulerCalls,
        clock: Clock,
    ) -> None:
        self._data_dir = data_dir
        self._adopted = data_dir / "workers" / "adopted"
        self._own = frozenset(own)
        self._store = store
        self._scheduler = scheduler
        self._clock = clock
        self._free_since: dict[Path, float] = {}
        """Own directory → when it was first seen without its process."""
        self._unusable: set[Path] = set()

    async def run(self) -> None:
        """Look, adopt and bring home until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for kind, path in self._candidates():
                    if (log := self._claim(kind, path)) is not None:
                        group.create_task(self._bring(kind, log), name=f"adopted-{kind}")
                await self._clock.sleep(LOOK_EVERY)

    def _candidates(self) -> Iterator[tuple[str, Path]]:
        """Yield the kind and path of every journal and outbox, whoever holds it."""
        parents = [self._data_dir, *sorted(self._data_dir.glob("workers/data-*"))]
        for parent in parents:
            for kind in (OUTBOX, JOURNAL):
                # A mount stays when all in it is removed.
                if (parent / kind / "writer").is_file():
                    yield kind, parent / kind
        for kind in (OUTBOX, JOURNAL):
            for path in sorted(self._adopted.glob(f"{kind}-*")):
                yield kind, path

    def _claim(self, kind: str, path: Path) -> AppendLog | None:
        """Return what is at *path* as a log of this process; None when it is not to be taken."""
        if path in self._unusable:
            return None
        lock = None
        try:
            if (lock := try_lock(path)) is None:
                self._free_since.pop(path, None)
                return None
            if path in self._own:
                now = self._clock.monotonic()
                if now - self._free_since.setdefault(path, now) < PATIENCE:
                    os.close(lock)
                    return None
            path = self._moved(kind, path)
            return AppendLog(path, lock=lock)
        except (OSError, PatchbayError) as error:
            self._set_aside(path, error)
            if lock is not None:
                os.close(lock)
            return None

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Leave *path* to the next start."""
        self._unusable.add(path)
        _log.error("what a process left cannot be taken", directory=str(path), why=str(error))

    def _moved(self, kind: str, path: Path) -> Path:
        if path.parent == self._adopted:
            return path
        target = self._adopted / f"{kind}-{secrets.token_hex(6)}"
        try:
            self._adopted.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.rename(target)
        except OSError:
            return path  # a mount of its own; its lock keeps others out
        _log.info(f"adopts the {kind} of a process that is gone", was=str(path), now=str(target))
        with contextlib.suppress(OSError):
            if path.parent != self._data_dir:
                path.parent.rmdir()
        return target

    async def _bring(self, kind: str, log: AppendLog) -> None:
        """Bring all of *log* to where it belongs; then remove it."""
        try:
            if kind == OUTBOX:
                await self._report(log)
            else:
                await bring_to_ledger(log, store=self._store, clock=self._clock)
            log.remove()
            _log.info(f"all of an adopted {kind} has arrived", directory=str(log.directory))
        except (OSError, DecodeError) as error:
            self._set_aside(log.directory, error)
        finally:
            log.close()

    async def _report(self, log: AppendLog) -> None:
        """Return when schedulers have all reports of *log*."""
        edge_id = f"adopted-{log.writer_id}"
        outbox = Outbox(log, self._scheduler, edge_id=edge_id, clock=self._clock)
        sending = asyncio.ensure_future(outbox.run())
        emptied = asyncio.ensure_future(outbox.emptied())
        try:
            await asyncio.wait({sending, emptied}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # it never ends but by its error
        finally:
            for task in (sending, emptied):
                task.cancel()
            # Not by suppressing their CancelledError: our own, which may come just now, would go with it.
            await asyncio.gather(sending, emptied, return_exceptions=True)


@contextlib.asynccontextmanager
async def adopting(adoption: Adoption, shutdown: Shutdown) -> AsyncIterator[None]:
    """Run *adoption* in the background; what it has not brought home at the end the next start finds."""
    tasks = Tasks(shutdown)
    tasks.start("adoption", adoption.run())
    try:
        yield
    finally:
        await tasks.aclose()
