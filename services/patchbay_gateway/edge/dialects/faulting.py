"""
Which neutral fault a provider's failure is, by the rules that all dialects share. Pure.

Asked in this order; the first that fits wins:

| sign | kind |
|---|---|
| nothing was sent, or the connection broke without an answer or in its middle | CONNECTION |
| no answer in time, an empty stream | TRANSIENT |
| a challenge page or `cf-mitigated` | CHALLENGE |
| `invalid_grant` with 400 or 401 | INVALID_GRANT |
| words and sentences about billing (`insufficient_quota`, "credit balance is too low") | PAYMENT |
| 400, 401, 403 whose sentence speaks of a bad API key | UNAUTHORIZED |
| words that name one kind (`model_not_found`, `context_length_exceeded` …), most specific first | that kind |
| sentences of faults of the request, but never with 401, 402, 429 | REQUEST |
| 400, 404, 422 that say "model … not supported", "not available for your plan" | MODEL_UNSUPPORTED |
| `invalid_request_error` and its likes, with 400 to 499 but 401 to 404, 408, 429 | REQUEST |
| the status | see `_BY_STATUS`; from 500 TRANSIENT |

So a request fault is never held against a credential, whatever its status, and OpenAI's 401 of type
`invalid_request_error` is none. What only one provider says is in its dialect's `Peculiar` table. The
executor's word counts where the status alone decides: scope REQUEST makes it a request fault. Not here: what
follows from a kind (kernel/outcomes.py), waits (waits.py), reading bodies (said.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.errors import FaultScope
from patchbay_gateway.edge.dialects import blotting, said, waits
from patchbay_gateway.kernel import outcomes
from patchbay_gateway.kernel.outcomes import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patchbay.errors import Headers, UpstreamError
    from patchbay_gateway.edge.dialects.said import Said

Verdict = tuple[FaultKind, FaultScope]

_MODEL, _CREDENTIAL, _UNSAID = FaultScope.MODEL, FaultScope.CREDENTIAL, FaultScope.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Peculiar:
    """What only the providers of one dialect say."""

    words: Mapping[str, Verdict] = field(default_factory=dict)
    """Code, type, status or reason, lower case → verdict."""
    sentences: tuple[tuple[re.Pattern[str], Verdict], ...] = ()
    """Patterns of the sentence, for failures with a body, in order."""
    scope: Callable[[Said, Headers], FaultScope] | None = None
    """Whose quota a QUOTA speaks of."""


_PAYMENT_WORDS: Final = frozenset(
    {
        "insufficient_quota",
        "billing_error",
        "billing_not_active",
        "billing_hard_limit_reached",
        "insufficient_balance",
        "insufficient_credits",
        "payment_required",
        "billing_disabled",
        "usage_not_included",
    }
)
_PAYMENT_TEXT: Final = re.compile(
    r"(?i)credit balance is too low|insufficient (?:account )?(?:balance|credits?|funds)"
    r"|exceeded your current quota, please check your plan and billing"
    r"|(?:prepayment|prepaid) credits are depleted|billing (?:hard )?limit|billing is not active"
    r"|used all available credits|spending limit|does(?:n't| not) have any credits"
)
# Some providers refuse a key with 400.
_KEY_TEXT: Final = re.compile(
    r"(?i)(?:incorrect|invalid) api key|api key (?:is )?(?:not valid|invalid|expired|not found)"
)
_WORDS: Final[Mapping[str, Verdict]] = {
    "invalid_api_key": (FaultKind.UNAUTHORIZED, _CREDENTIAL),
    "token_expired": (FaultKind.UNAUTHORIZED, _CREDENTIAL),
    "account_deactivated": (FaultKind.FORBIDDEN, _CREDENTIAL),
    "model_not_found": (FaultKind.NOT_FOUND, _MODEL),
    "model_not_supported": (FaultKind.MODEL_UNSUPPORTED, _MODEL),
    "model_not_available": (FaultKind.MODEL_UNSUPPORTED, _MODEL),
    "usage_limit_reached": (FaultKind.QUOTA, _CREDENTIAL),
    "rate_limit_exceeded": (FaultKind.QUOTA, _UNSAID),
    "rate_limit_error": (FaultKind.QUOTA, _UNSAID),
    "overloaded_error": (FaultKind.OVERLOADED, _UNSAID),
    "server_overloaded": (FaultKind.OVERLOADED, _UNSAID),
    "server_is_overloaded": (FaultKind.OVERLOADED, _UNSAID),
    "engine_overloaded": (FaultKind.OVERLOADED, _UNSAID),
    "slow_down": (FaultKind.OVERLOADED, _UNSAID),
}
_REQUEST_WORDS: Final = frozenset(
    {
        "cyber_policy",
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "message_too_big",
        "string_above_max_length",
        "invalid_prompt",
        "invalid_value",
        "unsupported_value",
        "unsupported_parameter",
        "previous_response_not_found",
        "request_too_large",
    }
)
_REQUEST_TYPES: Final = frozenset(
    {"invalid_request", "invalid_request_error", "bad_request_error", "invalid_argument"}
)
_REQUEST_TEXT: Final = re.compile(
    r"(?i)item with id .* not found.*not persisted when `?store`? is set to false"
    # The model is there, but not on this path: another credential would say the same.
    r"|(?:supported|only) in (?:the )?/?v1/(?:chat/completions|completions|responses|messages|embeddings)"
)
_NOT_A_MODEL: Final = re.compile(
    r"(?i)\b(?:no such (?:file|batch|thread|assistant|vector)|files?[ /]|container|conversation"
    r"|vector[_ ]store|cached ?contents?|response with id|prompt with id)"
)
# The model must be the subject: "thinking is not supported with this model" is about the request, and a model
# that is not supported "for embeddings" is well.
_UNSUPPORTED: Final = re.compile(
    r"(?i)\bmodel(?: [`'\"]?[\w./:@-]+[`'\"]?)? (?:is |are )?(?:currently |yet )?(?:not|no longer) (?:yet )?"
    r"(?:supported|available|enabled|accessible)\b(?! for (?:this |the )?(?:endpoint|operation|embeddings?"
    r"|chat|completions?|task|api|method|streaming|generate))"
    r"|\b(?:not|isn't) (?:available|supported|included) (?:for|in|on|with|by) (?:your|this) (?:\w+ )?"
    r"(?:plan|tier|account|subscription|organi[sz]ation|workspace)\b"
    r"|\b(?:unsupported|unknown|invalid) model(?: name| id)?\s*[:'\"`]"
    r"|\bmodel [`'\"]?[\w./:@-]+[`'\"]? does not exist\b"
)
_OVERLOADED: Final = re.compile(r"(?i)\boverloaded\b|\bat capacity\b|\bover capacity\b")
_CHALLENGE: Final = re.compile(
    r"(?i)cf-challenge|challenge-platform|cf_chl_|just a moment\.\.\.|attention required! \| cloudflare"
    r"|enable javascript and cookies to continue"
)

_BY_STATUS: Final[Mapping[int, FaultKind]] = {
    401: FaultKind.UNAUTHORIZED,
    402: FaultKind.PAYMENT,
    403: FaultKind.FORBIDDEN,
    404: FaultKind.NOT_FOUND,
    407: FaultKind.CONNECTION,
    408: FaultKind.TRANSIENT,
    410: FaultKind.NOT_FOUND,
    425: FaultKind.TRANSIENT,
    429: FaultKind.QUOTA,
    499: FaultKind.TRANSIENT,
    529: FaultKind.OVERLOADED,
    # The request, as every credential would send it.
    **dict.fromkeys(
        (400, 405, 406, 409, 411, 412, 413, 414, 415, 416, 417, 422, 428, 431), FaultKind.REQUEST
    ),
}
_SCOPE: Final[Mapping[FaultKind, FaultScope]] = {
    FaultKind.UNAUTHORIZED: _CREDENTIAL,
    FaultKind.PAYMENT: _CREDENTIAL,
    FaultKind.FORBIDDEN: _CREDENTIAL,
    FaultKind.CHALLENGE: _CREDENTIAL,
    FaultKind.INVALID_GRANT: _CREDENTIAL,
    FaultKind.NOT_FOUND: _MODEL,
    FaultKind.MODEL_UNSUPPORTED: _MODEL,
    FaultKind.REQUEST: FaultScope.REQUEST,
}
_WAITING: Final = frozenset({FaultKind.QUOTA, FaultKind.OVERLOADED, FaultKind.TRANSIENT})
_NOT_BY_TYPE: Final = frozenset({401, 402, 403, 404, 408, 429})
_NEVER_REQUEST: Final = frozenset({401, 402, 429})


def fault_of(error: UpstreamError, now: float, peculiar: Peculiar) -> Fault:
    """
    Return what *error* is in neutral words.

    Args:
        error: A provider's failure, from HTTP or from inside a 200.
        now: Unix seconds, for waits that are told as instants.
        peculiar: What the dialect adds.
    """
    if not _answered(error):
        kind = FaultKind.CONNECTION if _broke(error) else FaultKind.TRANSIENT
        return Fault(kind, code=error.reason, message=blotting.brief(error.message))
    found = said.read(error)
    kind, scope = _verdict(error, found, peculiar)
    if kind is FaultKind.QUOTA and scope is _UNSAID and peculiar.scope is not None:
        scope = peculiar.scope(found, error.headers)
    if scope is _UNSAID:
        scope = _SCOPE.get(kind, _UNSAID)
    if scope is _UNSAID and error.scope is not FaultScope.REQUEST:
        scope = error.scope
    return Fault(
        kind,
        scope,
        waits.wait_of(error.retry_after, error.headers, found, now, resets=kind is FaultKind.QUOTA)
        if kind in _WAITING
        else None,
        error.http_status,
        blotting.field(found.code)[:128],
        blotting.brief(error.message if found.page else found.text),
        no_retry=(b"x-should-retry", b"false") in error.headers,
    )


def _answered(error: UpstreamError) -> bool:
    """Whether the provider spoke: else there is a status of the executor's making, or none."""
    if error.sent is errors.Sent.NO or error.reason in {
        outcomes.CONNECTION_FAILED,
        outcomes.TRUNCATED,
        outcomes.EMPTY,
    }:
        return False
    return error.sent is errors.Sent.YES or bool(error.body) or error.http_status not in {502, 504}


