"""
When a credential is refreshed, who may do it, and what becomes of its record. Pure: records in, records out.

| state | when | ends by |
|---|---|---|
| ok | the token is good and not due | time |
| due | its lead has begun, or there is no access token yet | a refresh |
| refreshing | somebody holds an intent | its outcome, or the intent's deadline |
| backoff | the last try failed, and the refresh token is as it was | the next try, after a growing pause |
| ambiguous | a try ended unknown (a kill, silence): the token may be used up | one more try |
| needs_login | the provider does not accept the refresh token, or there is none | a new seed, or a login |

A refresh token is presented only under an intent that is in the durable record, by its holder, before its
deadline. Where an intent has expired, its holder is gone or knows nothing: the token is presented once more
under a new intent. All times are Unix seconds.

Not here: who runs this (refresh.py), the timers (timers.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from patchbay.auth_provider import INVALID_GRANT
from patchbay.errors import PatchbayError, Sent, UpstreamError
from patchbay_gateway.scheduler.durable.port import (
    SEEDS_KEPT,
    CredentialRecord,
    Failure,
    Intent,
    token_hash,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

State = Literal["ok", "due", "refreshing", "backoff", "needs_login", "ambiguous"]

LEAD_FRACTION: Final = 0.25
"""A lead is never longer than this part of the token's life: a token of 60 s is not always due."""
JITTER: Final = 0.1
"""Part of the lead by which credentials that were made together are spread."""
ASSUMED_LIFE: Final = 3600.0
"""Life of a token whose provider did not say."""
SKEW: Final = 2.0
"""Seconds that others wait beyond an intent's deadline: clocks of machines differ."""
FIRST_BACKOFF: Final = 2.0
MAX_BACKOFF: Final = 300.0
MAX_RETRY_AFTER: Final = 3600.0
INEFFECTIVE_PAUSE: Final = 30.0
"""Least pause after a refresh whose token is due at once."""

_TEXT: Final = 500
# Answered by something between us and the provider, which may have heard us.
_GATEWAYS: Final = frozenset({502, 504})
# A success that we could not read: the refresh token may be used up (executors/oauth2_grant.py).
_UNREADABLE: Final = "TOKEN_ANSWER_INVALID"


@dataclass(frozen=True, slots=True)
class Seed:
    """What the user gave us to begin with."""

    hash: str
    """Of the token that the credential grows from; a seed counts again only when this changes."""
    material: Mapping[str, str] = field(repr=False)
    """refresh_token, access_token and the like."""
    client_secret: str = field(default="", repr=False)
    """Not part of the record: it comes from the configuration each time."""
    expires_at: float = 0.0
    refreshed_at: float = 0.0
    label: str = ""
    next_refresh_after: float = 0.0
    access_keys: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    renewable: bool = False
    """As in the record."""
    described: str = ""
    """Hash of metadata, attributes, access keys and label; empty: the seed says nothing of them."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What an auth provider brought."""

    storage: Mapping[str, str] = field(repr=False)
    """Changes of the material: absent keys keep their values, empty ones are removed."""
    expires_at: float = 0.0
    next_refresh_after: float = 0.0
    access_keys: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    """None: unchanged, as of the others when empty."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True, slots=True)
class RefreshStatus:
    """How a credential's refresh stands, for people."""

    state: State
    expires_at: float = 0.0
    """0 = not known, as of the others."""
    refreshed_at: float = 0.0
    next_at: float = 0.0
    last_error: Failure | None = None


def lead_of(record: CredentialRecord, lead: float) -> float:
    """Return how long before its end the token is refreshed, jitter included."""
    life = record.expires_at - record.refreshed_at
    if not record.expires_at or not record.refreshed_at or life <= 0:
        life = ASSUMED_LIFE
    digest = hashlib.blake2b(f"{record.id}\0{record.version}".encode(), digest_size=4).digest()
    # The same in every scheduler, so that they agree on one instant.
    spread = int.from_bytes(digest, "big") / 0xFFFFFFFF * 2 - 1
    return min(lead, life * LEAD_FRACTION) * (1 + JITTER * spread)


