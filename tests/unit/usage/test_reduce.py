"""Rows and rollups from events: each rule alone, then all of them in any order."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.journal_events import START, make_event

from patchbay_gateway.usage.events import lost
from patchbay_gateway.usage.reduce import (
    SUMS,
    Changes,
    Owner,
    Refused,
    Row,
    contribution,
    reduce,
    refused_contribution,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patchbay_gateway.usage.events import Event, Info, Usage


def price(info: Info, usage: Usage) -> int:
    assert info.attempt_uid
    return 3 * (usage.input_tokens or 0) + 7 * (usage.output_tokens or 0)


class Memory:
    """A ledger in memory, without any database."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.refused: dict[str, Refused] = {}
        self.rollups: Counter[tuple[Owner, str]] = Counter()

    def record(self, events: Sequence[Event]) -> Changes:
        changes = reduce(events, self.rows, self.refused, price)
        self.rows.update({row.info.attempt_uid: row for row in changes.rows})
        self.refused.update({r.info.request_uid: r for r in changes.refused})
        for owner, values in changes.rollups.items():
            for name, value in zip(SUMS, values, strict=True):
                self.rollups[owner, name] += value
        return changes

    def totals(self) -> dict[tuple[Owner, str], int]:
        return {key: value for key, value in self.rollups.items() if value}

    def summed(self) -> dict[tuple[Owner, str], int]:
        """What the rollups must be: the sums over final rows."""
        found: Counter[tuple[Owner, str]] = Counter()
        parts = [contribution(row) for row in self.rows.values()]
        parts += [refused_contribution(r) for r in self.refused.values()]
        for part in parts:
            if part is not None:
                owner, values = part
                found.update({(owner, n): v for n, v in zip(SUMS, values, strict=True)})
        return {key: value for key, value in found.items() if value}

    def total(self, name: str) -> int:
        return sum(value for (_, n), value in self.rollups.items() if n == name)


def only(memory: Memory) -> Row:
    (row,) = memory.rows.values()
    return row


def test_opened_and_settled_in_one_batch_make_one_final_row() -> None:
    memory = Memory()
    changes = memory.record(
        [
            make_event("opened"),
            make_event("settled", at=1, usage={"input_tokens": 10, "output_tokens": 5}),
        ]
    )
    assert len(changes.rows) == 1
    row = only(memory)
    assert (row.state, row.outcome, row.reached, row.opened) == ("final", "succeeded", "yes", 1)
    assert (row.latency, row.first_byte, row.http_status) == (90_000, 5_000, 200)
    assert row.cost_nano == 65
    assert row.price_version == 1
    assert memory.total("requests") == memory.total("attempts") == 1
    assert memory.total("input_tokens") == 10


def test_open_attempt_counts_for_nothing() -> None:
    memory = Memory()
    memory.record([make_event("opened"), make_event("renewed", n=1, usage={"output_tokens": 5})])
    assert only(memory).state == "open"
    assert memory.totals() == {}


def test_settled_before_opened_keeps_the_settlement() -> None:
    memory = Memory()
    memory.record([make_event("settled", at=1, usage={"output_tokens": 5})])
    changes = memory.record([make_event("opened")])
    assert changes.rollups == {}
    assert (only(memory).state, only(memory).opened) == ("final", 1)


def test_lost_takes_the_highest_renewal_as_estimate() -> None:
    memory = Memory()
    memory.record(
        [
            make_event("opened"),
            make_event("renewed", n=2, at=30, usage={"output_tokens": 50}),
            make_event("renewed", n=1, at=15, usage={"output_tokens": 20}),
        ]
    )
    memory.record([lost(only(memory).info, only(memory).last_seen)])
    row = only(memory)
    assert (row.outcome, row.reached, row.settled_at) == (
        "lost",
        "unknown",
        int((START + 30) * 1e6),
    )
    assert row.usage is not None
    assert (row.usage.output_tokens, row.usage.estimated) == (50, True)
    assert row.latency == 30_000_000
    assert memory.total("lost") == 1
    assert memory.total("estimated") == 1


def test_settled_after_lost_corrects_by_the_difference() -> None:
    memory = Memory()
    memory.record([make_event("opened"), make_event("renewed", n=1, usage={"output_tokens": 50})])
    memory.record([lost(only(memory).info, only(memory).last_seen)])
    memory.record([make_event("settled", at=90, usage={"output_tokens": 80})])
    assert only(memory).outcome == "succeeded"
    assert memory.total("lost") == memory.total("estimated") == 0
    assert memory.total("output_tokens") == 80
    assert memory.total("attempts") == 1
    assert memory.totals() == memory.summed()