def _broke(error: UpstreamError) -> bool:
    return error.sent is errors.Sent.NO or error.reason in {
        outcomes.CONNECTION_FAILED,
        outcomes.TRUNCATED,
    }


def _verdict(error: UpstreamError, found: Said, peculiar: Peculiar) -> Verdict:
    status = error.http_status
    if (b"cf-mitigated", b"challenge") in error.headers or (
        found.page and _CHALLENGE.search(found.text)
    ):
        return FaultKind.CHALLENGE, _CREDENTIAL
    if status in {400, 401} and "invalid_grant" in found.words:
        return FaultKind.INVALID_GRANT, _CREDENTIAL
    if not _PAYMENT_WORDS.isdisjoint(found.words) or (
        status < 500 and not found.page and _PAYMENT_TEXT.search(found.text)
    ):
        return FaultKind.PAYMENT, _CREDENTIAL
    if status in {400, 401, 403} and _KEY_TEXT.search(found.text):
        return FaultKind.UNAUTHORIZED, _CREDENTIAL
    by_word = _named(status, found, peculiar)
    if by_word is not None:
        return by_word
    if status not in _NEVER_REQUEST and _is_request(status, found):
        return FaultKind.REQUEST, FaultScope.REQUEST
    if status in {400, 404, 422} and not found.page and _UNSUPPORTED.search(found.text):
        # A 404 means that there is no such model, which is sooner mended than one that a plan lacks.
        kind = FaultKind.NOT_FOUND if status == 404 else FaultKind.MODEL_UNSUPPORTED
        return kind, _MODEL
    if (
        400 <= status <= 499
        and status not in _NOT_BY_TYPE
        and not _REQUEST_TYPES.isdisjoint(found.words)
    ):
        return FaultKind.REQUEST, FaultScope.REQUEST
    return _by_status(error, found), _UNSAID


