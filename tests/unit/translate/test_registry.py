"""Which translations exist, names of formats, and what a model is asked to think."""

from __future__ import annotations

import pytest

from patchbay_gateway.translate.formats import canonical, canonical_list
from patchbay_gateway.translate.native import native_registry
from patchbay_gateway.translate.registry import Pair, Registry
from patchbay_gateway.translate.thinking import Thinking, level_of, parse_suffix, split_suffix


def test_native_pairs_exist_for_requests_answers_and_streams() -> None:
    registry = native_registry()
    assert set(registry) == {("openai", "claude"), ("claude", "openai")}
    for client, executor in registry:
        pair = registry.pair(client, executor)
        assert pair.request
        assert pair.whole
        assert pair.stream
    assert registry.pair("claude", "openai").count


def test_unknown_pair_has_nothing() -> None:
    assert native_registry().pair("gemini", "own") == Pair()


def test_pair_is_registered_once_and_never_to_itself() -> None:
    registry = Registry()
    registry.register("a", "b", Pair())
    with pytest.raises(ValueError, match="registered"):
        registry.register("a", "b", Pair())
    with pytest.raises(ValueError, match="no translation"):
        registry.register("a", "a", Pair())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Chat-Completions", "openai"),
        ("responses", "openai-response"),
        ("anthropic", "claude"),
        ("none", ""),
        (" own ", "own"),
    ],
)
def test_formats_have_one_spelling(given: str, wanted: str) -> None:
    assert canonical(given) == wanted


def test_format_lists_drop_duplicates_and_nothing() -> None:
    assert canonical_list(["anthropic", "claude", "none", "openai"]) == ("claude", "openai")


@pytest.mark.parametrize(
    ("model", "name", "asked"),
    [
        ("m(high)", "m", Thinking(level="high")),
        ("m(HIGH)", "m", Thinking(level="high")),
        ("m(8192)", "m", Thinking(budget=8192)),
        ("m(0)", "m", Thinking(level="none")),
        ("m(-1)", "m", Thinking(level="auto")),
        ("m(auto)", "m", Thinking(level="auto")),
        ("a(b)(low)", "a(b)", Thinking(level="low")),
        ("m(other)", "m", None),
        ("m(-2)", "m", None),
    ],
)
def test_suffix_is_split_and_understood(model: str, name: str, asked: Thinking | None) -> None:
    found, inside = split_suffix(model)
    assert found == name
    assert parse_suffix(inside) == asked


@pytest.mark.parametrize("model", ["m", "(high)", "m(high", "m high)"])
def test_name_without_suffix_is_whole(model: str) -> None:
    assert split_suffix(model) == (model, "")


@pytest.mark.parametrize(
    ("budget", "level"),
    [
        (-1, "auto"), (0, "none"), (1, "minimal"), (512, "minimal"), (513, "low"), (1024, "low"),
        (8192, "medium"), (24576, "high"), (24577, "xhigh"),
    ],
)  # fmt: skip
def test_budget_means_a_level(budget: int, level: str) -> None:
    assert level_of(budget) == level


def test_budget_below_minus_one_means_nothing() -> None:
    with pytest.raises(ValueError, match="means nothing"):
        level_of(-2)
