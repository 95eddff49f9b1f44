"""
What a failed attempt means: for the request (`decide`) and for the credential (`consequence`). Pure.

A dialect names a provider's answer by a neutral `FaultKind`; the two tables below are all that follows
from it. "window" is the time without the credential (or its model); r = obeys the provider's Retry-After.

| kind | the request goes on with | window (defaults) | scope | switchable |
|---|---|---|---|---|
| REQUEST | nothing: the client is told | none | – | – |
| UNAUTHORIZED | it, refreshed once; then another one | 30 min, lifted by a refresh | credential | yes |
| INVALID_GRANT | another credential | 30 min, lifted by a login | credential | yes |
| FORBIDDEN | another credential | 30 min | as said, else credential | yes |
| PAYMENT | another credential | 30 min | as said, else credential | yes |
| NOT_FOUND | another model of it, then another credential | 10 min | as said, else model | yes |
| MODEL_UNSUPPORTED | another model of it, then another credential | 1 h | model | no |
| QUOTA | as its scope says | r, else 1 s doubling to 30 min | as said, else model | yes |
| OVERLOADED | as its scope says | r, else 1 s doubling to `transient` | as said, else model | yes |
| TRANSIENT | as its scope says | r, else 60 s | as said, else model | yes |
| CHALLENGE | another credential | 10 s doubling to 30 min | as said, else credential | yes |
| CONNECTION | another credential | none: it says nothing of the credential | – | – |

"As its scope says": a fault of one model leaves other models of the same credential for the name that was
asked for (an alias pool); a fault of the credential leaves other credentials. `no_retry` (the provider said
`x-should-retry: false`) ends the request where the provider as a whole failed (OVERLOADED, TRANSIENT). A rule
of the configuration (`Action`) outranks the kind. Not failures of a provider:

| failure | goes on with |
|---|---|
| executor address gone, draining, unreachable, or silent past the edge's own deadline | another address |
| no executor address left, and all else | nothing |

Windows: `Retry-After` is capped (1 h), one that is not positive is none; a backoff grows once per window and
no window is shortened by a later failure. Nothing is tried again once the answer is committed; the caller
of `decide` knows that. Not here: which answer is which kind (edge/dialects), the state of credentials
(scheduler), how a failure looks to the client (edge/dialects).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Final

from patchbay import errors
from patchbay.errors import FaultScope

CONNECTION_FAILED = "UPSTREAM_CONNECTION"
"""Reason of an UpstreamError whose connection failed or broke before an answer head."""
TRUNCATED = "UPSTREAM_TRUNCATED"
"""Reason of an UpstreamError: the provider's connection broke in the middle of its answer."""

EMPTY = "UPSTREAM_EMPTY"
"""Reason of an UpstreamError: a stream that ended without a chunk."""

NO_SCHEDULER = "NO_SCHEDULER"
"""Reason of an Unavailable: no scheduler answered; whether it opened the attempt is not known."""
NO_EXECUTOR = "NO_EXECUTOR"
"""Reason of an Unavailable: no address of the plugin is left to try."""
PLUGIN_FAILED = "PLUGIN_FAILED"
"""Reason of an Unavailable: a plugin that every request must pass failed; another try would meet it again."""

_FORCED_SECONDS: Final = 60.0
_CHALLENGE_SECONDS: Final = 10.0
# 2^30 s is longer than any cap; larger exponents only overflow.
_MAX_LEVEL: Final = 30


class FaultKind(enum.IntEnum):
    """What went wrong; names and numbers are `patchbay.scheduler.v1.FaultKind`'s."""

    UNSPECIFIED = 0
    REQUEST = 1
    UNAUTHORIZED = 2
    FORBIDDEN = 3
    PAYMENT = 4
    NOT_FOUND = 5
    MODEL_UNSUPPORTED = 6
    QUOTA = 7
    OVERLOADED = 8
    TRANSIENT = 9
    CHALLENGE = 10
    CONNECTION = 11
    INVALID_GRANT = 12


@dataclass(frozen=True, slots=True)
class Fault:
    """A provider's failure in neutral words."""

    kind: FaultKind
    scope: FaultScope = FaultScope.UNSPECIFIED
    """What the provider said it is about; UNSPECIFIED leaves it to the table."""
    retry_after: float | None = None
    """Seconds that the provider asks to wait, not capped; None when it did not say."""
    http_status: int = 0
    """The provider's status; 0 when none arrived."""
    code: str = ""
    """The provider's own code or type."""
    message: str = ""
    """The provider's own message, secrets blotted out, at most 2 KiB."""
    force_cooldown: bool = False
    """A rule says to cool down, even where cooling is switched off."""
    no_retry: bool = False
    """The provider said that another try does not help."""


