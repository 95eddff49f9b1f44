"""
From events to the one row of an attempt, and from rows to rollups. Pure.

States: none, open, final. A row is a function of the *set* of its events; order and repetition change
nothing, which the tests prove by shuffling. The rules that make it so:

- settled is the truth about everything; opened is the better description than renewed.
- the highest renewal wins; one without usage is only a sign of life.
- lost makes the row final with the last renewed usage, estimated; a settled before or after it wins.
- settled that knows no usage takes that of the last renewal, estimated: it was produced.

Rollups are sums over final rows by hour and owner. They change by `contribution(new) - contribution(old)`,
so a late settled corrects by the difference. Not here: the database (ledger.py).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from patchbay_gateway.usage.events import Event, Info, Kind, Settlement, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

HOUR: Final = 3_600_000_000
"""Microseconds."""

SUMS: Final = (
    "requests",
    "attempts",
    "failed",
    "lost",
    "cancelled",
    "estimated",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
    "cost_nano",
)
"""What a rollup adds up, in the order of its columns."""

NO_SUMS: Final = (0,) * len(SUMS)

NO_MODEL: Final = "MODEL_NOT_FOUND"
"""Why a request was refused whose model does not exist, or not for its client."""

_OPENED: Final = int(Kind.OPENED)
_RENEWED: Final = int(Kind.RENEWED)
_SETTLED: Final = int(Kind.SETTLED)
_REFUSED: Final = int(Kind.REFUSED)
_ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})


class Owner(NamedTuple):
    """Key of one rollup."""

    hour: int
    """Unix microseconds of its beginning."""
    tenant: str
    model: str
    provider: str
    credential_id: str
    client_key: str
    plugin_id: str


class Row(msgspec.Struct, gc=False):
    """
    The ledger's row of one attempt; times and durations in microseconds.

    Only `reduce` writes to one, and only to one that it has just made.
    """

    info: Info
    opened: int
    """1 when the opened event has arrived."""
    state: str
    """`open` or `final`."""
    outcome: str
    """`succeeded`, `failed`, `cancelled`, `lost`; empty while open."""
    reached: str
    """`yes`, `no`, `unknown`; `unknown` while open."""
    last_seen: int
    settled_at: int | None
    latency: int | None
    first_byte: int | None
    http_status: int
    client_status: int
    reason: str
    nested: int
    renewed_n: int
    """Ordinal of the highest renewal with usage."""
    own_usage: int
    """1 when the usage is the settlement's, not a renewal's."""
    usage: Usage | None
    cost_nano: int = 0
    price_version: int = 0


class Refused(NamedTuple):
    """A request that ended before any attempt."""

    info: Info
    http_status: int
    client_status: int
    reason: str


class Changes(NamedTuple):
    """What a batch of events does to the ledger."""

    rows: list[Row]
    refused: list[Refused]
    rollups: dict[Owner, tuple[int, ...]]
    """Differences; none of them is all zero."""


def advance(row: Row | None, event: Event) -> Row:
    """Return the row after *event*; the same object when it changes nothing."""
    kind = event.kind
    if kind == _SETTLED:
        return _settled(row, event)
    if row is None:
        row = Row(
            event.info, 0, "open", "", "unknown", event.at, *(None,) * 3, 0, 0, "", 0, 0, 0, None
        )
    if kind == _OPENED:
        return _opened(row, event)
    if kind == _RENEWED:
        return _renewed(row, event)
    if row.state == "final":
        return row
    return _mark_lost(row)


def _settled(row: Row | None, event: Event) -> Row:
    end = event.settlement
    assert end is not None
    usage, own, renewed_n, opened, last_seen = event.usage, 1, 0, 0, event.at
    if row is not None:
        if row.state == "final" and row.outcome != "lost":
            return row if row.last_seen >= event.at else _replace(row, last_seen=event.at)
        renewed_n, opened, last_seen = row.renewed_n, row.opened, max(row.last_seen, event.at)
        if usage is None and not end.nested:
            usage, own = row.usage, 0
    if usage is None:
        own = 0
    elif end.nested:
        # The nested calls carry the tokens; counting them here as well would bill them twice.
        usage = None
    elif not own and not usage.estimated:
        usage = _replace(usage, estimated=True)
    return Row(
        event.info,
        opened,
        "final",
        end.outcome,
        end.reached,
        last_seen,
        event.at,
        end.latency,
        end.first_byte,
        end.http_status,
        end.client_status,
        end.reason,
        int(end.nested),
        renewed_n,
        own,
        usage,
    )


def _opened(row: Row, event: Event) -> Row:
    last_seen = max(row.last_seen, event.at)
    if row.opened:
        return row if last_seen == row.last_seen else _seen(row, last_seen)
    if row.state == "final" and row.outcome != "lost":
        return _replace(row, opened=1, last_seen=last_seen)
    row = _replace(row, opened=1, info=event.info, last_seen=last_seen)
    return _mark_lost(row) if row.outcome == "lost" else row


def _renewed(row: Row, event: Event) -> Row:
    last_seen = max(row.last_seen, event.at)
    usage = event.usage
    if usage is None or event.n <= row.renewed_n:
        return row if last_seen == row.last_seen else _seen(row, last_seen)
    if row.own_usage or row.nested:
        return _replace(row, renewed_n=event.n, last_seen=last_seen)
    if row.state == "final":
        usage = _replace(usage, estimated=True)
    row = _replace(row, renewed_n=event.n, last_seen=last_seen, usage=usage)
    return _mark_lost(row) if row.outcome == "lost" else row


def _seen(row: Row, last_seen: int) -> Row:
    row = _replace(row, last_seen=last_seen)
    return _mark_lost(row) if row.outcome == "lost" else row


def _mark_lost(row: Row) -> Row:
    """Return *row* as lost. Its end is the last sign of life, so that the order of events is no matter."""
    usage = row.usage
    if usage is not None and not usage.estimated:
        usage = _replace(usage, estimated=True)
    return _replace(
        row,
        state="final",
        outcome="lost",
        reached="unknown",
        reason="LOST",
        settled_at=row.last_seen,
        latency=max(0, row.last_seen - row.info.opened_at),
        usage=usage,
    )


_replace = msgspec.structs.replace


Sums = dict[Owner, list[int]]


def contribution(row: Row) -> tuple[Owner, tuple[int, ...]] | None:
    """Return what *row* adds to which rollup; None while it is open."""
    sums: Sums = {}
    _add(sums, row, 1)
    return next(((owner, tuple(values)) for owner, values in sums.items()), None)


def refused_contribution(refused: Refused) -> tuple[Owner, tuple[int, ...]]:
    """
    Return what a refused request adds to which rollup.

    A model that does not exist is a name of the client's making: its row keeps it, no rollup is made for it.
    """
    owner = _owner(refused.info)
    if refused.reason == NO_MODEL:
        owner = owner._replace(model="")
    return owner, (1, 0, 1, *NO_SUMS[3:])


def _add(sums: Sums, row: Row, sign: int) -> None:
    """Add *row* to *sums*, or take it out with *sign* -1. Hot, hence written out."""
    if row.state != "final":
        return
    owner = _owner(row.info)
    values = sums.get(owner)
    if values is None:
        values = sums[owner] = [*NO_SUMS]
    if row.info.number == 1:
        # Attempts of one request may have several owners; the first one stands for the request.
        values[0] += sign
    values[1] += sign
    outcome = row.outcome
    if outcome == "failed":
        values[2] += sign
    elif outcome == "lost":
        values[3] += sign
    elif outcome == "cancelled":
        values[4] += sign
    usage = row.usage
    if usage is not None:
        if usage.estimated:
            values[5] += sign
        values[6] += sign * (usage.input_tokens or 0)
        values[7] += sign * (usage.output_tokens or 0)
        values[8] += sign * (usage.cache_read_tokens or 0)
        values[9] += sign * (usage.cache_creation_tokens or 0)
        values[10] += sign * (usage.reasoning_tokens or 0)
    values[11] += sign * row.cost_nano


def _owner(info: Info) -> Owner:
    return _make_owner(
        (
            info.opened_at - info.opened_at % HOUR,
            info.tenant,
            info.model,
            info.provider,
            info.credential_id,
            info.client_key,
            info.plugin_id,
        )
    )


# The class's own constructor is Python; this is called for every attempt.
_make_owner: Final[Callable[[tuple[object, ...]], Owner]] = functools.partial(tuple.__new__, Owner)


def reduce(
    events: Iterable[Event],
    rows: Mapping[str, Row],
    refused: Collection[str],
    price: Callable[[Info, Usage], int],
) -> Changes:
    """
    Return what *events* change.

    Args:
        events: In any order, with any repetition.
        rows: The present rows, by attempt_uid, of at least the attempts in *events* that have one.
        refused: The request_uids in *events* that are already known as refused.
        price: Called for each row that becomes final or whose final usage changes.
    """
    now: dict[str, Row] = {}
    turned_away: dict[str, Refused] = {}
    later: list[Event] = []
    # Order is no matter to the rows, so settled goes first: then the row is made once, from it.
    for event in events:
        uid = event.uid
        if event.kind == _SETTLED:
            now[uid] = _settled(now.get(uid) or rows.get(uid), event)
        elif event.kind != _REFUSED:
            later.append(event)
        elif uid not in refused and uid not in turned_away:
            turned_away[uid] = _refusal(event.info, event.settlement)
    for event in later:
        uid = event.uid
        row = now.get(uid)
        if row is None:
            now[uid] = advance(rows.get(uid), event)
        elif event.kind == _OPENED and row.outcome in _ENDS and row is not rows.get(uid):
            # As `_opened` does, on the row just made.
            row.opened = 1
            row.last_seen = max(row.last_seen, event.at)
        else:
            now[uid] = advance(row, event)
    changed: list[Row] = []
    sums: Sums = {}
    for uid, row in now.items():
        old = rows.get(uid)
        if row is old:
            continue
        if row.state == "final":
            row.cost_nano = price(row.info, row.usage) if row.usage is not None else 0
            row.price_version = row.info.snapshot_version
            _add(sums, row, 1)
            if old is not None:
                _add(sums, old, -1)
        changed.append(row)
    for refusal in turned_away.values():
        owner, values = refused_contribution(refusal)
        sums[owner] = [a + b for a, b in zip(sums.get(owner, NO_SUMS), values, strict=True)]
    return Changes(
        changed,
        list(turned_away.values()),
        {owner: tuple(values) for owner, values in sums.items() if any(values)},
    )


def _refusal(info: Info, end: Settlement | None) -> Refused:
    if end is None:
        return Refused(info, 0, 0, "")
    return Refused(info, end.http_status, end.client_status, end.reason)
