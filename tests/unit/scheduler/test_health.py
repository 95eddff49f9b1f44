"""What a scheduler knows of the pool, how it learns and what it decides alone."""

from __future__ import annotations

from patchbay_gateway.scheduler.health import Change, HealthView
from patchbay_gateway.scheduler.marks import WHOLE, End, Mark, encode


def mark_change(clock, version, seconds, scope="m", id_="c", **more):
    now = int(clock.now() * 1000)
    mark = Mark(until=now + int(seconds * 1000), since=now, reason="QUOTA", **more)
    return Change(version, "m", id_, scope, encode(mark))


def failure(uid="R-1", **more):
    return End(
        uid, "c", "m", kind="cool", scope="m", reason="QUOTA", fixed=60_000, opened=1, **more
    )


def blocked_in(view, model):
    """Return what blocks `c` for *model*."""
    found = view.blocked("c", model)
    assert found is not None
    return found


async def test_nothing_known_is_nothing_blocked(clock):
    view = HealthView(clock=clock)
    assert view.blocked("c", "m") is None
    assert not view.touches("c")
    assert view.in_flight("c") == 0


async def test_mark_blocks_its_model_until_its_end_and_then_allows_a_probe(clock):
    view = HealthView(clock=clock)
    view.learn([mark_change(clock, 1, 60)])
    blocked = blocked_in(view, "m")
    assert (blocked.state, blocked.reason, blocked.probe_allowed) == ("cooling", "QUOTA", False)
    assert blocked.until == clock.now() + 60
    assert view.blocked("c", "n") is None
    assert view.cooling() == 1
    await clock.advance(60)
    assert blocked_in(view, "m").probe_allowed
    assert view.cooling() == 0


async def test_mark_against_the_whole_credential_blocks_every_model(clock):
    view = HealthView(clock=clock)
    view.learn([mark_change(clock, 1, 10), mark_change(clock, 2, 60, scope=WHOLE)])
    assert blocked_in(view, "n").until == clock.now() + 60
    assert blocked_in(view, "m").until == clock.now() + 60
    await clock.advance(20)
    # Its own mark would allow a probe, that against the whole credential does not.
    assert not blocked_in(view, "m").probe_allowed


async def test_change_out_of_turn_is_taken_and_asks_for_a_look(clock):
    view = HealthView(clock=clock)
    view.learn([mark_change(clock, 3, 60)])
    assert view.behind
    assert view.version == 0
    assert view.blocked("c", "m") is not None
    view.read_up_to(3)
    assert not view.behind
    view.learn([Change(2, "m", "c", "m", b"")])
    assert view.blocked("c", "m") is not None


async def test_state_read_does_not_undo_a_change_that_overtook_it(clock):
    view = HealthView(clock=clock)
    view.learn([mark_change(clock, 1, 60)])
    view.replace("c", {}, off=False, version=0)
    assert view.blocked("c", "m") is not None
    view.replace("c", {}, off=False, version=1)
    assert view.blocked("c", "m") is None


async def test_each_change_grows_the_generation_and_calls_listeners(clock):
    view = HealthView(clock=clock)
    called = []
    forget = view.on_change(lambda: called.append(view.generation))
    view.learn([mark_change(clock, 1, 60)])
    view.count("d", 2)
    view.count("d", 1)
    forget()
    view.forget()
    assert called == [1, 2]
    assert view.generation == 3


async def test_disabled_credential_is_blocked_without_end(clock):
    view = HealthView(clock=clock)
    view.learn([Change(1, "o", "c", "", b"1")])
    blocked = blocked_in(view, "m")
    assert (blocked.state, blocked.until, blocked.probe_allowed) == ("disabled", None, False)
    view.learn([Change(2, "o", "c", "", b"")])
    assert not view.touches("c")


async def test_earliest_recovery_is_that_of_the_first_to_recover(clock):
    view = HealthView(clock=clock)
    view.learn([mark_change(clock, 1, 60), mark_change(clock, 2, 30, id_="d")])
    assert view.earliest([("c", "m"), ("d", "m"), ("e", "m")]) == clock.now() + 30
    assert view.earliest([("e", "m")]) is None


async def test_alone_an_end_marks_and_a_success_of_the_probe_lifts(clock):
    view = HealthView(clock=clock)
    assert view.settle(failure()) == ["m"]
    assert not blocked_in(view, "m").probe_allowed
    await clock.advance(60)
    assert view.probe("c", "m", "P-1")
    assert blocked_in(view, "m").state == "probing"
    assert view.settle(End("P-1", "c", "m", kind="ok")) == ["m"]
    assert view.blocked("c", "m") is None


async def test_alone_places_are_divided_by_the_schedulers(clock):
    view = HealthView(clock=clock, lease_ttl=60)
    view.share = 2
    given: list[str] = []
    # max_in_flight 5 for two schedulers: two places here.
    while view.in_flight("c") < 5:
        given.append(f"R{len(given)}-1")
        view.hold("c", given[-1])
    assert len(given) == 2
    view.release("c", given[0])
    assert view.in_flight("c") < 5
    view.hold("c", "again-1")
    await clock.advance(61)
    assert view.in_flight("c") == 0


async def test_alone_each_scheduler_has_one_place_at_least(clock):
    view = HealthView(clock=clock)
    view.share = 9
    assert view.in_flight("c") == 0
    view.hold("c", "R-1")
    assert view.in_flight("c") >= 1


async def test_places_whose_ends_other_schedulers_hear_of_are_forgotten(clock):
    """Reports go to any scheduler: what was leased here and ended there must not pile up."""
    view = HealthView(clock=clock, lease_ttl=60.0)
    view.hold("c", "long")
    for n in range(100):
        view.hold("c", f"R{n}-1")
    await clock.advance(50)
    view.hold("c", "long")
    await clock.advance(50)
    view.hold("c", "new")
    assert list(view._mine["c"]) == ["long", "new"]


async def test_material_that_was_told_of_outdates_what_is_here(clock):
    view = HealthView(clock=clock)
    assert not view.outdated("c", 1)
    view.learn([Change(1, "v", "c", "", b"2")])
    assert view.outdated("c", 1)
    assert not view.outdated("c", 2)
    view.replace("c", {}, off=False, version=2, material=3)
    assert view.outdated("c", 2)
    view.forget()
    assert not view.outdated("c", 2)
