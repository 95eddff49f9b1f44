"""
The journal's writing side: every event goes to this scheduler's write-ahead file first, then to Redis.

An event is durable against the death of the process as soon as `record` returns, and against that of the
machine after `durable`. While `live`, recorded events also wait in memory for the next script call
(booking.py), in the order of their sequences: a reader that has seen sequence n of a writer has been given
all before it. Behind (Redis away, flushed, or its stream too long) they wait in the file only, and
redelivery.py sends them later. The ledger ignores an event that it has; so sending twice is harmless.

Not here: talking to Redis; what became of the events (usage).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

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


def _tag(field: str, wire_type: int) -> bytes:
    """Return the tag of a field of JournalEvent; the numbers stay in the contract."""
    number: int = journal_pb2.JournalEvent.DESCRIPTOR.fields_by_name[field].number
    return bytes([number << 3 | wire_type])


# Wire types: 0 a varint, 2 a length and as many bytes (protobuf's encoding guide).
_KIND: Final = _tag("kind", 0)
_N: Final = _tag("n", 0)
_SEQUENCE: Final = _tag("sequence", 0)
_ATTEMPT: Final = _tag("attempt", 2)
_USAGE: Final = _tag("usage", 2)
_SETTLEMENT: Final = _tag("settlement", 2)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


_SMALL: Final = tuple(bytes([value]) for value in range(0x80))


class Draft(msgspec.Struct):
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
        shared = journal_pb2.JournalEvent(schema=SCHEMA, writer=self._log.writer_id)
        shared.at.seconds = int(now)
        shared.at.nanos = int(now % 1 * 1_000_000_000)
        prefix = shared.SerializeToString()
        sequence = self._log.last_sequence
        payloads = []
        for draft in drafts:
            sequence += 1
            payloads.append(prefix + self._encode(draft, sequence))
        self._log.append(payloads)
        if self._live:
            self._pending.extend(payloads)
            if len(self._pending) > _PENDING:
                self.fall_behind()

    def _encode(self, draft: Draft, sequence: int) -> bytes:
        """
        Return the fields of one event that are its own, on the wire.

        Put together by hand: fields that follow each other on the wire are one message, and so the attempt
        is serialised where it lies instead of being copied into an event, which costs three times as much.
        """
        attempt = draft.attempt
        body = attempt.SerializeToString()
        if not attempt.installation:
            body += journal_pb2.AttemptInfo(installation=self._installation).SerializeToString()
        parts = [_KIND, _varint(draft.kind), _SEQUENCE, _varint(sequence)]
        parts += (_ATTEMPT, _varint(len(body)), body)
        if draft.n:
            parts += (_N, _varint(draft.n))
        if draft.usage is not None:
            body = draft.usage.SerializeToString()
            parts += (_USAGE, _varint(len(body)), body)
        if draft.settlement is not None:
            body = draft.settlement.SerializeToString()
            parts += (_SETTLEMENT, _varint(len(body)), body)
        return b"".join(parts)

    async def durable(self) -> None:
        """Wait until the disk has all that was recorded; at once while Redis has it too."""
        if not self._live:
            await self._log.sync()

    # -- for those who bring events to Redis ------------------------------------------------------

    def take(self, limit: int) -> Parcel:
        """Take up to *limit* events, oldest first; then `delivered`, `give_back` or `fall_behind`."""
        pending = self._pending
        if not pending:
            # Not `last`: behind, the file has what memory has not.
            return Parcel([], self._sent, self._generation)
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

    def give_back(self, parcel: Parcel) -> None:
        """Whether Redis has *parcel* is unknown: it waits in memory again, before all others."""
        if self._live and parcel.generation == self._generation:
            self._pending.extendleft(reversed(parcel.events))

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
