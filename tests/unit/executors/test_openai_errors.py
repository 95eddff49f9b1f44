"""What OpenAI-like providers say of their failures: whose quota is spent, and when to come back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay import errors
from patchbay_gateway.executors.openai_errors import explain, reported_failure


def told(status: int, body: Any, **headers: str) -> errors.UpstreamError:
    pairs = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    error = errors.UpstreamError(status, headers=pairs, body=orjson.dumps(body))
    explain(error, 0)
    return error


@pytest.mark.parametrize(
    ("status", "detail", "scope"),
    [
        (429, {"code": "insufficient_quota"}, errors.FaultScope.CREDENTIAL),
        (429, {"type": "usage_limit_reached"}, errors.FaultScope.CREDENTIAL),
        (429, {"code": "rate_limit_exceeded"}, errors.FaultScope.MODEL),
        (429, {"code": ["insufficient_quota"]}, errors.FaultScope.MODEL),
        (400, {"code": "insufficient_quota"}, errors.FaultScope.REQUEST),
    ],
)
def test_scope(status: int, detail: dict[str, Any], scope: errors.FaultScope) -> None:
    assert told(status, {"error": detail}).scope is scope
    assert reported_failure({"error": {**detail, "status": status}}, b"").scope is scope


@pytest.mark.parametrize(
    ("reset", "wait"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("17ms", 0.017),
        ("1.5s", 1.5),
        ("2d", 3600.0),
        ("soon", None),
        ("1s later", None),
        ("", None),
    ],
)
def test_reset_of_a_spent_limit(reset: str, wait: float | None) -> None:
    error = told(
        429, {}, x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens=reset,
        x_ratelimit_remaining_requests="5", x_ratelimit_reset_requests="9s",
    )  # fmt: skip
    assert error.retry_after == wait


@pytest.mark.parametrize(
    ("seconds", "wait"), [(12, 12.0), (0.5, 0.5), (864000, 3600.0), (-1, None), (True, None)]
)
def test_seconds_in_the_body(seconds: Any, wait: float | None) -> None:
    assert told(429, {"error": {"resets_in_seconds": seconds}}).retry_after == wait


@pytest.mark.parametrize("body", [[], "x", {"error": "text"}, {"error": None}])
def test_body_of_another_shape_changes_nothing(body: Any) -> None:
    assert told(503, body).retry_after is None