def _named(status: int, found: Said, peculiar: Peculiar) -> Verdict | None:
    """Return what a word or sentence says that means one kind only, the most specific word first."""
    for word in found.words:
        if word in _REQUEST_WORDS and status not in _NEVER_REQUEST:
            return FaultKind.REQUEST, FaultScope.REQUEST
        verdict = peculiar.words.get(word) or _WORDS.get(word)
        if verdict is not None:
            return verdict
    if not found.page:
        for pattern, verdict in peculiar.sentences:
            if pattern.search(found.text):
                return verdict
    return None


def _is_request(status: int, found: Said) -> bool:
    """Whether a sentence speaks of the request, or of a thing of the client's that is not there."""
    if found.page or status >= 500:
        return False
    if _REQUEST_TEXT.search(found.text):
        return True
    # The status alone would be held against the model.
    return status in {403, 404} and (
        found.param not in {"", "model"} or bool(_NOT_A_MODEL.search(found.text))
    )


def _by_status(error: UpstreamError, found: Said) -> FaultKind:
    status = error.http_status
    if error.scope is FaultScope.REQUEST and status not in _NEVER_REQUEST:
        return FaultKind.REQUEST
    kind = _BY_STATUS.get(status, FaultKind.TRANSIENT)
    if kind is FaultKind.TRANSIENT and status >= 500 and _OVERLOADED.search(found.text):
        return FaultKind.OVERLOADED
    return kind
