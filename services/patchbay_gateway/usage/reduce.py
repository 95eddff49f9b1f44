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


class Row(msgspec.Struct, frozen=True, gc=False):
    """The ledger's row of one attempt; times and durations in microseconds."""

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
    if kind == Kind.SETTLED:
        return _settled(row, event)
    if row is None:
        row = Row(
            event.info, 0, "open", "", "unknown", event.at, *(None,) * 3, 0, 0, "", 0, 0, 0, None
        )
    if kind == Kind.OPENED:
        return _opened(row, event)
    if kind == Kind.RENEWED:
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
        usage = usage._replace(estimated=True)
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
        usage = usage._replace(estimated=True)
    row = _replace(row, renewed_n=event.n, last_seen=last_seen, usage=usage)
    return _mark_lost(row) if row.outcome == "lost" else row


def _seen(row: Row, last_seen: int) -> Row:
    row = _replace(row, last_seen=last_seen)
    return _mark_lost(row) if row.outcome == "lost" else row


def _mark_lost(row: Row) -> Row:
    """Return *row* as lost. Its end is the last sign of life, so that the order of events is no matter."""
    usage = row.usage
    if usage is not None and not usage.estimated:
        usage = usage._replace(estimated=True)
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


def contribution(row: Row | None) -> tuple[Owner, tuple[int, ...]] | None:
    """Return what *row* adds to which rollup; None while it is open."""
    if row is None or row.state != "final":
        return None
    info, usage, outcome = row.info, row.usage, row.outcome
    # Attempts of one request may have several owners; the first one stands for the request.
    counts = (
        int(info.number == 1),
        1,
        int(outcome == "failed"),
        int(outcome == "lost"),
        int(outcome == "cancelled"),
    )
    if usage is None:
        return _owner(info), (*counts, 0, 0, 0, 0, 0, 0, row.cost_nano)
    return _owner(info), (
        *counts,
        int(usage.estimated),
        usage.input_tokens or 0,
        usage.output_tokens or 0,
        usage.cache_read_tokens or 0,
        usage.cache_creation_tokens or 0,
        usage.reasoning_tokens or 0,
        row.cost_nano,
    )


def refused_contribution(refused: Refused) -> tuple[Owner, tuple[int, ...]]:
    """Return what a refused request adds to which rollup."""
    return _owner(refused.info), (1, 0, 1, *NO_SUMS[3:])


def _owner(info: Info) -> Owner:
    return Owner(
        info.opened_at - info.opened_at % HOUR,
        info.tenant,
        info.model,
        info.provider,
        info.credential_id,
        info.client_key,
        info.plugin_id,
    )


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
        if event.kind == Kind.SETTLED:
            now[uid] = advance(now.get(uid) or rows.get(uid), event)
        elif event.kind != Kind.REFUSED:
            later.append(event)
        elif uid not in refused and uid not in turned_away:
            turned_away[uid] = _refusal(event.info, event.settlement)
    for event in later:
        uid = event.uid
        now[uid] = advance(now.get(uid) or rows.get(uid), event)
    changed: list[Row] = []
    sums: dict[Owner, tuple[int, ...]] = {}
    for uid, row in now.items():
        old = rows.get(uid)
        if row is old:
            continue
        if row.state == "final":
            cost = price(row.info, row.usage) if row.usage is not None else 0
            version = row.info.snapshot_version
            if cost != row.cost_nano or version != row.price_version:
                row = _replace(row, cost_nano=cost, price_version=version)  # noqa: PLW2901 - the priced row
            _add(sums, contribution(row), 1)
            _add(sums, contribution(old), -1)
        changed.append(row)
    for refusal in turned_away.values():
        _add(sums, refused_contribution(refusal), 1)
    return Changes(
        changed, list(turned_away.values()), {k: v for k, v in sums.items() if v != NO_SUMS}
    )


def _refusal(info: Info, end: Settlement | None) -> Refused:
    if end is None:
        return Refused(info, 0, 0, "")
    return Refused(info, end.http_status, end.client_status, end.reason)


def _add(
    sums: dict[Owner, tuple[int, ...]], part: tuple[Owner, tuple[int, ...]] | None, sign: int
) -> None:
    if part is None:
        return
    owner, values = part
    before = sums.get(owner)
    if before is None:
        sums[owner] = values if sign > 0 else tuple([-v for v in values])
    else:
        sums[owner] = tuple([b + sign * v for b, v in zip(before, values, strict=True)])
