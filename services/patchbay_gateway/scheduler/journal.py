"""
The journal's writing side: every event goes to this scheduler's write-ahead file first, then to Redis.

An event is durable against the death of the process as soon as `record` returns, and against that of the
machine after `durable`. While `live`, recorded events also wait in memory for the next script call
(leases.py), in the order of their sequences: a reader that has seen sequence n of a writer has been given
all before it. Behind (Redis away, flushed, or its stream too long) they wait in the file only, and
redelivery.py sends them later. The ledger ignores an event that it has; so sending twice is harmless.

Not here: talking to Redis; what became of the events (usage).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from patchbay.type.v1 import usage_pb2
    from patchbay_gateway.kernel.clock import Clock

SCHEMA: Final = 1
"""`JournalEvent.schema` of what this release writes."""

# Events in memory while one script call is under way; beyond it the rest waits in the file.
_PENDING: Final = 50_000


class WriteAhead(Protocol):
    """What the journal needs of kernel/appendlog.py."""

    @property
    def writer_id(self) -> str:
        """Name of the file's writer, kept in its directory."""

    @property
    def last_sequence(self) -> int:
        """Sequence of the newest payload, or the number before the first."""

    def append(self, payloads: Sequence[bytes]) -> int:
        """Write *payloads* and return the first one's sequence; ResourceExhausted when full."""

    async def sync(self) -> None:
        """Return when all that was appended is on the disk."""

    def truncate(self, up_to: int) -> None:
        """Forget what is not above sequence *up_to*."""

    def read(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield what is above sequence *after*."""


@dataclass(slots=True)
class Draft:
    """An event before it has its place in the file. The messages are read, never changed."""

    kind: journal_pb2.EventKind.ValueType
    attempt: journal_pb2.AttemptInfo
    n: int = 0
    usage: usage_pb2.Usage | None = None
    settlement: journal_pb2.Settlement | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """Events on their way to Redis."""

    events: list[bytes]
    last: int
    """Sequence of the last one."""
    generation: int
    """Of the journal's position, which `rewind` changes."""


class Journal:
    """
    One writer.

    Args:
        log: Its write-ahead file.
        clock: Stamps events.
        installation: Filled into attempts that do not say theirs.
    """

    def __init__(self, log: WriteAhead, *, clock: Clock, installation: str) -> None:
        self._log = log
        self._clock = clock
        self._installation = installation
        self._pending: deque[bytes] = deque()
        self._live = False
        self._sent = 0
        self._generation = 0

    @property
    def writer(self) -> str:
        """Id of this writer."""
        return self._log.writer_id

    @property
    def last(self) -> int:
        """Sequence of the last recorded event; 0 when there is none."""
        return self._log.last_sequence

    @property
    def sent(self) -> int:
        """Sequence up to which Redis was given everything, as far as is known."""
        return self._sent

    @property
    def live(self) -> bool:
        """Whether new events go to Redis with the next call."""
        return self._live

    @property
    def backlog(self) -> int:
        """Events that wait in the file and not in memory."""
        return 0 if self._live else self.last - self._sent

    @property
    def waiting(self) -> bool:
        """Whether events wait in memory."""
        return bool(self._pending)

    def record(self, drafts: Sequence[Draft]) -> None:
        """
        Write events.

        Raises:
            ResourceExhausted: The file is full; nothing was written.
            Unavailable: The disk failed.
        """
        if not drafts:
            return
        now = self._clock.now()
        seconds = int(now)
        nanos = int((now - seconds) * 1_000_000_000)
        sequence = self._log.last_sequence + 1
        writer = self._log.writer_id
        payloads = []
        for draft in drafts:
            event = journal_pb2.JournalEvent(
                schema=SCHEMA,
                kind=draft.kind,
                n=draft.n,
                writer=writer,
                sequence=sequence,
                attempt=draft.attempt,
                usage=draft.usage,
                settlement=draft.settlement,
            )
            event.at.seconds = seconds
            event.at.nanos = nanos
            if not event.attempt.installation:
                event.attempt.installation = self._installation
            payloads.append(event.SerializeToString())
            sequence += 1
        self._log.append(payloads)
        if self._live:
            self._pending.extend(payloads)
            if len(self._pending) > _PENDING:
                self.fall_behind()

    async def durable(self) -> None:
        """Wait until the disk has all that was recorded; at once while Redis has it too."""
        if not self._live:
            await self._log.sync()

    # -- for those who bring events to Redis ------------------------------------------------------

    def take(self, limit: int) -> Parcel:
        """Take up to *limit* events out of memory, oldest first; then `delivered` or `fall_behind`."""
        pending = self._pending
        if len(pending) <= limit:
            events = list(pending)
            pending.clear()
        else:
            events = [pending.popleft() for _ in range(limit)]
        return Parcel(events, self.last - len(pending), self._generation)

    def delivered(self, parcel: Parcel) -> None:
        """Redis has *parcel* and all before it; unless `rewind` has said otherwise since."""
        if parcel.generation == self._generation:
            self._sent = max(self._sent, parcel.last)

    def rewind(self, sequence: int) -> None:
        """Redis has, or needs, nothing above *sequence*: all above it is to be sent again."""
        self._generation += 1
        self._sent = sequence
        self.fall_behind()

    def fall_behind(self) -> None:
        """Keep events in the file from now on; what waited in memory is there too."""
        if not self._live:
            return
        self._live = False
        self._pending.clear()

    def rejoin(self, events: list[bytes]) -> None:
        """
        Go live again with *events*, the newest of the file, as the first that wait in memory.

        The caller has read them from the file and awaited nothing since; all before them is sent.
        """
        self._pending.extend(events)
        self._live = True

    def unsent(self) -> Iterator[tuple[int, bytes]]:
        """Yield what the file holds above `sent`, oldest first."""
        return self._log.read(self._sent)

    def parcel(self, events: list[bytes], last: int) -> Parcel:
        """Return *events* from the file, up to sequence *last*, as a parcel."""
        return Parcel(events, last, self._generation)

    def forget(self, watermark: int) -> None:
        """Drop what the ledger has: all up to *watermark*."""
        self._log.truncate(watermark)
