"""The table of deadlines and failure policy (plugins/policy.py)."""

from __future__ import annotations

import pytest

from patchbay_gateway.plugins.policy import POLICIES, OnError, WhenOpen, policy


@pytest.mark.parametrize(
    ("capability", "deadline", "on_error", "when_open"),
    [
        ("frontend_auth_provider", 2.0, OnError.NOT_HANDLED, WhenOpen.FAIL_CLOSED),
        ("model_router", 0.5, OnError.NEXT, WhenOpen.SKIP),
        ("scheduler", 0.5, OnError.FAIL_REQUEST, WhenOpen.AS_ON_ERROR),
        ("request_interceptor", 2.0, OnError.KEEP, WhenOpen.AS_ON_ERROR),
        ("response_stream_interceptor", 1.0, OnError.DROP_INTERCEPTOR, WhenOpen.AS_ON_ERROR),
        ("thinking_applier", 2.0, OnError.NEXT, WhenOpen.SKIP),
        ("executor", None, OnError.FAIL_ATTEMPT, WhenOpen.AS_ON_ERROR),
        ("executor.count_tokens", 30.0, OnError.FAIL_ATTEMPT, WhenOpen.AS_ON_ERROR),
        ("usage_plugin", 5.0, OnError.RETRY_FROM_JOURNAL, WhenOpen.QUEUE),
        ("register", 10.0, OnError.ABSENT, WhenOpen.NONE),
    ],
)
def test_policy_rows_are_the_documented_ones(
    capability: str, deadline: float | None, on_error: OnError, when_open: WhenOpen
) -> None:
    row = policy(capability)
    assert (row.deadline, row.on_error, row.when_open) == (deadline, on_error, when_open)


def test_policy_execute_limits_the_first_byte_and_the_gaps() -> None:
    assert (POLICIES["executor"].first_byte, POLICIES["executor"].idle) == (120.0, 300.0)


def test_policy_plugin_overrides_its_deadline_and_failure() -> None:
    row = policy(
        "request_interceptor", {"request_interceptor": 9.0}, {"request_interceptor": "Fail"}
    )
    assert (row.deadline, row.on_error) == (9.0, OnError.FAIL_REQUEST)


def test_policy_ignore_lets_a_scheduler_be_passed_over() -> None:
    assert policy("scheduler", {}, {"scheduler": "Ignore"}).on_error is OnError.NEXT


def test_policy_override_that_makes_no_sense_is_without_effect() -> None:
    assert policy("executor", {}, {"executor": "Ignore"}) == POLICIES["executor"]
