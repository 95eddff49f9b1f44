"""Windows open, grow once, are never shortened, and are lifted by what says something about them."""

from __future__ import annotations

import pytest

from patchbay_gateway.scheduler import marks
from patchbay_gateway.scheduler.marks import WHOLE, End, Mark, cooled, freed, probed, survives

NOW = 1_700_000_000_000


def failure(opened=NOW, **more):
    fields = {"kind": "cool", "scope": "m", "reason": "QUOTA", "first": 1000, "cap": 1_800_000}
    return End("R-1", "c", "m", opened=opened, **{**fields, **more})


def test_backoff_doubles_from_window_to_window():
    mark, now, windows = None, NOW, []
    for _ in range(5):
        mark = cooled(mark, failure(now), now)
        windows.append(mark.until - now)
        now = mark.until + 1
    assert windows == [1000, 2000, 4000, 8000, 16000]


def test_backoff_ends_at_its_cap():
    mark = Mark(until=NOW - 1, since=NOW - 2, level=29, reason="QUOTA")
    assert cooled(mark, failure(), NOW).until == NOW + 1_800_000


def test_backoff_rises_once_per_window():
    mark = cooled(None, failure(), NOW)
    for _ in range(20):
        assert cooled(mark, failure(), NOW + 10) is mark


def test_late_failures_of_a_burst_do_not_raise_the_backoff():
    mark = cooled(None, failure(), NOW)
    late = cooled(mark, failure(opened=NOW - 5000), NOW + 1500)
    assert (late.until - NOW - 1500, late.level) == (1000, 1)


@pytest.mark.parametrize(("seconds", "until"), [(5_000, 60_000), (90_000, 90_000)])
def test_window_is_lengthened_by_what_the_provider_asks_and_never_shortened(seconds, until):
    mark = cooled(None, failure(fixed=60_000, asked=1), NOW)
    assert cooled(mark, failure(fixed=seconds, asked=1), NOW).until == NOW + until


def test_fixed_windows_reuse_an_open_one_of_the_same_reason():
    mark = cooled(None, failure(reason="TRANSIENT", fixed=60_000), NOW)
    assert cooled(mark, failure(reason="TRANSIENT", fixed=60_000), NOW + 30_000) is mark


def test_graver_failure_takes_an_open_window_over():
    mark = cooled(None, failure(), NOW)
    graver = cooled(mark, failure(reason="FORBIDDEN", fixed=1_800_000), NOW + 10)
    assert (graver.reason, graver.until) == ("FORBIDDEN", NOW + 10 + 1_800_000)


def test_rule_sets_a_least_window():
    assert cooled(None, failure(at_least=60_000), NOW).until == NOW + 60_000


def test_quota_may_be_probed_from_a_tenth_of_its_window_on():
    mark = cooled(None, failure(fixed=3_600_000, early=1), NOW)
    assert mark.closed(NOW + 359_999)
    assert not mark.closed(NOW + 360_000)


def test_short_windows_are_not_probed_early():
    mark = cooled(None, failure(fixed=5_000, early=1), NOW)
    assert mark.closed(NOW + 4_999)
    assert not mark.closed(NOW + 5_000)


def test_failed_probe_keeps_the_window_and_the_next_may_come_later():
    mark = cooled(None, failure(fixed=3_600_000, early=1), NOW)
    now = NOW + 360_000
    mark = cooled(probed(mark, "R-1", now + 60_000), failure(now, early=1), now)
    assert (mark.until, mark.probe) == (NOW + 3_600_000, "")
    assert mark.closed(now + 359_999)
    assert not mark.closed(now + 360_000)


def test_success_lifts_only_what_it_says_something_about():
    mark = cooled(None, failure(), NOW)
    assert survives(mark, failure(opened=NOW - 1), NOW, whole=False)
    assert not survives(mark, failure(opened=NOW + 1), NOW, whole=False)
    assert not survives(probed(mark, "R-1", NOW), failure(opened=NOW - 1), NOW, whole=False)


def test_success_of_a_model_keeps_an_exhausted_quota_of_the_whole_credential():
    mark = cooled(None, failure(scope=WHOLE), NOW)
    later = failure(opened=NOW + 1)
    assert survives(mark, later, NOW + 10, whole=True)
    assert not survives(mark, later, NOW + 1000, whole=True)
    other = cooled(None, failure(scope=WHOLE, reason="TRANSIENT"), NOW)
    assert not survives(other, later, NOW + 10, whole=True)


def test_probe_without_verdict_lets_the_next_one_come():
    mark = probed(Mark(until=NOW), "R-1", NOW + 60_000)
    assert mark.probing(NOW)
    assert not freed(mark, failure()).probing(NOW)
    other = probed(mark, "S-1", NOW + 60_000)
    assert freed(other, failure()) is other


def test_lost_probe_ends_by_itself():
    assert not probed(Mark(), "R-1", NOW).probing(NOW)


def test_form_in_redis_is_short_and_reads_back():
    mark = cooled(None, failure(error=marks.MarkError(429, "x", "y", NOW)), NOW)
    encoded = marks.encode(mark)
    assert marks.decode(encoded) == mark
    assert b"until" not in encoded
