"""When a credential is refreshed and what becomes of its record."""

from __future__ import annotations

import pytest

from patchbay import errors
from patchbay.auth_provider import INVALID_GRANT, invalid_grant
from patchbay.errors import Sent, UpstreamError
from patchbay_gateway.scheduler import refresh_rules as rules
from patchbay_gateway.scheduler.durable.port import CredentialRecord, Intent, token_hash
from patchbay_gateway.scheduler.refresh_rules import Renewal, Seed

NOW = 1_700_000_000.0
LEAD = 300.0
SEED = Seed("hash-1", {"refresh_token": "test-refresh"})
FRESH = CredentialRecord(
    "team",
    version=5,
    material={"refresh_token": "test-refresh", "access_token": "test-access"},
    refreshed_at=NOW,
    expires_at=NOW + 3600,
    seed_hash="hash-1",
)
INTENT = Intent(token_hash("test-refresh"), NOW + 60, "one")
UNKNOWN = errors.DeadlineExceeded("too slow", reason="CALL_DEADLINE", sent=Sent.UNKNOWN)


def state(record: CredentialRecord | None, now: float = NOW) -> str:
    return rules.status_of(record, LEAD, now).state


def test_due_lies_a_lead_before_the_end_with_jitter_that_all_agree_on() -> None:
    dues = [rules.due_at(FRESH.replace(id=f"c{n}"), LEAD) for n in range(200)]
    ends = [NOW + 3600 - due for due in dues if due is not None]
    assert all(0.9 * LEAD <= lead <= 1.1 * LEAD for lead in ends)
    assert max(ends) - min(ends) > 0.15 * LEAD
    assert dues == [rules.due_at(FRESH.replace(id=f"c{n}"), LEAD) for n in range(200)]


def test_lead_is_a_fraction_of_a_short_life() -> None:
    short = FRESH.replace(expires_at=NOW + 60)
    assert 60 - 15 * 1.1 <= (rules.due_at(short, LEAD) or 0) - NOW <= 60 - 15 * 0.9


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"material": {"refresh_token": "test-refresh"}}, 0.0),
        ({"material": {"access_token": "test-access"}}, None),
        ({"status": "needs_login"}, None),
        ({"disabled": True}, None),
        ({"next_refresh_after": NOW + 7}, NOW + 7),
        ({"intent": INTENT}, NOW + 60 + rules.SKEW),
        ({"intent": INTENT, "next_refresh_after": NOW + 90}, NOW + 90),
        ({"expires_at": 0.0, "refreshed_at": 0.0}, 0.0),
    ],
)
def test_due_of_other_records(changes: dict[str, object], due: float | None) -> None:
    assert rules.due_at(FRESH.replace(**changes), LEAD) == due


def test_life_that_the_provider_did_not_tell_is_assumed() -> None:
    due = rules.due_at(FRESH.replace(expires_at=0.0), LEAD)
    assert due is not None
    assert NOW + 3200 < due < NOW + 3400
    assert rules.usable(FRESH.replace(expires_at=0.0), NOW + 1e6)


def test_states_by_record_and_time() -> None:
    assert state(None) == "needs_login"
    assert state(FRESH) == "ok"
    assert state(FRESH, NOW + 3500) == "due"
    assert state(FRESH, NOW + 3700) == "due"
    assert state(FRESH.replace(next_refresh_after=NOW + 9999), NOW + 3700) == "due"
    assert state(FRESH.replace(intent=INTENT)) == "refreshing"
    assert state(FRESH.replace(intent=INTENT), NOW + 70) == "ambiguous"
    assert state(FRESH.replace(status="backoff", next_refresh_after=NOW + 4)) == "backoff"
    only_access = FRESH.replace(material={"access_token": "test-access"})
    assert state(only_access) == "ok"
    assert state(only_access, NOW + 3700) == "needs_login"


def test_intent_over_an_expired_one_is_ambiguous_until_it_ends() -> None:
    again = rules.intended(FRESH.replace(intent=INTENT), Intent("h", NOW + 130, "two"))
    assert state(again, NOW + 70) == "ambiguous"
    assert state(rules.renewed(again, Renewal({}, NOW + 3600), LEAD, NOW)) == "ok"
    assert state(rules.failed(again, invalid_grant("reused"), NOW)) == "needs_login"


def test_renewal_merges_material_and_clears_failures() -> None:
    worn = FRESH.replace(
        material={**FRESH.material, "id_token": "test-id"},
        failures=4,
        status="backoff",
        intent=INTENT,
    )
    storage = {"access_token": "test-new", "refresh_token": "test-next", "id_token": ""}
    done = rules.renewed(worn, Renewal(storage, NOW + 4000, attributes={"a": "b"}), LEAD, NOW + 400)
    assert done.material == {"access_token": "test-new", "refresh_token": "test-next"}
    assert (done.version, done.failures, done.status, done.intent) == (6, 0, "ok", None)
    assert (done.refreshed_at, done.expires_at, done.attributes) == (
        NOW + 400,
        NOW + 4000,
        {"a": "b"},
    )


def test_renewal_without_rotation_keeps_the_refresh_token() -> None:
    done = rules.renewed(FRESH, Renewal({"access_token": "test-new"}, NOW + 4000), LEAD, NOW)
    assert done.refresh_token == "test-refresh"