class Action(enum.Enum):
    """What a rule of `providers[].errors` orders."""

    STOP = "stop"
    STOP_AND_COOLDOWN = "stop-and-cooldown"
    CONTINUE = "continue"
    CONTINUE_AND_COOLDOWN = "continue-and-cooldown"

    @property
    def stops(self) -> bool:
        """Whether the request ends here."""
        return self in {Action.STOP, Action.STOP_AND_COOLDOWN}

    @property
    def cools(self) -> bool:
        """Whether the credential cools down; else nothing is held against it."""
        return self in {Action.STOP_AND_COOLDOWN, Action.CONTINUE_AND_COOLDOWN}


class Next(enum.Enum):
    """What the next attempt of a request uses."""

    STOP = "stop"
    """There is none."""
    ADDRESS = "address"
    """Another address of the same plugin."""
    REFRESH = "refresh"
    """The same credential after a refresh; another one if that fails."""
    MODEL = "model"
    """Another model of the same credential, or another credential when it has none."""
    CREDENTIAL = "credential"
    """Another credential."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failed attempt."""

    next: Next

    @property
    def again(self) -> bool:
        """Whether a new attempt may be made."""
        return self.next is not Next.STOP


@dataclass(frozen=True, slots=True)
class CoolingPolicy:
    """How long failures keep a credential out (`providers[].cooldown`); seconds."""

    scope: FaultScope | None = None
    """MODEL or CREDENTIAL: overrides what the provider said; None leaves it."""
    enabled: bool = True
    backoff: float = 1.0
    """First window of a growing backoff."""
    max: float = 1800.0
    """Longest window of a growing backoff."""
    max_retry_after: float = 3600.0
    """Longest wait that a provider can order."""
    transient: float = 60.0
    """Window of passing failures; 0 for none."""
    unauthorized: float = 1800.0
    forbidden: float = 1800.0
    payment: float = 1800.0
    not_found: float = 600.0
    unsupported: float = 3600.0


@dataclass(frozen=True, slots=True)
class Consequence:
    """What a fault changes for the credential."""

    scope: FaultScope
    """MODEL: for the upstream model of the attempt; CREDENTIAL: as a whole; REQUEST: nothing."""
    first: float = 0.0
    """Seconds of the first window."""
    cap: float = 0.0
    """Seconds of the longest; equal to *first* where the window is fixed."""
    retry_after_cap: float = 0.0
    """Longest Retry-After that is obeyed; 0: none is."""
    at_least: float = 0.0
    """A rule's minimum, whatever the provider says; seconds."""
    needs_login: bool = False
    """Only a login helps, shown as such."""
    lifted_by_refresh: bool = False
    """Ends as soon as the credential has a newer version."""

    @property
    def cools(self) -> bool:
        """Whether anything changes."""
        return self.scope is not FaultScope.REQUEST

    @property
    def grows(self) -> bool:
        """Whether the window doubles from one window to the next."""
        return self.cap > self.first

    def window(self, level: int = 0, retry_after: float | None = None) -> float:
        """
        Return the seconds to stay away, 0 for not at all.

        Args:
            level: How many windows of this kind came before without a success between.
            retry_after: What the provider asked for.
        """
        if self.retry_after_cap and retry_after is not None and _positive(retry_after):
            return max(min(retry_after, self.retry_after_cap), self.at_least)
        seconds = min(self.first * 2.0 ** min(level, _MAX_LEVEL), self.cap)
        return max(seconds if self.grows else self.first, self.at_least)


NOTHING: Final = Consequence(FaultScope.REQUEST)
"""The consequence that changes nothing."""

_STOP: Final = Decision(Next.STOP)
_BY_SCOPE: Final = frozenset({FaultKind.QUOTA, FaultKind.OVERLOADED, FaultKind.TRANSIENT})
_OF_THE_MODEL: Final = frozenset({FaultKind.NOT_FOUND, FaultKind.MODEL_UNSUPPORTED})
_OF_THE_PROVIDER: Final = frozenset({FaultKind.OVERLOADED, FaultKind.TRANSIENT})
_NEUTRAL: Final = frozenset({FaultKind.UNSPECIFIED, FaultKind.REQUEST, FaultKind.CONNECTION})
# Kinds after which a further round over the pool can help: they pass by themselves.
_PASSING: Final = frozenset(
    {
        FaultKind.QUOTA,
        FaultKind.OVERLOADED,
        FaultKind.TRANSIENT,
        FaultKind.FORBIDDEN,
        FaultKind.CHALLENGE,
        FaultKind.CONNECTION,
    }
)


def decide(
    error: errors.PatchbayError,
    fault: Fault | None = None,
    *,
    refreshable: bool = False,
    action: Action | None = None,
) -> Decision:
    """
    Return what the end of an attempt, before the answer was committed, means for the request.

    Args:
        error: What ended it.
        fault: What the dialect made of it; None unless a provider failed.
        refreshable: The credential can be refreshed and was not yet for this request.
        action: The order of the first rule that fits.
    """
    if fault is None:
        return _decide_ours(error)
    if action is not None:
        return _STOP if action.stops else _elsewhere(fault)
    kind = fault.kind
    if kind in {FaultKind.UNSPECIFIED, FaultKind.REQUEST}:
        return _STOP
    if fault.no_retry and kind in _OF_THE_PROVIDER:
        return _STOP
    if kind is FaultKind.UNAUTHORIZED and refreshable:
        return Decision(Next.REFRESH)
    return _elsewhere(fault)


