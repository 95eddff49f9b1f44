"""Which credential is picked, and what is said when none is."""

from __future__ import annotations

import math

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot
from tests.unit.scheduler.pool import FakeView

from patchbay.errors import NotFound, Unavailable
from patchbay_gateway.plugins.snapshot import RetryEntry
from patchbay_gateway.scheduler.selection import Cooling, Selector


def picks(selector, snapshot, count, *providers, model="m", **more):
    """Return the ids of *count* picks."""
    return [
        selector.pick(snapshot, model, providers or ("a",), **more).credential.id
        for _ in range(count)
    ]


@pytest.fixture
def selector():
    return Selector(lambda *_: True)


def test_equals_rotate_in_order_of_their_ids(selector):
    snapshot = make_snapshot(make_provider("a", "z", "x", "y"))
    assert picks(selector, snapshot, 7) == ["x", "y", "z", "x", "y", "z", "x"]


def test_highest_priority_with_one_left_serves(selector):
    snapshot = make_snapshot(
        make_provider(
            "a",
            make_credential("low"),
            make_credential("high-1", priority=5),
            make_credential("high-2", priority=5),
        )
    )
    assert picks(selector, snapshot, 3) == ["high-1", "high-2", "high-1"]
    assert picks(selector, snapshot, 1, exclude=["high-1"]) == ["high-2"]
    assert picks(selector, snapshot, 2, exclude=["high-1", "high-2"]) == ["low", "low"]


def test_round_robin_uses_the_highest_priority_only(selector):
    snapshot = make_snapshot(
        make_provider(
            "a", "low", make_credential("h2", priority=9), make_credential("h1", priority=9)
        )
    )
    assert picks(selector, snapshot, 4) == ["h1", "h2", "h1", "h2"]


def test_fill_first_sticks_to_the_first_ready(selector):
    snapshot = make_snapshot(make_provider("a", "y", "x"), strategy="fill-first")
    assert picks(selector, snapshot, 3) == ["x", "x", "x"]
    assert picks(selector, snapshot, 2, exclude=["x"]) == ["y", "y"]


def test_weighted_round_robin_is_smooth(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("x", weight=3), "y"), strategy="weighted-round-robin"
    )
    assert picks(selector, snapshot, 8) == ["x", "x", "y", "x", "x", "x", "y", "x"]


def test_weighted_round_robin_resets_credits_when_weights_change(selector):
    def weighted(version, x):
        return make_snapshot(
            make_provider("a", make_credential("x", weight=x), "y"),
            version=version,
            strategy="weighted-round-robin",
        )

    assert picks(selector, weighted(1, 3), 3) == ["x", "x", "y"]
    assert picks(selector, weighted(2, 3), 2) == ["x", "x"]
    assert picks(selector, weighted(3, 2), 3) == ["x", "y", "x"]


def test_weighted_round_robin_skips_a_priority_without_positive_weight(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("top", priority=5, weight=0), "low"),
        strategy="weighted-round-robin",
    )
    assert picks(selector, snapshot, 2) == ["low", "low"]
    for more in ({"exclude": ["low"]}, {"pinned": "top"}):
        with pytest.raises(Unavailable):
            picks(selector, snapshot, 1, **more)


def test_weight_0_alone_serves_nobody_and_says_so(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("x", weight=0)), strategy="weighted-round-robin"
    )
    with pytest.raises(Unavailable, match="weight 0") as caught:
        picks(selector, snapshot, 1)
    assert caught.value.reason == "NO_CREDENTIAL"


def test_weighted_round_robin_goes_over_the_union_of_providers(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("z", weight=2)),
        make_provider("b", "y", "x"),
        strategy="weighted-round-robin",
    )
    assert picks(selector, snapshot, 4, "a", "b") == ["z", "x", "y", "z"]


def test_mixed_providers_take_turns_by_the_count_of_their_ready_credentials():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(make_provider("a", "a1", "a2", "a3"), make_provider("b", "b1"))
    assert picks(selector, snapshot, 8, "a", "b") == [
        *("a1", "a2", "a3", "b1"),
        *("a1", "a2", "a3", "b1"),
    ]
    view.block("a1", until=math.inf)
    view.block("a3", until=math.inf)
    assert sorted(picks(selector, snapshot, 4, "a", "b")) == ["a2", "a2", "b1", "b1"]


def test_mixed_providers_prefer_the_highest_priority(selector):
    snapshot = make_snapshot(
        make_provider("a", "a1", "a2"), make_provider("b", make_credential("b1", priority=1))
    )
    assert picks(selector, snapshot, 3, "a", "b") == ["b1", "b1", "b1"]


def test_fill_first_of_mixed_providers_begins_with_the_larger_pool(selector):
    small, large = make_provider("a", "a1"), make_provider("b", "b1", "b2")
    snapshot = make_snapshot(small, large, strategy="fill-first")
    assert picks(selector, snapshot, 2, "a", "b") == ["b1", "b1"]
    assert picks(selector, snapshot, 1, "a", "b", exclude=["b1", "b2"]) == ["a1"]
    equal = make_snapshot(small, make_provider("b", "b1"), version=2, strategy="fill-first")
    assert picks(selector, equal, 1, "a", "b") == ["a1"]


