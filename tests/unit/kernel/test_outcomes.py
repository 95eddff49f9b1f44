"""What a failed attempt means for the request and for the credential."""

import pytest

from patchbay import errors
from patchbay.errors import FaultScope
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel import outcomes
from patchbay_gateway.kernel.outcomes import (
    NOTHING,
    Action,
    Consequence,
    CoolingPolicy,
    Fault,
    FaultKind,
    Next,
)

UPSTREAM = errors.UpstreamError(500)
POLICY = CoolingPolicy()
UNSAID, MODEL, CREDENTIAL = FaultScope.UNSPECIFIED, FaultScope.MODEL, FaultScope.CREDENTIAL


def test_kinds_are_those_of_the_contract() -> None:
    wire = {
        name.removeprefix("FAULT_KIND_"): number for name, number in scheduler_pb2.FaultKind.items()
    }
    assert {kind.name: kind.value for kind in FaultKind} == wire


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Unavailable("gone"), Next.ADDRESS),
        (errors.DeadlineExceeded("slow"), Next.ADDRESS),
        (errors.Unavailable("none", reason=outcomes.NO_EXECUTOR), Next.STOP),
        (errors.InvalidRequest("bad"), Next.STOP),
        (errors.FailedPrecondition("secret expired", reason="SECRET_EXPIRED"), Next.STOP),
        (errors.Internal("bug"), Next.STOP),
    ],
)
def test_decide_where_no_provider_failed(error: errors.PatchbayError, expected: Next) -> None:
    assert outcomes.decide(error).next is expected


@pytest.mark.parametrize(
    ("kind", "scope", "expected"),
    [
        (FaultKind.UNSPECIFIED, UNSAID, Next.STOP),
        (FaultKind.REQUEST, UNSAID, Next.STOP),
        (FaultKind.UNAUTHORIZED, UNSAID, Next.CREDENTIAL),
        (FaultKind.INVALID_GRANT, UNSAID, Next.CREDENTIAL),
        (FaultKind.FORBIDDEN, UNSAID, Next.CREDENTIAL),
        (FaultKind.PAYMENT, UNSAID, Next.CREDENTIAL),
        (FaultKind.NOT_FOUND, UNSAID, Next.MODEL),
        (FaultKind.MODEL_UNSUPPORTED, UNSAID, Next.MODEL),
        (FaultKind.QUOTA, UNSAID, Next.MODEL),
        (FaultKind.QUOTA, CREDENTIAL, Next.CREDENTIAL),
        (FaultKind.OVERLOADED, UNSAID, Next.MODEL),
        (FaultKind.TRANSIENT, UNSAID, Next.MODEL),
        (FaultKind.TRANSIENT, CREDENTIAL, Next.CREDENTIAL),
        (FaultKind.CHALLENGE, UNSAID, Next.CREDENTIAL),
        (FaultKind.CONNECTION, UNSAID, Next.CREDENTIAL),
    ],
)
def test_decide_by_kind_and_scope(kind: FaultKind, scope: FaultScope, expected: Next) -> None:
    assert outcomes.decide(UPSTREAM, Fault(kind, scope)).next is expected


def test_decide_unauthorized_refreshes_first_where_it_can() -> None:
    fault = Fault(FaultKind.UNAUTHORIZED)
    assert outcomes.decide(UPSTREAM, fault, refreshable=True).next is Next.REFRESH


def test_decide_other_kinds_never_refresh() -> None:
    fault = Fault(FaultKind.FORBIDDEN)
    assert outcomes.decide(UPSTREAM, fault, refreshable=True).next is Next.CREDENTIAL


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FaultKind.TRANSIENT, Next.STOP),
        (FaultKind.OVERLOADED, Next.STOP),
        (FaultKind.QUOTA, Next.MODEL),
        (FaultKind.PAYMENT, Next.CREDENTIAL),
    ],
)
def test_decide_no_retry_ends_only_failures_of_the_provider(
    kind: FaultKind, expected: Next
) -> None:
    """Another account is not what a provider means by `x-should-retry: false`."""
    assert outcomes.decide(UPSTREAM, Fault(kind, no_retry=True)).next is expected


@pytest.mark.parametrize(
    ("kind", "action", "expected"),
    [
        (FaultKind.TRANSIENT, Action.STOP, Next.STOP),
        (FaultKind.QUOTA, Action.STOP_AND_COOLDOWN, Next.STOP),
        (FaultKind.REQUEST, Action.CONTINUE, Next.CREDENTIAL),
        (FaultKind.REQUEST, Action.CONTINUE_AND_COOLDOWN, Next.CREDENTIAL),
        (FaultKind.QUOTA, Action.CONTINUE, Next.MODEL),
    ],
)
def test_decide_rule_outranks_kind(kind: FaultKind, action: Action, expected: Next) -> None:
    assert outcomes.decide(UPSTREAM, Fault(kind), action=action).next is expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FaultKind.UNSPECIFIED, NOTHING),
        (FaultKind.REQUEST, NOTHING),
        (FaultKind.CONNECTION, NOTHING),
        (
            FaultKind.UNAUTHORIZED,
            Consequence(CREDENTIAL, 1800, 1800, lifted_by_refresh=True),
        ),
        (
            FaultKind.INVALID_GRANT,
            Consequence(CREDENTIAL, 1800, 1800, needs_login=True, lifted_by_refresh=True),
        ),
        (FaultKind.FORBIDDEN, Consequence(CREDENTIAL, 1800, 1800)),
        (FaultKind.PAYMENT, Consequence(CREDENTIAL, 1800, 1800)),
        (FaultKind.NOT_FOUND, Consequence(MODEL, 600, 600)),
        (FaultKind.MODEL_UNSUPPORTED, Consequence(MODEL, 3600, 3600)),
        (FaultKind.QUOTA, Consequence(MODEL, 1, 1800, 3600)),
        (FaultKind.OVERLOADED, Consequence(MODEL, 1, 60, 3600)),
        (FaultKind.TRANSIENT, Consequence(MODEL, 60, 60, 3600)),
        (FaultKind.CHALLENGE, Consequence(CREDENTIAL, 10, 1800)),
    ],
)
def test_consequence_by_kind(kind: FaultKind, expected: Consequence) -> None:
    assert outcomes.consequence(kind, UNSAID, POLICY) == expected