def due_at(record: CredentialRecord | None, lead: float) -> float | None:
    """Return when the next refresh is to be tried, 0 for at once; None when no timer helps."""
    if record is None or not record.refresh_token or record.disabled:
        return None
    if record.status == "needs_login":
        return None
    due = record.next_refresh_after
    if record.intent is not None:
        # Whether the token is used up is found out at once, and not when it is needed.
        return max(due, record.intent.deadline + SKEW)
    if not due and record.access:
        end = record.expires_at
        if not end and record.refreshed_at:
            end = record.refreshed_at + ASSUMED_LIFE
        due = max(end - lead_of(record, lead), 0.0)
    return due


def usable(record: CredentialRecord | None, now: float) -> bool:
    """Whether the record has access material that has not ended."""
    return record is not None and bool(record.access) and not _expired(record, now)


def _expired(record: CredentialRecord, now: float) -> bool:
    return bool(record.expires_at) and record.expires_at <= now


def urgent(record: CredentialRecord | None, lead: float, now: float) -> bool:
    """Whether a refresh is due that requests wait for: there is no token that could be used."""
    due = due_at(record, lead)
    return due is not None and due <= now and not usable(record, now)


def status_of(record: CredentialRecord | None, lead: float, now: float) -> RefreshStatus:
    """Return the state of *record* at *now*."""
    if record is None or (not record.refresh_token and not record.access):
        missing = Failure("there is no refresh token: log in, or give it one", 0.0, "NO_TOKEN")
        return RefreshStatus("needs_login", last_error=missing)
    due = due_at(record, lead)
    return RefreshStatus(
        _state(record, due, now),
        expires_at=record.expires_at,
        refreshed_at=record.refreshed_at,
        next_at=due or 0.0,
        last_error=record.last_error,
    )


def _state(record: CredentialRecord, due: float | None, now: float) -> State:
    if record.status == "needs_login":
        return "needs_login"
    if record.status == "ambiguous":
        return "ambiguous"
    if record.intent is not None:
        return "refreshing" if record.intent.deadline + SKEW > now else "ambiguous"
    if record.status == "backoff":
        return "backoff"
    if usable(record, now):
        return "due" if due is not None and due <= now else "ok"
    return "due" if record.refresh_token else "needs_login"


# -- what becomes of the record -------------------------------------------------------------------


def sown(
    record: CredentialRecord | None, credential_id: str, seed: Seed, now: float, *, anew: bool
) -> CredentialRecord | None:
    """
    Return the record grown from *seed*; None where the seed changes nothing.

    Args:
        record: What is there.
        credential_id: Whose.
        seed: What the user gave.
        now: The present.
        anew: Whether this process saw the seed change. Otherwise one that was taken before is not taken
            again: another process may still have the older configuration.
    """
    if record is None:
        record = CredentialRecord(credential_id)
    elif record.seed_hash == seed.hash:
        return _described(record, seed, anew=anew)
    elif not anew and seed.hash in record.seeds_taken:
        return None
    elif not seed.material and record.material:
        # A seed that was taken away gives nothing; what the former one grew into exists nowhere else.
        return None
    taken = [h for h in (*record.seeds_taken, record.seed_hash) if h and h != seed.hash]
    return record.replace(
        # Seconds, so that a version grows even when the record was lost and others remember a newer one.
        version=max(record.version + 1, int(now)),
        material=dict(seed.material),
        access_keys=seed.access_keys,
        expires_at=seed.expires_at,
        refreshed_at=seed.refreshed_at,
        next_refresh_after=seed.next_refresh_after,
        status="ok",
        failures=0,
        last_error=None,
        intent=None,
        seed_hash=seed.hash,
        seeds_taken=tuple(taken[-SEEDS_KEPT:]),
        label=seed.label or record.label,
        metadata=seed.metadata if seed.described else record.metadata,
        attributes=seed.attributes if seed.described else record.attributes,
        renewable=seed.renewable,
        described=seed.described,
    )