def test_fill_first_of_a_route_begins_with_its_first_target(selector):
    snapshot = make_snapshot(
        make_provider("a", "a1", "a2"),
        make_provider("b", "b1"),
        routes={"big": [("b", "m"), ("a", "m")]},
        strategy="fill-first",
    )
    assert picks(selector, snapshot, 1, "a", "b", model="big") == ["b1"]


def test_bound_credential_comes_first_whatever_its_priority(selector):
    """A binding is kept even when a better credential has recovered."""
    snapshot = make_snapshot(make_provider("a", make_credential("top", priority=5), "low"))
    assert picks(selector, snapshot, 2, sticky="low") == ["low", "low"]
    assert picks(selector, snapshot, 1) == ["top"]


@pytest.mark.parametrize("more", [{"sticky": "gone"}, {"sticky": "low", "exclude": ["low"]}])
def test_bound_credential_that_cannot_serve_is_no_pin(selector, more):
    snapshot = make_snapshot(make_provider("a", make_credential("top", priority=5), "low"))
    assert picks(selector, snapshot, 1, **more) == ["top"]


def test_bound_credential_that_rests_passes_the_turn_on():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(make_provider("a", "x", make_credential("y", max_in_flight=1)))
    view.block("x", until=math.inf)
    assert picks(selector, snapshot, 1, sticky="x") == ["y"]
    view.lift("x")
    view.busy["y"] = 1
    assert picks(selector, snapshot, 1, sticky="y") == ["x"]


def test_preferred_credential_goes_on_with_its_other_models(selector):
    snapshot = make_snapshot(make_provider("a", "x", "y", models=("m1=m", "m2=m")))
    more = {"tried": [("x", "m1")], "prefer": "x", "sticky": "y"}
    found = [selector.pick(snapshot, "m", ("a",), **more) for _ in range(2)]
    assert [(c.credential.id, c.upstream_model) for c in found] == [("x", "m2"), ("x", "m2")]
    more = {"tried": [("x", "m1"), ("x", "m2")], "prefer": "x"}
    assert picks(selector, snapshot, 1, **more) == ["y"]


def test_pinned_credential_that_rests_fails_and_says_until_when():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(make_provider("a", "x", "y"))
    view.block("x", until=1060.0)
    view.now = 1000.0
    with pytest.raises(Cooling) as caught:
        selector.pick(snapshot, "m", ("a",), pinned="x", now=1000.0)
    assert caught.value.retry_after == 60.0


def test_later_round_leaves_out_providers_that_allow_fewer(selector):
    snapshot = make_snapshot(
        make_provider("a", "a1"), make_provider("b", "b1", retry=RetryEntry(rounds=1))
    )
    assert sorted(picks(selector, snapshot, 2, "a", "b")) == ["a1", "b1"]
    assert picks(selector, snapshot, 2, "a", "b", round=1) == ["b1", "b1"]
    with pytest.raises(Unavailable) as caught:
        picks(selector, snapshot, 1, "a", "b", round=2)
    assert caught.value.reason == "CREDENTIALS_TRIED"


def test_route_falls_back_in_order_when_no_target_can_serve():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(
        make_provider("a", "a1", models=("m", "n")),
        make_provider("b", "b1", models=("o",)),
        routes={"big": [("a", "m")], "next": [("a", "n")]},
        fallbacks={"big": ("next",), "next": ("o", "big", "nobody")},
    )

    def serving():
        candidate = selector.pick(snapshot, "big", ("a", "b"))
        return candidate.credential.id, candidate.upstream_model

    assert snapshot.fallbacks == {"big": ("next", "o"), "next": ("o", "big")}
    assert serving() == ("a1", "m")
    view.block("a1", until=math.inf, model="m")
    assert serving() == ("a1", "n")
    view.block("a1", until=math.inf)
    assert serving() == ("b1", "o")
    view.block("b1", until=1060.0)
    with pytest.raises(Cooling) as caught:
        selector.pick(snapshot, "big", ("a", "b"), now=1000.0)
    assert caught.value.retry_after == 60.0


def test_candidates_are_shared_by_the_names_that_lead_to_them(selector):
    """Grants are kept by candidate."""
    snapshot = make_snapshot(make_provider("a", "x"), routes={"big": [("a", "m")]})
    assert selector.pick(snapshot, "m", ("a",)) is selector.pick(snapshot, "big", ("a",))


def test_provider_not_allowed_is_left_out(selector):
    snapshot = make_snapshot(make_provider("a", "a1"), make_provider("b", "b1"))
    assert picks(selector, snapshot, 2, "b") == ["b1", "b1"]


