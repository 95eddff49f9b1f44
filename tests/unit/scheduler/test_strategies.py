"""Whose turn it is among equals, compared with the plain definition of each strategy."""

from __future__ import annotations

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay_gateway.scheduler.strategies import (
    FILL_FIRST,
    ROUND_ROBIN,
    WEIGHTED,
    Member,
    SmoothWeighted,
    bits,
    make,
)


def members(*weights, groups=("a",)):
    """Return one member per weight, dealt out to *groups* in order."""
    share = -(-len(weights) // len(groups))
    return [
        Member(number, f"m{number:02}", groups[number // share], weight)
        for number, weight in enumerate(weights)
    ]


def taken(strategy, count, skip=0):
    return [strategy.take(skip, lambda number: f"{number}") for _ in range(count)]


class PlainWeighted:
    """Smooth weighted round-robin as nginx describes it, over all that take part."""

    def __init__(self, weights):
        self.weights = weights
        self.credit = [0] * len(weights)

    def take(self, ready):
        ready = [n for n in sorted(ready) if self.weights[n] > 0]
        if not ready:
            return None
        for number in ready:
            self.credit[number] += self.weights[number]
        best = max(ready, key=lambda n: (self.credit[n], -n))
        self.credit[best] -= sum(self.weights[n] for n in ready)
        return best


class PlainRotation:
    """Round-robin: a group's turn by the count of its ready members, then the next behind the last."""

    def __init__(self, groups, *, fill_first):
        self.groups = groups
        self.cursors = [0] * len(groups)
        self.turn = 0
        self.fill_first = fill_first

    def take(self, ready):
        left = [[n for n in group if n in ready] for group in self.groups]
        slots = [index for index, group in enumerate(left) for _ in group]
        if not slots:
            return None
        if self.fill_first:
            return left[slots[0]][0]
        index = slots[self.turn % len(slots)]
        self.turn += 1
        behind = [n for n in left[index] if n >= self.cursors[index]]
        number = (behind or left[index])[0]
        self.cursors[index] = number + 1
        return number


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "take", "take", "take"]), st.integers(0, 5)),
    max_size=60,
)


def compare(strategy, plain, count, steps):
    ready = set(range(count))
    for verb, drawn in steps:
        number = drawn % count
        if verb == "add" and number not in ready:
            ready.add(number)
            strategy.add(number)
        elif verb == "remove" and number in ready:
            ready.discard(number)
            strategy.remove(number)
        elif verb == "take":
            skip = 1 << number if number % 2 else 0
            expected = plain.take(ready - set(bits(skip)))
            found = strategy.take(skip, lambda n: (n,))
            assert found == (None if expected is None else (expected,))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), STEPS)
def test_weighted_is_the_plain_definition(weights, steps):
    strategy = SmoothWeighted(members(*weights))
    compare(strategy, PlainWeighted(weights), len(weights), steps)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.booleans(), STEPS)
def test_rotation_is_the_plain_definition(count, groups, fill_first, steps):
    all_ = members(*[1] * count, groups="abc"[:groups])
    strategy = make(FILL_FIRST if fill_first else ROUND_ROBIN, all_)
    by_group = collections.defaultdict(list)
    for member in all_:
        by_group[member.group].append(member.number)
    plain = PlainRotation(list(by_group.values()), fill_first=fill_first)
    compare(strategy, plain, count, steps)


def test_weights_5_1_1_interleave():
    """The example of nginx's own description."""
    assert taken(make(WEIGHTED, members(5, 1, 1)), 7) == list("0010200")


def test_weighted_credit_stays_while_a_member_is_away():
    strategy = make(WEIGHTED, members(1, 1))
    assert taken(strategy, 1) == ["0"]
    strategy.remove(1)
    assert taken(strategy, 3) == ["0", "0", "0"]
    strategy.add(1)
    assert taken(strategy, 2) == ["1", "0"]


def test_member_that_does_not_fit_is_passed_over_once():
    strategy = make(ROUND_ROBIN, members(1, 1, 1))
    assert strategy.take(0, lambda n: None if n == 0 else n) == 1
    assert taken(strategy, 2) == ["2", "0"]


def test_nobody_fits_takes_nobody():
    for name in (ROUND_ROBIN, FILL_FIRST, WEIGHTED):
        strategy = make(name, members(2, 1, 1))
        assert strategy.take(0, lambda _: None) is None
        assert strategy.any()


def test_rotation_goes_on_behind_a_member_that_is_gone():
    before = make(ROUND_ROBIN, [Member(i, id_, "a") for i, id_ in enumerate("bdf")])
    taken(before, 2)
    after = make(ROUND_ROBIN, [Member(i, id_, "a") for i, id_ in enumerate("abcefg")])
    after.resume(before.state())
    assert taken(after, 2) == ["3", "4"]


def test_strategy_changed_begins_anew():
    before = make(ROUND_ROBIN, members(1, 1))
    taken(before, 1)
    for name in (WEIGHTED, FILL_FIRST):
        after = make(name, members(1, 1))
        after.resume(before.state())
        assert taken(after, 1) == ["0"]
    other = make(ROUND_ROBIN, members(1, 1))
    other.resume(make(WEIGHTED, members(1, 1)).state())
    assert taken(other, 1) == ["0"]


def test_weighted_heaps_stay_small_while_members_come_and_go():
    strategy = SmoothWeighted(members(*[1] * 10))
    for _ in range(1000):
        strategy.remove(3)
        strategy.add(3)
        taken(strategy, 1)
    assert sum(len(peers.heap) for peers in strategy._peers.values()) < 200
