"""
Journal events as the ledger sees them: plain values, decoded from the wire and checked.

The only module of the ledger that knows the journal's protobuf. Strings lose NUL, which Postgres refuses,
and what is over 512 characters; times are Unix microseconds, so that all of them fit a BIGINT. Not here:
what events do (reduce.py), where they come from (consumer.py).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from google.protobuf.message import DecodeError

from patchbay.errors import InvalidRequest
from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from patchbay.type.v1 import usage_pb2

SCHEMA: Final = 1
"""Newest version of the event's schema that is understood."""

_TEXT_LIMIT: Final = 512
# More than any attempt can consume, and thousands of such mistakes still add up within 64 bits.
_MAX: Final = 1 << 50


class Kind(enum.IntEnum):
    """What happened; the first four numbers are the wire's."""

    OPENED = 1
    RENEWED = 2
    SETTLED = 3
    REFUSED = 4
    LOST = 5
    """Never on the wire: the sweeper's verdict."""


class Info(NamedTuple):
    """Who and what one attempt is, in the order of the ledger's columns."""

    attempt_uid: str
    request_uid: str
    number: int
    tenant: str
    installation: str
    client_key: str
    client_request_id: str
    provider: str
    plugin_id: str
    plugin_revision: str
    credential_id: str
    model: str
    upstream_model: str
    format: str
    operation: str
    stream: int
    snapshot_version: int
    opened_at: int


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Quantities; None means unknown, 0 known to be none."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None
    reasoning_tokens: int | None = None
    other: tuple[tuple[str, int], ...] = ()
    """Other units, by name."""
    estimated: bool = False


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended; durations in microseconds."""

    outcome: str
    reached: str
    http_status: int
    client_status: int
    reason: str
    first_byte: int | None
    latency: int
    nested: bool = False


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event; (uid, kind, n) is its identity."""

    kind: int
    n: int
    at: int
    writer: str
    sequence: int
    uid: str
    """The attempt's; for REFUSED the request's."""
    described: Info | journal_pb2.AttemptInfo
    usage: Usage | None = None
    settlement: Settlement | None = None

    @property
    def info(self) -> Info:
        """The attempt. Read from the wire on demand: of the events of one attempt, one is asked."""
        described = self.described
        return described if type(described) is Info else _info(described, self.at)


class Malformed(InvalidRequest):
    """An event that can never be counted; writer and sequence are kept where they could be read."""

    default_reason = "MALFORMED_EVENT"

    def __init__(self, message: str, *, writer: str = "", sequence: int = 0) -> None:
        super().__init__(message)
        self.writer = writer
        self.sequence = sequence


_OUTCOMES: Final = {0: "failed", 1: "succeeded", 2: "failed", 3: "cancelled", 4: "lost"}
_REACHED: Final = {0: "unknown", 1: "no", 2: "unknown", 3: "yes"}
TOKENS: Final = Usage.__struct_fields__[:5]
"""Units that have a column of their own."""
_COLUMNS: Final = {name: i for i, name in enumerate(TOKENS)}
_parse: Final = journal_pb2.JournalEvent.FromString
_RENEWED: Final = int(Kind.RENEWED)
_SETTLED: Final = int(Kind.SETTLED)
_REFUSED: Final = int(Kind.REFUSED)


def decode(data: bytes) -> Event:
    """
    Return the event in *data*, a serialised `JournalEvent`.

    Raises:
        Malformed: It is none, is newer than this ledger, or lacks what an event must have.
    """
    try:
        message = _parse(data)
    except DecodeError as error:
        raise Malformed("not a journal event") from error
    writer, sequence, kind = message.writer, message.sequence, int(message.kind)
    if not 1 <= message.schema <= SCHEMA:
        raise Malformed(f"schema {message.schema} is unknown", writer=writer, sequence=sequence)
    if not 1 <= kind <= 4:
        raise Malformed(f"kind {kind} is unknown", writer=writer, sequence=sequence)
    a = message.attempt
    if not a.request_uid or not (a.attempt_uid or kind == _REFUSED):
        raise Malformed("no attempt", writer=writer, sequence=sequence)
    at = _micros(message.at)
    usage = settlement = None
    try:
        if message.HasField("usage"):
            usage = _usage(message.usage)
        if kind >= _SETTLED:
            settlement = _settlement(message.settlement)
    except ValueError as error:
        raise Malformed(str(error), writer=writer, sequence=sequence) from error
    # Only a renewal has an ordinal; whatever else says one would escape the check for duplicates.
    n = message.n if kind == _RENEWED else 0
    uid = _text(a.request_uid if kind == _REFUSED else a.attempt_uid)
    return Event(kind, n, at, _text(writer), sequence, uid, a, usage, settlement)


def lost(info: Info, at: int) -> Event:
    """Return the sweeper's verdict on an attempt that showed its last life at *at*."""
    return Event(Kind.LOST, 0, at, "", 0, info.attempt_uid, info)


def _info(a: Any, at: int) -> Info:
    texts = [
        a.tenant,
        a.installation,
        a.client_key,
        a.client_request_id,
        a.provider,
        a.plugin_id,
        a.plugin_revision,
        a.credential_id,
        a.model,
        a.upstream_model,
        a.format,
        a.operation,
    ]
    joined = "".join(texts)
    # One look at all of them: nearly always none is too long or has a NUL.
    if len(joined) > _TEXT_LIMIT or "\0" in joined:
        texts = [_text(text) for text in texts]
    return Info._make(
        (
            _text(a.attempt_uid),
            _text(a.request_uid),
            a.number,
            *texts,
            int(a.stream),
            a.snapshot_version,
            _micros(a.opened_at) or at,
        )
    )


def _settlement(s: journal_pb2.Settlement) -> Settlement:
    return Settlement(
        _OUTCOMES.get(s.outcome, "failed"),
        _REACHED.get(s.reached, "unknown"),
        s.http_status,
        s.client_status,
        _text(s.reason),
        _duration(s.first_byte) if s.HasField("first_byte") else None,
        _duration(s.latency),
        s.nested,
    )


def _usage(message: usage_pb2.Usage) -> Usage:
    found: list[int | None] = [None, None, None, None, None]
    other: list[tuple[str, int]] = []
    for item in message.items:
        quantity = item.quantity
        if not 0 <= quantity <= _MAX:
            raise ValueError(f"a quantity of {quantity} is impossible")
        unit = item.unit
        column = _COLUMNS.get(unit)
        if column is not None:
            found[column] = quantity
        else:
            other.append((_text(unit), quantity))
    return Usage(
        found[0],
        found[1],
        found[2],
        found[3],
        found[4],
        tuple(sorted(other)) if other else (),
        message.estimated,
    )


def _text(value: str) -> str:
    if len(value) > _TEXT_LIMIT:
        value = value[:_TEXT_LIMIT]
    return value.replace("\0", "") if "\0" in value else value


def _micros(value: Timestamp) -> int:
    return value.seconds * 1_000_000 + value.nanos // 1_000


def _duration(value: Duration) -> int:
    micros = value.seconds * 1_000_000 + value.nanos // 1_000
    return max(0, micros)