def test_renewal_obeys_the_provider_that_says_when_to_come_back() -> None:
    renewal = Renewal({"access_token": "test-new"}, NOW + 9000, next_refresh_after=NOW + 1234)
    assert rules.due_at(rules.renewed(FRESH, renewal, LEAD, NOW), LEAD) == NOW + 1234


def test_ineffective_renewal_pauses_and_grows() -> None:
    first = rules.renewed(FRESH, Renewal({"access_token": "test-new"}, NOW - 1), LEAD, NOW)
    assert first.next_refresh_after == NOW + rules.INEFFECTIVE_PAUSE
    assert first.last_error is not None
    assert state(first) == "due"
    later = first
    for _ in range(9):
        later = rules.renewed(later, Renewal({}, NOW - 1), LEAD, NOW)
    assert later.next_refresh_after == NOW + rules.MAX_BACKOFF


@pytest.mark.parametrize(
    ("error", "certain"),
    [
        (UpstreamError(500, sent=Sent.YES), True),
        (UpstreamError(429, sent=Sent.YES), True),
        (UpstreamError(401, reason="OAUTH_CLIENT_REFUSED", sent=Sent.YES), True),
        (UpstreamError(502, sent=Sent.YES), False),
        (UpstreamError(504, sent=Sent.UNKNOWN), False),
        (UpstreamError(502, sent=Sent.NO), True),
        (UpstreamError(502, reason="TOKEN_ANSWER_INVALID", sent=Sent.YES), False),
        (errors.Unavailable("gone", reason="TRANSPORT", sent=Sent.UNKNOWN), False),
        (errors.Unavailable("none", reason="NO_AUTH_PROVIDER", sent=Sent.NO), True),
        (UNKNOWN, False),
        (errors.Internal("a bug"), False),
    ],
)
def test_failure_leaves_the_token_as_it_was_or_not(
    error: errors.PatchbayError, certain: bool
) -> None:
    record = rules.failed(FRESH.replace(intent=INTENT), error, NOW)
    assert record.status == ("backoff" if certain else "ambiguous")
    assert (record.intent is None) == certain
    assert record.last_error is not None
    assert record.material == FRESH.material


def test_backoff_doubles_to_a_cap_and_obeys_retry_after_within_reason() -> None:
    assert [rules.backoff(n) for n in (1, 2, 3, 20, 10_000)] == [2, 4, 8, 300, 300]

    def wait(retry_after: float) -> float:
        error = UpstreamError(429, retry_after=retry_after, sent=Sent.YES)
        return rules.failed(FRESH, error, NOW).next_refresh_after - NOW

    assert [wait(s) for s in (0, -5, 60, 864_000)] == [2, 2, 60, rules.MAX_RETRY_AFTER]


def test_refused_token_needs_a_login() -> None:
    record = rules.failed(FRESH.replace(intent=INTENT), invalid_grant("no more"), NOW)
    assert (record.status, record.intent) == ("needs_login", None)
    assert record.last_error is not None
    assert (record.last_error.code, record.last_error.http_status) == (INVALID_GRANT, 400)
    assert rules.due_at(record, LEAD) is None
    assert rules.usable(record, NOW)


# -- seeds ----------------------------------------------------------------------------------------


def test_first_seed_makes_a_record_whose_version_grows_over_a_loss() -> None:
    record = rules.sown(None, "team", SEED, NOW, anew=False)
    assert record is not None
    assert record.version == int(NOW)
    assert rules.due_at(record, LEAD) == 0
    assert rules.sown(record, "team", SEED, NOW, anew=False) is None


def test_seed_once_taken_is_not_read_again() -> None:
    """What the token grew into stays, also in a process that starts with the old seed."""
    record = rules.sown(FRESH, "team", Seed("hash-2", {"refresh_token": "b"}), NOW, anew=False)
    assert record is not None
    assert (record.material, record.version) == ({"refresh_token": "b"}, int(NOW))
    later = FRESH.replace(version=int(NOW) + 9)
    record = rules.sown(later, "team", Seed("hash-2", {"refresh_token": "b"}), NOW, anew=False)
    assert record is not None
    assert record.version == later.version + 1
    assert rules.sown(record, "team", SEED, NOW, anew=False) is None


def test_seed_that_the_user_brings_back_is_taken() -> None:
    record = rules.sown(FRESH, "team", Seed("hash-2", {"refresh_token": "b"}), NOW, anew=True)
    back = rules.sown(record, "team", SEED, NOW, anew=True)
    assert back is not None
    assert back.refresh_token == "test-refresh"
    assert back.seeds_taken == ("hash-2",)


def test_seed_that_was_taken_away_does_not_take_the_tokens_along() -> None:
    """A token that was removed from the configuration, or a variable that is empty now."""
    assert rules.sown(FRESH, "team", Seed("hash of nothing", {}), NOW, anew=True) is None
    assert rules.sown(None, "team", Seed("hash of nothing", {}), NOW, anew=True) is not None


def test_new_seed_ends_needs_login_and_keeps_what_management_said() -> None:
    lost = FRESH.replace(
        status="needs_login", failures=3, disabled=True, intent=INTENT, next_refresh_after=NOW + 9
    )
    record = rules.sown(lost, "team", Seed("hash-2", {"refresh_token": "b"}), NOW, anew=True)
    assert record is not None
    assert (record.status, record.failures, record.intent) == ("ok", 0, None)
    assert record.disabled
    assert record.next_refresh_after == 0
