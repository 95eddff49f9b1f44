"""Ejection of an address (plugins/breaker.py)."""

from __future__ import annotations

from patchbay_gateway.plugins.breaker import FAILURES, FIRST_PAUSE, MAX_PAUSE, Breaker


def ejected(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(now)
    return breaker


def test_breaker_failures_in_a_row_eject() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(1.0)
        assert breaker.allows(1.0)
    breaker.failed(1.0)
    assert not breaker.allows(1.0)


def test_breaker_success_between_failures_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(3 * FAILURES):
        breaker.failed(1.0)
        breaker.succeeded()
    assert breaker.allows(1.0)


def test_breaker_after_the_pause_lets_one_probe_through() -> None:
    breaker = ejected(10.0)
    assert not breaker.allows(10.0 + FIRST_PAUSE - 0.01)
    assert breaker.allows(10.0 + FIRST_PAUSE)
    breaker.began()
    assert not breaker.allows(10.0 + FIRST_PAUSE)


def test_breaker_probe_that_succeeds_closes() -> None:
    breaker = ejected()
    breaker.began()
    breaker.succeeded()
    assert breaker.allows(0.0)
    assert not breaker.until


def test_breaker_probes_that_fail_double_the_pause_up_to_a_minute() -> None:
    breaker, now, pauses = ejected(), FIRST_PAUSE, []
    for _ in range(6):
        breaker.began()
        breaker.failed(now)
        pauses.append(breaker.until - now)
        now = breaker.until
    assert pauses == [10.0, 20.0, 40.0, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]


def test_breaker_late_failures_of_older_calls_change_nothing() -> None:
    breaker = ejected(0.0)
    until = breaker.until
    for _ in range(20):
        breaker.failed(3.0)
    assert breaker.until == until


def test_breaker_probe_given_up_by_its_caller_is_followed_by_another() -> None:
    breaker = ejected(0.0)
    breaker.began()
    breaker.left()
    assert breaker.allows(FIRST_PAUSE)


def test_breaker_reset_forgets() -> None:
    breaker = ejected()
    breaker.reset()
    assert breaker.allows(0.0)