def _described(record: CredentialRecord, seed: Seed, *, anew: bool) -> CredentialRecord | None:
    """Return the record with what *seed* says beside its token; what tokens grew into stays."""
    mark = f"d:{seed.described}"
    if not seed.described or seed.described == record.described:
        return None
    if not anew and mark in record.seeds_taken:
        return None
    taken = [*record.seeds_taken]
    if record.described:
        taken.append(f"d:{record.described}")
    return record.replace(
        metadata=seed.metadata,
        attributes=seed.attributes,
        access_keys=seed.access_keys or record.access_keys,
        label=seed.label or record.label,
        renewable=seed.renewable,
        described=seed.described,
        seeds_taken=tuple([t for t in taken if t != mark][-SEEDS_KEPT:]),
    )


def intended(record: CredentialRecord, intent: Intent) -> CredentialRecord:
    """Return the record with *intent*; ambiguous where it takes the place of one that expired."""
    if record.intent is None:
        return record.replace(intent=intent, next_refresh_after=0.0)
    return record.replace(intent=intent, next_refresh_after=0.0, status="ambiguous")


def renewed(
    record: CredentialRecord, renewal: Renewal, lead: float, now: float
) -> CredentialRecord:
    """Return the record with new material."""
    material = {**record.material, **renewal.storage}
    fresh = record.replace(
        version=record.version + 1,
        material={key: value for key, value in material.items() if value},
        access_keys=renewal.access_keys or record.access_keys,
        expires_at=renewal.expires_at,
        refreshed_at=now,
        next_refresh_after=renewal.next_refresh_after,
        status="ok",
        failures=0,
        last_error=None,
        intent=None,
        metadata=record.metadata if renewal.metadata is None else renewal.metadata,
        attributes=renewal.attributes or record.attributes,
        label=renewal.label or record.label,
    )
    due = due_at(fresh, lead)
    if due is None or due > now:
        return fresh
    failures = record.failures + 1
    return fresh.replace(
        failures=failures,
        next_refresh_after=now + max(INEFFECTIVE_PAUSE, backoff(failures)),
        last_error=Failure(
            "the provider issued a token that is due for refresh already", now, "INEFFECTIVE"
        ),
    )


def failed(record: CredentialRecord, error: PatchbayError, now: float) -> CredentialRecord:
    """Return the record after a try that ended with *error*."""
    failures = record.failures + 1
    failure = failure_of(error, now)
    if error.reason == INVALID_GRANT:
        return record.replace(
            status="needs_login",
            failures=failures,
            last_error=failure,
            intent=None,
            next_refresh_after=0.0,
        )
    wait = backoff(failures)
    if error.retry_after is not None and error.retry_after > 0:
        wait = max(wait, min(error.retry_after, MAX_RETRY_AFTER))
    if certain(error):
        return record.replace(
            status="backoff",
            failures=failures,
            last_error=failure,
            intent=None,
            next_refresh_after=now + wait,
        )
    # The intent stays: until its deadline the call may still be on its way.
    open_until = record.intent.deadline + SKEW if record.intent is not None else 0.0
    return record.replace(
        status="ambiguous",
        failures=failures,
        last_error=failure,
        next_refresh_after=max(now + wait, open_until),
    )


def resting(record: CredentialRecord, now: float) -> bool:
    """Whether the last try failed and the next one is not to be made yet, whoever asks."""
    return record.status in {"backoff", "ambiguous"} and record.next_refresh_after > now


def certain(error: PatchbayError) -> bool:
    """Whether the refresh token is as it was: the provider did not see it, or answered with a refusal."""
    if error.sent is Sent.NO:
        return True
    if not isinstance(error, UpstreamError) or error.reason == _UNREADABLE:
        return False
    return error.sent is Sent.YES and error.http_status not in _GATEWAYS


def failure_of(error: PatchbayError, now: float) -> Failure:
    """Return *error* as it is kept."""
    answered = isinstance(error, UpstreamError) and error.sent is Sent.YES
    return Failure(
        message=error.message[:_TEXT],
        at=now,
        code=error.reason,
        http_status=error.http_status if isinstance(error, UpstreamError) and answered else 0,
    )


def backoff(failures: int) -> float:
    """Return the pause after so many failures in a row, seconds."""
    return min(FIRST_BACKOFF * math.pow(2, min(failures, 20) - 1), MAX_BACKOFF)


def presents(record: CredentialRecord, intent: Intent) -> bool:
    """Whether the record's refresh token is still the one that *intent* speaks of."""
    return token_hash(record.refresh_token) == intent.token_hash
