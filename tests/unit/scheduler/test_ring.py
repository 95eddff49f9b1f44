"""Who is ready: cooling, full, probed, lifted early; compared with looking at everybody each time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot
from tests.unit.scheduler.pool import FakeView

from patchbay.errors import ResourceExhausted, Unavailable
from patchbay_gateway.scheduler.selection import Cooling, Selector

NOW = 1000.0


def pool(view, *credentials, strategy="round-robin", models=("m",), usable=lambda *_: True):
    """Return a function that picks one id of a provider with *credentials* at an instant."""
    selector = Selector(usable, view)
    snapshot = make_snapshot(make_provider("a", *credentials, models=models), strategy=strategy)

    def pick(now=NOW, **more):
        view.now = now
        return selector.pick(snapshot, "m", ("a",), now=now, **more).credential.id

    return pick


def test_cooling_is_passed_over_and_comes_back_when_its_time_is_over():
    view = FakeView()
    pick = pool(view, "x", "y")
    view.block("x", until=NOW + 30)
    assert [pick(), pick(), pick(NOW + 29)] == ["y", "y", "y"]
    assert {pick(NOW + 30), pick(NOW + 30)} == {"x", "y"}


def test_expired_cooldown_of_a_better_priority_is_promoted_before_the_pick():
    view = FakeView()
    pick = pool(view, make_credential("best", priority=1), "other")
    view.block("best", until=NOW + 5)
    assert [pick(), pick(NOW + 4.9), pick(NOW + 5)] == ["other", "other", "best"]


def test_cooldown_lifted_early_is_seen_at_the_next_pick():
    view = FakeView()
    pick = pool(view, make_credential("best", priority=1), "other")
    view.block("best", until=NOW + 3600)
    assert pick() == "other"
    view.lift("best")
    assert pick() == "best"


def test_cooldown_that_became_longer_holds():
    view = FakeView()
    pick = pool(view, "x", "y")
    view.block("x", until=NOW + 5)
    assert pick() == "y"
    view.block("x", until=NOW + 50)
    assert [pick(NOW + 6), pick(NOW + 49)] == ["y", "y"]


def test_cooldowns_that_end_together_twice_are_no_trouble():
    view = FakeView()
    pick = pool(view, "x", "y", "z")
    for _ in range(3):
        for id_ in "xy":
            view.block(id_, until=NOW + 5)
        assert [pick(), pick(), pick()] == ["z", "z", "z"]
        for id_ in "xy":
            view.lift(id_)
        assert sorted([pick(), pick(), pick()]) == ["x", "y", "z"]


def test_cooldown_of_one_model_leaves_the_other():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(make_provider("a", "x", models=("m", "n")))
    view.block("x", until=NOW + 30, model="m")
    with pytest.raises(Cooling):
        selector.pick(snapshot, "m", ("a",), now=NOW)
    assert selector.pick(snapshot, "n", ("a",), now=NOW).credential.id == "x"


def test_probe_is_offered_while_it_is_allowed():
    view = FakeView()
    pick = pool(view, "x", "y")
    view.block("x", until=NOW + 100, probe=True)
    assert {pick(), pick()} == {"x", "y"}
    view.block("x", until=NOW + 100, probe=False)
    assert [pick(), pick()] == ["y", "y"]
    view.block("x", until=NOW + 100, probe=True)
    assert {pick(), pick()} == {"x", "y"}


def test_probe_that_time_alone_allows_is_noticed_within_a_second():
    view = FakeView()
    pick = pool(view, make_credential("best", priority=1), "other")
    view.block("best", until=NOW + 100)
    assert pick() == "other"
    view.block("best", until=NOW + 100, probe=True, tell=False)
    assert pick(NOW + 1) == "best"


def test_full_credential_is_passed_over_until_a_place_is_free():
    view = FakeView()
    pick = pool(view, make_credential("x", max_in_flight=2), "y", strategy="fill-first")
    view.busy["x"] = 1
    assert pick() == "x"
    view.busy["x"] = 2
    assert pick() == "y"
    view.free("x")
    assert pick() == "x"


def test_all_full_says_busy():
    view = FakeView()
    pick = pool(view, make_credential("x", max_in_flight=1), make_credential("y", max_in_flight=1))
    view.busy.update(x=1, y=1)
    with pytest.raises(ResourceExhausted) as caught:
        pick()
    assert caught.value.reason == "CREDENTIALS_BUSY"
    view.free("y")
    assert pick() == "y"


def test_full_before_cooling_in_the_refusal():
    """A place becomes free sooner than a cooldown ends."""
    view = FakeView()
    pick = pool(view, make_credential("x", max_in_flight=1), "y")
    view.busy["x"] = 1
    view.block("y", until=NOW + 60)
    with pytest.raises(ResourceExhausted) as caught:
        pick()
    assert caught.value.reason == "CREDENTIALS_BUSY"


def test_all_cooling_tells_the_earliest_recovery_and_the_last_error():
    view = FakeView()
    pick = pool(view, "x", "y")
    view.block("x", until=NOW + 60, error=(429, "slow_down", "too many"))
    view.block("y", until=NOW + 20, error=(529, "overloaded_error", "busy day"))
    with pytest.raises(Cooling, match="the first is back in 20 s") as caught:
        pick()
    assert (caught.value.reason, caught.value.retry_after) == ("MODEL_COOLDOWN", 20.0)
    assert caught.value.last_error is not None
    assert caught.value.last_error.http_status == 529
    assert caught.value.last_error.message == "busy day"
    with pytest.raises(Cooling) as caught:
        pick(exclude=["y"])
    assert caught.value.retry_after == 20.0


def test_tried_ones_that_are_ready_are_no_cooldown():
    view = FakeView()
    pick = pool(view, "x", "y")
    view.block("x", until=NOW + 60)
    with pytest.raises(Unavailable) as caught:
        pick(exclude=["y"])
    assert caught.value.reason == "CREDENTIALS_TRIED"


def test_out_of_use_is_no_cooldown():
    view = FakeView()
    pick = pool(view, "x")
    view.block("x", until=None, reason="DISABLED")
    with pytest.raises(Unavailable, match="disabled") as caught:
        pick()
    assert caught.value.reason == "NO_CREDENTIAL"


def test_material_that_arrives_is_used_within_a_second():
    here = set()
    pick = pool(FakeView(), "x", usable=lambda _, credential: credential.id in here)
    with pytest.raises(Unavailable):
        pick()
    here.add("x")
    assert pick(NOW + 1) == "x"


@pytest.mark.parametrize(
    ("states", "reason", "text"),
    [
        ({"x": "needs_login", "y": "disabled"}, "NO_CREDENTIAL", r"\(disabled, needs login\)"),
        ({"x": "needs_login", "y": "expired"}, "CREDENTIAL_MATERIAL_MISSING", "refresh"),
        ({"x": "expired", "y": "no_material"}, "CREDENTIAL_MATERIAL_MISSING", "the log says why"),
    ],
)
def test_refusal_says_what_keeps_material_from_use(states, reason, text):
    selector = Selector(
        lambda *_: False, FakeView(), unusable=lambda _, credential: states[credential.id]
    )
    snapshot = make_snapshot(make_provider("a", "x", "y"))
    with pytest.raises(Unavailable, match=text) as caught:
        selector.pick(snapshot, "m", ("a",), now=NOW)
    assert caught.value.reason == reason


def test_alias_pool_rotates_around_a_cooling_model():
    view = FakeView()
    selector = Selector(lambda *_: True, view)
    snapshot = make_snapshot(make_provider("a", "x", models=("m1=m", "m2=m", "m3=m")))
    view.block("x", until=NOW + 9, model="m2")

    def models(count, **more):
        return [
            selector.pick(snapshot, "m", ("a",), now=NOW, **more).upstream_model
            for _ in range(count)
        ]

    assert models(4) == ["m1", "m3", "m1", "m3"]
    assert models(1, tried=[("x", "m1")], prefer="x") == ["m3"]
    with pytest.raises(Unavailable):
        models(1, tried=[("x", "m1"), ("x", "m3"), ("x", "m2")])


def test_clock_that_goes_back_hides_nobody():
    view = FakeView()
    pick = pool(view, make_credential("best", priority=1), "other")
    view.block("best", until=NOW + 5)
    assert pick() == "other"
    view.lift("best", tell=False)
    assert pick(NOW - 500) == "best"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["block", "probe", "lift", "fill", "free", "wait", "pick", "pick", "pick"]),
        st.integers(0, 5),
        st.integers(0, 3),
    ),
    max_size=50,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), STEPS)
def test_ring_picks_somebody_ready_of_the_best_priority_whenever_there_is_one(priorities, steps):
    """And refuses only when looking at everybody finds nobody."""
    view = FakeView()
    credentials = [
        make_credential(f"c{n}", priority=priority, max_in_flight=2 if n % 2 else 0)
        for n, priority in enumerate(priorities)
    ]
    pick = pool(view, *credentials)
    now = NOW
    for verb, drawn, amount in steps:
        credential = credentials[drawn % len(credentials)]
        if verb == "block":
            view.block(credential.id, until=now + amount)
        elif verb == "probe":
            view.block(credential.id, until=now + amount, probe=True)
        elif verb == "lift":
            view.lift(credential.id)
        elif verb == "fill":
            view.busy[credential.id] = amount
        elif verb == "free":
            view.free(credential.id)
        elif verb == "wait":
            now += amount / 2
        else:
            view.now = now
            ready = [c for c in credentials if view.ready(c)]
            best = max((c.priority for c in ready), default=None)
            try:
                found = pick(now)
            except (ResourceExhausted, Unavailable):
                assert not ready
            else:
                assert found in {c.id for c in ready if c.priority == best}


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "weighted-round-robin"])
@pytest.mark.parametrize("cooling", [0, 1990])
def test_cost_does_not_grow_with_the_pool(strategy, cooling):
    """Counted in questions to the view: of 2 000 credentials a pick asks about a few."""
    view = FakeView()
    credentials = [make_credential(f"c{n:04}") for n in range(2000)]
    for credential in credentials[:cooling]:
        view.block(credential.id, until=NOW + 3600)
    pick = pool(view, *credentials, strategy=strategy)
    pick()
    view.asked = 0
    for step in range(1000):
        pick(NOW + step / 100)
    assert view.asked <= 1000 * 10
    view.asked = 0
    for step in range(1000):
        view.generation += 1
        pick(NOW + 10 + step / 100)
    assert view.asked <= 1000 * 10


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "weighted-round-robin"])
def test_refusal_of_a_large_pool_that_rests_looks_at_it_once(strategy):
    view = FakeView()
    credentials = [make_credential(f"c{n:04}") for n in range(2000)]
    for credential in credentials:
        view.block(credential.id, until=NOW + 3600)
    pick = pool(view, *credentials, strategy=strategy)
    with pytest.raises(Cooling):
        pick()
    view.asked = 0
    for _ in range(20):
        with pytest.raises(Cooling):
            pick()
    assert view.asked <= 2000


def test_pick_of_2000_takes_about_as_long_as_of_one():
    """A coarse guard; bench/ has the figures."""

    def cost(count):
        pick = pool(FakeView(), *[f"c{n:04}" for n in range(count)])
        pick()
        best = 1.0
        for _ in range(10):
            start = time.thread_time()  # what others do on this machine does not count
            for _ in range(500):
                pick()
            best = min(best, time.thread_time() - start)
        return best / 500

    assert cost(2000) < cost(1) + 10e-6