def test_lost_after_settled_changes_nothing() -> None:
    memory = Memory()
    memory.record([make_event("settled")])
    before = only(memory)
    assert memory.record([lost(before.info, before.last_seen)]).rows == []


def test_settled_without_usage_keeps_what_was_renewed() -> None:
    """A failure that tells no numbers does not undo what was produced before it."""
    memory = Memory()
    memory.record(
        [
            make_event("settled", at=9, outcome="failed", reached="yes"),
            make_event("renewed", n=1, usage={"output_tokens": 20}),
        ]
    )
    row = only(memory)
    assert row.usage is not None
    assert (row.outcome, row.usage.output_tokens, row.usage.estimated) == ("failed", 20, True)


def test_retried_request_is_one_request() -> None:
    memory = Memory()
    memory.record(
        [
            make_event("settled", outcome="failed", reached="no"),
            make_event("settled", number=2, credential="other"),
        ]
    )
    assert memory.total("requests") == 1
    assert memory.total("attempts") == 2
    assert memory.total("failed") == 1


def test_refused_is_a_request_without_attempt() -> None:
    memory = Memory()
    memory.record(
        [make_event("refused", outcome="failed"), make_event("refused", outcome="failed")]
    )
    memory.record([make_event("refused", outcome="failed")])
    assert memory.rows == {}
    assert len(memory.refused) == 1
    assert memory.total("requests") == memory.total("failed") == 1
    assert memory.total("attempts") == 0


def _usages() -> st.SearchStrategy[dict[str, int] | None]:
    units = st.sampled_from(["input_tokens", "output_tokens", "reasoning_tokens", "images"])
    return st.none() | st.dictionaries(units, st.integers(0, 1000), max_size=3)


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Event], list[list[Event]]]:
    """Events of a few attempts, in two orders with repetitions, the second cut into batches."""
    events: list[Event] = []
    for request in range(draw(st.integers(1, 3))):
        for number in range(1, draw(st.integers(1, 2)) + 1):
            more = {"number": number, "opened": request * 3000, "model": f"m{request % 2}"}
            base = request * 3000.0
            if draw(st.booleans()):
                events.append(make_event("opened", request, at=base, **more))
            for n in range(1, draw(st.integers(0, 3)) + 1):
                usage = draw(_usages())
                events.append(
                    make_event("renewed", request, n=n, at=base + 15 * n, usage=usage, **more)
                )
            if draw(st.booleans()):
                outcome = draw(st.sampled_from(["succeeded", "failed", "cancelled"]))
                events.append(
                    make_event(
                        "settled",
                        request,
                        at=base + 100,
                        usage=draw(_usages()),
                        estimated=draw(st.booleans()),
                        outcome=outcome,
                        **more,
                    )
                )
        if draw(st.booleans()):
            events.append(make_event("refused", 100 + request, outcome="failed"))
    again = st.lists(st.sampled_from(events), max_size=4) if events else st.just([])
    shuffled = draw(st.permutations([*events, *draw(again)]))
    cuts = sorted(draw(st.lists(st.integers(0, len(shuffled)), max_size=3)))
    bounds = [0, *cuts, len(shuffled)]
    return events, [shuffled[a:b] for a, b in itertools.pairwise(bounds)]


def _sweep(memory: Memory) -> list[Event]:
    return [lost(r.info, r.last_seen) for r in memory.rows.values() if r.state == "open"]


def _replay(batches: Iterable[Sequence[Event]], *, sweep_after: int) -> Memory:
    memory = Memory()
    for index, batch in enumerate(batches):
        memory.record(batch)
        assert memory.totals() == memory.summed()
        if index == sweep_after:
            memory.record(_sweep(memory))
            assert memory.totals() == memory.summed()
    memory.record(_sweep(memory))
    assert memory.totals() == memory.summed()
    return memory


@given(_histories(), st.integers(-1, 3))
@settings(max_examples=80, deadline=None)
def test_any_order_and_repetition_gives_the_same_ledger(
    history: tuple[list[Event], list[list[Event]]], sweep_after: int
) -> None:
    """Whatever the order, the repetition, the batches and the moment of the sweep."""
    events, batches = history
    straight = _replay([events], sweep_after=-1)
    crooked = _replay(batches, sweep_after=sweep_after)
    assert crooked.rows == straight.rows
    assert crooked.refused == straight.refused
    assert crooked.totals() == straight.totals()
