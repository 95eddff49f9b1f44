"""Costs: disjoint quantities, one rounding, the prices of the attempt's snapshot."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.journal_events import make_event

from patchbay.errors import InvalidRequest
from patchbay_gateway.plugins.prices import load_prices, parse_prices
from patchbay_gateway.plugins.snapshot import PriceEntry
from patchbay_gateway.usage.events import Usage
from patchbay_gateway.usage.pricing import PriceBook, cost_nano

if TYPE_CHECKING:
    from types import FrameType

GPT = {"input_tokens": 2_500_000_000, "output_tokens": 10_000_000_000}


def test_cost_is_quantity_times_price_per_million() -> None:
    assert cost_nano(GPT, Usage(1_000_000, 100_000)) == 3_500_000_000


def test_cost_takes_cached_input_out_of_input_where_it_has_a_price() -> None:
    prices = {**GPT, "cache_read_tokens": 250_000_000}
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=400_000)
    assert cost_nano(prices, usage) == 1_600_000_000


def test_cost_of_cached_input_without_a_price_is_that_of_input() -> None:
    assert cost_nano(GPT, Usage(input_tokens=1_000_000, cache_read_tokens=400_000)) == 2_500_000_000


def test_cost_of_reasoning_is_that_of_output_unless_named() -> None:
    usage = Usage(output_tokens=1_000_000, reasoning_tokens=500_000)
    assert cost_nano(GPT, usage) == 10_000_000_000
    assert cost_nano({**GPT, "reasoning_tokens": 0}, usage) == 5_000_000_000


def test_cost_of_contradictory_usage_is_never_negative() -> None:
    prices = {**GPT, "cache_read_tokens": 0}
    assert cost_nano(prices, Usage(input_tokens=5, cache_read_tokens=9)) == 0


def test_cost_of_other_units_is_by_name() -> None:
    assert cost_nano({"images": 40_000_000_000}, Usage(other=(("images", 2), ("x", 7)))) == 80_000


@pytest.mark.parametrize(
    ("tokens", "nano"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (4, 2), (6, 3)]
)
def test_cost_rounds_half_to_even(tokens: int, nano: int) -> None:
    assert cost_nano({"input_tokens": 500_000}, Usage(tokens)) == nano


@given(
    st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12)
)
def test_cost_is_the_exact_sum_rounded_once(a: int, b: int, x: int, y: int) -> None:
    """Python rounds fractions half to even."""
    exact = round(Fraction(a * x + b * y, 10**6))
    assert cost_nano({"input_tokens": x, "output_tokens": y}, Usage(a, b)) == min(exact, 1 << 53)


def test_book_prices_an_attempt_by_its_snapshot() -> None:
    book = PriceBook()
    assert book.add(100, (PriceEntry("*", "*", {"input_tokens": 10**6}),))
    assert not book.add(150, (PriceEntry("*", "*", {"input_tokens": 10**6}),))
    assert book.add(200, (PriceEntry("*", "*", {"input_tokens": 2 * 10**6}),))
    for version, cost in ((50, 10), (100, 10), (199, 10), (200, 20), (900, 20)):
        info = make_event("opened", version=version).info
        assert book.price(info, Usage(10)) == cost


def test_book_prices_rightly_at_every_step_of_taking_another_list() -> None:
    """The sweeper's rows are priced in the ledger's thread while the loop adds what a snapshot brought."""

    def cents(count: int) -> tuple[PriceEntry, ...]:
        return (PriceEntry("*", "*", {"input_tokens": count * 10**6}),)

    book = PriceBook([(100, cents(1)), (300, cents(3))])
    infos = {version: make_event("opened", version=version).info for version in (100, 300, 500)}
    seen: list[list[int]] = []

    def look(frame: FrameType, *_: object) -> Any:
        if frame.f_code is PriceBook.add.__code__:
            seen.append([book.price(info, Usage(1)) for info in infos.values()])
            return look
        return None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        book.add(200, cents(2))
        book.add(500, cents(5))
    finally:
        sys.settrace(before)
    assert len(seen) > 4
    assert {tuple(costs[:2]) for costs in seen} == {(1, 3)}
    assert {costs[2] for costs in seen} == {3, 5}
    assert [book.price(info, Usage(1)) for info in infos.values()] == [1, 3, 5]


def test_book_takes_the_first_entry_that_matches() -> None:
    book = PriceBook(
        [
            (
                1,
                (
                    PriceEntry("openai", "gpt-4*", {"input_tokens": 10**6}),
                    PriceEntry("openai", "*", {"input_tokens": 3 * 10**6}),
                ),
            )
        ]
    )
    costs = {
        name: book.price(make_event("opened", model=name, provider=provider).info, Usage(1))
        for name, provider in (("gpt-4o", "openai"), ("o3", "openai"), ("gpt-4", "azure"))
    }
    assert costs == {"gpt-4o": 1, "o3": 3, "gpt-4": 0}


def test_prices_file_is_read_exactly() -> None:
    (entry, other) = parse_prices(
        """
- {provider: openai, model: gpt-*, currency: USD, per_million: {input_tokens: "2.50", output_tokens: 0.1}}
- {per_million: {requests: 1e-9}}
"""
    )
    assert entry == PriceEntry(
        "openai", "gpt-*", {"input_tokens": 2_500_000_000, "output_tokens": 100_000_000}
    )
    assert other == PriceEntry("*", "*", {"requests": 1})


def test_prices_file_that_is_empty_has_no_prices() -> None:
    assert parse_prices("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1}", "must be a list"),
        ("- 5", "entry 1: must be a mapping"),
        ("- {model: x}", "needs per_million"),
        ("- {flavour: x, per_million: {input_tokens: 1}}", "unknown key flavour"),
        ("- {per_million: {input_tokens: much}}", "input_tokens: 'much' is not a decimal"),
        ("- {per_million: {input_tokens: -1}}", "between 0"),
        ("- {per_million: {input_tokens: nan}}", "between 0"),
        ("- {per_million: {input_tokens: 0.0000000001}}", "more than nine decimals"),
        ("- {per_million: {input_tokens: [1]}}", "is not a decimal"),
        ("- {model: [x], per_million: {input_tokens: 1}}", "must be text"),
        (
            "- {currency: USD, per_million: {a: 1}}\n- {currency: EUR, per_million: {a: 1}}",
            "several currencies",
        ),
        ("- {", "is not YAML"),
    ],
)
def test_prices_file_that_is_wrong_says_where(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_prices(text, source="prices.yaml")
    assert caught.value.message.startswith("prices.yaml")


def test_prices_file_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere/prices\.yaml: cannot be read"):
        load_prices("nowhere/prices.yaml")
