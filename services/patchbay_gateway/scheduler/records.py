"""
The durable records as this scheduler knows them: read once, kept current, changed by compare-and-set.

Who changes a record publishes its id, and every scheduler reads it anew at once; a look at all revisions now
and then finds what was missed, and finds everything while Redis is away. Readers on the hot path ask `get`.

Not here: the stores (durable/), what changes mean (refresh_rules.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.redis import CommandRefused
from patchbay_gateway.scheduler.durable.port import RecordChanged, RecordUnreadable, Stored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.resp import Argument
    from patchbay_gateway.scheduler.durable.port import CredentialRecord, DurableStore

    Listener = Callable[[str, CredentialRecord | None], None]

_log = logs.get_logger("scheduler.records")

LOOK_EVERY: Final = 5.0
LOOK_ALONE: Final = 1.0
"""Seconds between looks while nobody can tell us of changes."""
LOOK_SHARE: Final = 0.05
LOOK_SELDOM: Final = 60.0
"""A store that is slow to list is looked at for this part of the time, but no more seldom than that."""
_RACES: Final = 20


class News(Protocol):
    """What is needed of Redis (kernel/redis.py, Store)."""

    @property
    def available(self) -> bool:
        """Whether it is there."""

    def key(self, *parts: str) -> str:
        """Return a full name."""
        ...

    async def call(self, *command: Argument) -> Any:
        """Run a command; Unavailable when it cannot be reached."""

    def subscribe(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        """Yield messages, None where some may have been missed."""
        ...


class Records:
    """
    This scheduler's view of the durable store.

    Args:
        durable: The store.
        store: Redis, for news between schedulers.
        clock: Paces looks.
    """

    def __init__(self, durable: DurableStore, *, store: News, clock: Clock) -> None:
        self._durable = durable
        self._store = store
        self._clock = clock
        self._channel = store.key("credentials", "changed")
        self._known: dict[str, Stored] = {}
        self._broken: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self._told: set[asyncio.Task[None]] = set()

    def get(self, credential_id: str) -> CredentialRecord | None:
        """Return the record as last read; costs nothing."""
        stored = self._known.get(credential_id)
        return stored.record if stored is not None else None

    def kept(self) -> list[CredentialRecord]:
        """Return the records that declare a credential themselves, ordered by id."""
        found = (stored.record for stored in self._known.values())
        return sorted((r for r in found if r.provider), key=lambda record: record.id)

    @property
    def open(self) -> bool:
        """Whether credentials that nobody declared can be kept."""
        return self._durable.open

    def problem(self, credential_id: str) -> str:
        """Return why the record cannot be read; empty when it can."""
        return self._broken.get(credential_id, "")

    def on_change(self, listener: Listener) -> None:
        """Call *listener* with the id and the new record of each change, whoever made it."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """
        Read all that changed since the last look.

        Raises:
            Unavailable: The store does not answer.
        """
        before = dict(self._known)
        revisions = await self._durable.revisions()
        for id_, stored in before.items():
            # One that was written here while the list was made may be younger than the list.
            if id_ not in revisions and self._known.get(id_) is stored:
                self._take(id_, None)
        for id_, revision in revisions.items():
            known = self._known.get(id_)
            if known is None or known.revision != revision:
                with contextlib.suppress(RecordUnreadable):
                    await self.read(id_)

    async def read(self, credential_id: str) -> Stored | None:
        """
        Read one record anew and return it.

        Raises:
            RecordUnreadable: It cannot be opened.
            Unavailable: The store does not answer.
        """
        try:
            while True:
                before = self._known.get(credential_id)
                stored = await self._durable.read(credential_id)
                if self._known.get(credential_id) is before:
                    break
                # Written or read here meanwhile: what we got may be older than that.
        except RecordUnreadable as error:
            if self._broken.get(credential_id) != error.message:
                self._broken[credential_id] = error.message
                _log.error(
                    "a credential's record cannot be read",
                    credential=credential_id,
                    why=error.message,
                )
            raise
        self._broken.pop(credential_id, None)
        self._take(credential_id, stored)
        return stored

    async def write(self, record: CredentialRecord, *, expected: str | None) -> Stored:
        """
        Write one record and tell everybody.

        Raises:
            RecordChanged: Somebody else wrote it.
            Unavailable: The store does not answer.
        """
        before = self._known.get(record.id)
        revision = await self._durable.write(record, expected=expected)
        stored = Stored(record, revision)
        known = self._known.get(record.id)
        if known is before or (known is not None and known.revision in {expected, revision}):
            self._take(record.id, stored)
        else:
            # Others changed it again before we heard that ours is there, and theirs was read.
            await self._quietly(record.id)
        self._tell(record.id)
        return stored

    async def update(
        self,
        credential_id: str,
        change: Callable[[CredentialRecord | None], CredentialRecord | None],
    ) -> Stored | None:
        """
        Change one record by a function that may be called again with what others wrote meanwhile.

        Args:
            credential_id: Which.
            change: Returns the new record, or None to leave it as it is.

        Raises:
            RecordUnreadable: It cannot be opened.
            RecordChanged: Others write it without end.
            Unavailable: The store does not answer.
        """
        for _ in range(_RACES):
            stored = await self.read(credential_id)
            changed = change(stored.record if stored is not None else None)
            if changed is None:
                return stored
            try:
                return await self.write(
                    changed, expected=stored.revision if stored is not None else None
                )
            except RecordChanged:
                continue
        raise RecordChanged(f"the record of credential {credential_id} changes without end")

    async def delete(self, credential_id: str) -> None:
        """
        Remove one record and tell everybody; none there is well, too.

        Raises:
            RecordUnreadable: It cannot be opened.
            RecordChanged: Others write it meanwhile.
            Unavailable: The store does not answer.
        """
        stored = await self.read(credential_id)
        if stored is not None:
            before = self._known.get(credential_id)
            await self._durable.delete(credential_id, expected=stored.revision)
            if self._known.get(credential_id) is before:
                self._take(credential_id, None)
            else:
                await self._quietly(credential_id)  # it is there again, perhaps
            self._tell(credential_id)

    async def watch(self) -> None:
        """Follow what others change, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="records-listen")
            group.create_task(self._look(), name="records-look")

    async def aclose(self) -> None:
        """Wait until everybody was told of the last changes."""
        if self._told:
            await asyncio.wait(self._told)

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._store.subscribe(self._channel)) as messages:
            async for message in messages:
                await self._quietly(message.decode() if message is not None else None)

    async def _look(self) -> None:
        took = 0.0
        while True:
            pause = LOOK_EVERY if self._store.available else LOOK_ALONE
            await self._clock.sleep(max(pause, min(took / LOOK_SHARE, LOOK_SELDOM)))
            began = self._clock.monotonic()
            await self._quietly(None)
            took = self._clock.monotonic() - began

    async def _quietly(self, credential_id: str | None) -> None:
        try:
            await (self.load() if credential_id is None else self.read(credential_id))
        except RecordUnreadable:
            pass  # said once, by `read`
        except PatchbayError as error:
            _log.warning("records of credentials cannot be read", why=error.message)

    def _take(self, credential_id: str, stored: Stored | None) -> None:
        known = self._known.get(credential_id)
        if (known.revision if known else None) == (stored.revision if stored else None):
            return
        if stored is None:
            self._known.pop(credential_id, None)
        else:
            self._known[credential_id] = stored
        for listener in self._listeners:
            listener(credential_id, stored.record if stored is not None else None)

    def _tell(self, credential_id: str) -> None:
        task = asyncio.get_running_loop().create_task(
            self._publish(credential_id), name=f"records-tell {credential_id}"
        )
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _publish(self, credential_id: str) -> None:
        with contextlib.suppress(Unavailable, CommandRefused):  # others look for themselves
            await self._store.call("PUBLISH", self._channel, credential_id)
