"""What a failed attempt means."""

import pytest

from patchbay import errors
from patchbay_gateway.kernel import outcomes
from patchbay_gateway.kernel.outcomes import Decision


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (errors.Unavailable("gone"), Decision(again=True, avoid_address=True)),
        (errors.DeadlineExceeded("slow"), Decision(again=True, avoid_address=True)),
        (errors.Unavailable("none", reason=outcomes.NO_EXECUTOR), Decision(again=False)),
        (
            errors.UpstreamError(502, sent=errors.Sent.NO),
            Decision(again=True, avoid_credential=True),
        ),
        (
            errors.UpstreamError(502, sent=errors.Sent.UNKNOWN, reason=outcomes.CONNECTION_FAILED),
            Decision(again=True, avoid_credential=True),
        ),
        (errors.UpstreamError(502, sent=errors.Sent.YES), Decision(again=False)),
        (errors.UpstreamError(504, sent=errors.Sent.UNKNOWN), Decision(again=False)),
        (errors.UpstreamError(429, sent=errors.Sent.YES), Decision(again=False)),
        (errors.InvalidRequest("bad"), Decision(again=False)),
        (errors.Internal("bug"), Decision(again=False)),
    ],
)
def test_decide_by_failure(error: errors.PatchbayError, decision: Decision) -> None:
    assert outcomes.decide(error) == decision


def test_reached_unsaid_is_unknown() -> None:
    assert outcomes.reached(errors.Unavailable("gone")) is errors.Sent.UNKNOWN


def test_reached_said_is_kept() -> None:
    assert outcomes.reached(errors.Unavailable("x", sent=errors.Sent.NO)) is errors.Sent.NO