def test_priority_counts_across_providers(selector):
    snapshot = make_snapshot(
        make_provider("a", "a1"), make_provider("b", make_credential("b1", priority=1))
    )
    assert picks(selector, snapshot, 2, "a", "b") == ["b1", "b1"]


def test_disabled_credential_is_never_picked(selector):
    snapshot = make_snapshot(make_provider("a", make_credential("x", disabled=True), "y"))
    assert picks(selector, snapshot, 2) == ["y", "y"]


@pytest.mark.parametrize("pattern", ["m", "M*", "*"])
def test_excluded_model_is_not_served(selector, pattern):
    snapshot = make_snapshot(
        make_provider("a", make_credential("x", excluded_models=(pattern,)), "y")
    )
    assert picks(selector, snapshot, 2) == ["y", "y"]


def test_exclusion_speaks_of_the_public_name(selector):
    excluding = make_credential("x", excluded_models=("upstream",))
    snapshot = make_snapshot(make_provider("a", excluding, models=("upstream=public",)))
    candidate = selector.pick(snapshot, "public", ("a",))
    assert candidate.upstream_model == "upstream"


def test_prefix_selects_its_credentials(selector):
    snapshot = make_snapshot(make_provider("a", make_credential("team", prefix="t"), "free"))
    assert picks(selector, snapshot, 2, model="t/m") == ["team", "team"]
    assert set(picks(selector, snapshot, 2, model="m")) == {"team", "free"}


def test_forced_prefix_takes_the_plain_name_away(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("team", prefix="t"), "free"), force_model_prefix=True
    )
    assert picks(selector, snapshot, 2, model="m") == ["free", "free"]
    assert picks(selector, snapshot, 1, model="t/m") == ["team"]


def test_route_names_its_targets(selector):
    snapshot = make_snapshot(
        make_provider("a", "a1", models=("m", "n")),
        make_provider("b", make_credential("b1", prefix="t")),
        routes={"big": [("a", "n"), ("b", "m")]},
        force_model_prefix=True,
    )
    found = [selector.pick(snapshot, "big", ("a", "b")) for _ in range(2)]
    assert [(c.credential.id, c.upstream_model) for c in found] == [("a1", "n"), ("b1", "m")]


def test_exclusion_holds_behind_a_route(selector):
    snapshot = make_snapshot(
        make_provider("a", make_credential("x", excluded_models=("m",)), "y"),
        routes={"big": [("a", "m")]},
    )
    assert picks(selector, snapshot, 2, model="big") == ["y", "y"]


def test_alias_given_twice_rotates_over_its_models(selector):
    snapshot = make_snapshot(make_provider("a", "x", models=("m1=m", "m2=m")))
    found = [selector.pick(snapshot, "m", ("a",)).upstream_model for _ in range(3)]
    assert found == ["m1", "m2", "m1"]


def test_pinned_credential_is_the_only_one(selector):
    snapshot = make_snapshot(make_provider("a", "x", "y"))
    assert picks(selector, snapshot, 2, pinned="y") == ["y", "y"]
    with pytest.raises(Unavailable) as caught:
        selector.pick(snapshot, "m", ("a",), pinned="z")
    assert caught.value.reason == "PINNED_NOT_ELIGIBLE"


def test_rotation_goes_on_in_a_new_snapshot(selector):
    provider = make_provider("a", "x", "y", "z")
    assert picks(selector, make_snapshot(provider, version=1), 1) == ["x"]
    assert picks(selector, make_snapshot(provider, version=2), 1) == ["y"]


def test_old_snapshots_are_forgotten(selector):
    provider = make_provider("a", "x")
    for version in range(1, 20):
        picks(selector, make_snapshot(provider, version=version), 1)
    assert len(selector._snapshots) == 3


def test_unknown_model_is_not_found(selector):
    with pytest.raises(NotFound) as caught:
        selector.pick(make_snapshot(make_provider("a", "x")), "nobody", ("a",))
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert selector._snapshots == {}


def test_everything_tried_says_so(selector):
    with pytest.raises(Unavailable) as caught:
        selector.pick(make_snapshot(make_provider("a", "x")), "m", ("a",), exclude=["x"])
    assert caught.value.reason == "CREDENTIALS_TRIED"


def test_nothing_enabled_says_so(selector):
    snapshot = make_snapshot(make_provider("a", make_credential("x", disabled=True)))
    with pytest.raises(Unavailable, match="disabled") as caught:
        selector.pick(snapshot, "m", ("a",))
    assert caught.value.reason == "NO_CREDENTIAL"


def test_material_that_is_missing_here_passes_the_turn_on():
    selector = Selector(lambda _, credential: credential.id != "x")
    snapshot = make_snapshot(make_provider("a", "x", "y"))
    assert picks(selector, snapshot, 2) == ["y", "y"]
    with pytest.raises(Unavailable) as caught:
        selector.pick(snapshot, "m", ("a",), exclude=["y"])
    assert caught.value.reason == "CREDENTIAL_MATERIAL_MISSING"
