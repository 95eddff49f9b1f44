"""Which credential is picked, and what is said when none is."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay.errors import NotFound, Unavailable
from patchbay_gateway.scheduler.selection import Selector


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


def test_providers_of_one_model_rotate_together(selector):
    snapshot = make_snapshot(make_provider("a", "a1", "a2"), make_provider("b", "b1"))
    assert picks(selector, snapshot, 4, "a", "b") == ["a1", "a2", "b1", "a1"]


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