def test_every_kind_has_a_row() -> None:
    for kind in FaultKind:
        outcomes.decide(UPSTREAM, Fault(kind))
        found = outcomes.consequence(kind, UNSAID, POLICY)
        assert found.cools == (kind.name not in {"UNSPECIFIED", "REQUEST", "CONNECTION"})


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        (FaultKind.QUOTA, CREDENTIAL, CREDENTIAL),
        (FaultKind.QUOTA, FaultScope.PROVIDER, MODEL),
        (FaultKind.FORBIDDEN, MODEL, MODEL),
        (FaultKind.NOT_FOUND, CREDENTIAL, CREDENTIAL),
        (FaultKind.UNAUTHORIZED, MODEL, CREDENTIAL),
        (FaultKind.MODEL_UNSUPPORTED, CREDENTIAL, MODEL),
        (FaultKind.TRANSIENT, FaultScope.REQUEST, FaultScope.REQUEST),
    ],
)
def test_consequence_scope_is_the_providers_word(
    kind: FaultKind, said: FaultScope, expected: FaultScope
) -> None:
    assert outcomes.consequence(kind, said, POLICY).scope is expected


def test_consequence_scope_of_the_policy_outranks_the_provider() -> None:
    policy = CoolingPolicy(scope=CREDENTIAL)
    assert outcomes.consequence(FaultKind.QUOTA, MODEL, policy).scope is CREDENTIAL


@pytest.mark.parametrize("kind", list(FaultKind))
def test_consequence_cooling_switched_off_leaves_only_unsupported_models(kind: FaultKind) -> None:
    found = outcomes.consequence(kind, UNSAID, CoolingPolicy(enabled=False))
    assert found.cools == (kind is FaultKind.MODEL_UNSUPPORTED)


@pytest.mark.parametrize("kind", [FaultKind.TRANSIENT, FaultKind.OVERLOADED])
def test_consequence_transient_zero_cools_nothing(kind: FaultKind) -> None:
    assert outcomes.consequence(kind, UNSAID, CoolingPolicy(transient=0)) == NOTHING


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("kind", list(FaultKind))
def test_consequence_forced_lasts_a_minute_at_least(kind: FaultKind, enabled: bool) -> None:
    policy = CoolingPolicy(enabled=enabled)
    found = outcomes.consequence(kind, FaultScope.REQUEST, policy, forced=True)
    assert found.cools
    assert found.window(retry_after=5) >= 60


@pytest.mark.parametrize(
    ("level", "retry_after", "seconds"),
    [
        (0, None, 1),
        (1, None, 2),
        (5, None, 32),
        (11, None, 1800),
        (5000, None, 1800),
        (3, 5.0, 5),
        (0, 864_000.0, 3600),
        (0, 0.0, 1),
        (2, -7.0, 4),
        (0, float("nan"), 1),
        (0, float("inf"), 1),
    ],
)
def test_window_of_quota(level: int, retry_after: float | None, seconds: float) -> None:
    found = outcomes.consequence(FaultKind.QUOTA, UNSAID, POLICY)
    assert found.window(level, retry_after) == seconds


def test_window_of_transient_is_fixed() -> None:
    found = outcomes.consequence(FaultKind.TRANSIENT, UNSAID, POLICY)
    assert [found.window(level) for level in range(3)] == [60, 60, 60]
    assert found.window(retry_after=5) == 5


def test_window_of_overload_stays_short() -> None:
    found = outcomes.consequence(FaultKind.OVERLOADED, UNSAID, POLICY)
    assert [found.window(level) for level in (0, 3, 9)] == [1, 8, 60]


def test_window_of_a_refused_credential_ignores_retry_after() -> None:
    found = outcomes.consequence(FaultKind.UNAUTHORIZED, UNSAID, POLICY)
    assert found.window(4, 5.0) == 1800


@pytest.mark.parametrize(
    ("kind", "worth"),
    [
        (FaultKind.QUOTA, True),
        (FaultKind.TRANSIENT, True),
        (FaultKind.OVERLOADED, True),
        (FaultKind.FORBIDDEN, True),
        (FaultKind.CONNECTION, True),
        (FaultKind.UNAUTHORIZED, False),
        (FaultKind.PAYMENT, False),
        (FaultKind.NOT_FOUND, False),
        (FaultKind.REQUEST, False),
    ],
)
def test_worth_a_round_where_it_passes_by_itself(kind: FaultKind, worth: bool) -> None:
    assert outcomes.worth_a_round(Fault(kind)) is worth
    assert not outcomes.worth_a_round(Fault(kind, no_retry=True))


def test_reached_unsaid_is_unknown() -> None:
    assert outcomes.reached(errors.Unavailable("gone")) is errors.Sent.UNKNOWN


def test_reached_said_is_kept() -> None:
    assert outcomes.reached(errors.Unavailable("x", sent=errors.Sent.NO)) is errors.Sent.NO