def _elsewhere(fault: Fault) -> Decision:
    """Return where else to go: the kind says it, or the scope."""
    model = fault.kind in _OF_THE_MODEL or (
        fault.kind in _BY_SCOPE and fault.scope is not FaultScope.CREDENTIAL
    )
    return Decision(Next.MODEL if model else Next.CREDENTIAL)


def _decide_ours(error: errors.PatchbayError) -> Decision:
    if error.reason in {NO_EXECUTOR, PLUGIN_FAILED}:
        return _STOP
    if isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
        return Decision(Next.ADDRESS)
    return _STOP


def worth_a_round(fault: Fault) -> bool:
    """Whether another round over the whole pool can help after *fault*, the last of a round."""
    return fault.kind in _PASSING and not fault.no_retry


def consequence(
    kind: FaultKind, scope: FaultScope, cooling: CoolingPolicy, *, forced: bool = False
) -> Consequence:
    """
    Return what *kind* changes for the credential.

    Args:
        kind: What went wrong.
        scope: What the provider said it is about.
        cooling: The provider's policy.
        forced: `Fault.force_cooldown`: at least a minute, whatever the policy or the kind.
    """
    found = _by_kind(kind, scope, cooling)
    if not cooling.enabled and kind is not FaultKind.MODEL_UNSUPPORTED:
        found = NOTHING
    if forced:
        return _forced(found, scope, cooling)
    return found if found.first > 0 or found.retry_after_cap > 0 else NOTHING


def _by_kind(kind: FaultKind, scope: FaultScope, cooling: CoolingPolicy) -> Consequence:
    if kind in _NEUTRAL or scope is FaultScope.REQUEST:
        return NOTHING
    model = _scope(scope, FaultScope.MODEL, cooling)
    credential = _scope(scope, FaultScope.CREDENTIAL, cooling)
    match kind:
        case FaultKind.UNAUTHORIZED:
            # The material is refused, whichever model was asked for.
            return _fixed(FaultScope.CREDENTIAL, cooling.unauthorized, lifted_by_refresh=True)
        case FaultKind.INVALID_GRANT:
            return _fixed(
                FaultScope.CREDENTIAL,
                cooling.unauthorized,
                lifted_by_refresh=True,
                needs_login=True,
            )
        case FaultKind.FORBIDDEN:
            return _fixed(credential, cooling.forbidden)
        case FaultKind.PAYMENT:
            return _fixed(credential, cooling.payment)
        case FaultKind.NOT_FOUND:
            return _fixed(model, cooling.not_found)
        case FaultKind.MODEL_UNSUPPORTED:
            return _fixed(FaultScope.MODEL, cooling.unsupported)
        case FaultKind.QUOTA:
            return Consequence(model, cooling.backoff, cooling.max, cooling.max_retry_after)
        case FaultKind.OVERLOADED if cooling.transient > 0:
            first = min(cooling.backoff, cooling.transient)
            return Consequence(model, first, cooling.transient, cooling.max_retry_after)
        case FaultKind.TRANSIENT if cooling.transient > 0:
            return Consequence(model, cooling.transient, cooling.transient, cooling.max_retry_after)
        case FaultKind.CHALLENGE:
            first = max(cooling.backoff, _CHALLENGE_SECONDS)
            return Consequence(credential, first, max(cooling.max, first))
    return NOTHING


def _forced(found: Consequence, scope: FaultScope, cooling: CoolingPolicy) -> Consequence:
    if not found.cools:
        found = _fixed(_scope(scope, FaultScope.MODEL, cooling), _FORCED_SECONDS)
    return replace(found, at_least=_FORCED_SECONDS)


def _fixed(
    scope: FaultScope,
    seconds: float,
    *,
    needs_login: bool = False,
    lifted_by_refresh: bool = False,
) -> Consequence:
    return Consequence(
        scope, seconds, seconds, needs_login=needs_login, lifted_by_refresh=lifted_by_refresh
    )


def _scope(said: FaultScope, default: FaultScope, cooling: CoolingPolicy) -> FaultScope:
    if cooling.scope in {FaultScope.MODEL, FaultScope.CREDENTIAL}:
        return cooling.scope
    return said if said in {FaultScope.MODEL, FaultScope.CREDENTIAL} else default


def _positive(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0


def reached(error: errors.PatchbayError) -> errors.Sent:
    """Return how far the upstream call of a failed attempt came (the ledger's `reached`)."""
    if error.sent is not errors.Sent.UNSPECIFIED:
        return error.sent
    return errors.Sent.UNKNOWN
