"""
What an error means to a client, before a dialect dresses it: status, message, retry advice.

The status table:

| error | status |
|---|---|
| InvalidRequest | 400; BODY_TOO_LARGE 413, BODY_TIMEOUT 408, UNSUPPORTED_MEDIA 415 |
| reason DIALECT_NOT_AVAILABLE | 400 |
| Unauthenticated · PermissionDenied · NotFound, FailedPrecondition | 401 · 403 · 404 · 400; see below |
| a method that a path does not have | 405 |
| ResourceExhausted | 429; MESSAGE_TOO_LARGE 413, ANSWER_TOO_LARGE 502 |
| Unavailable, Aborted · DeadlineExceeded · Cancelled | 503 · 504 · 499 |
| UpstreamError | the provider's, but 401, 403, 407, and 400 that is the credential's, become 502 |
| all else | 500, with an id instead of the text |

A provider's 401 and 403 speak of the gateway's credential. Passed on they would tell the client that *its*
key is bad, and SDKs and people would throw away a good key; so they become 502, and the provider's body is
not shown. So do Unauthenticated, PermissionDenied, NotFound and FailedPrecondition with a reason that is none
of the edge's or the scheduler's own: an executor says them of secrets, credentials and upstream addresses.
Only the log repeats that. Not here: what is retried (kernel/outcomes.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay_gateway.edge.dialects import blotting
from patchbay_gateway.kernel import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay.errors import Headers, PatchbayError

_BY_CLASS: Final[dict[type[errors.PatchbayError], int]] = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.ResourceExhausted: 429,
    errors.FailedPrecondition: 400,
    errors.Aborted: 503,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: 499,
}
_BY_REASON: Final = {
    "BODY_TOO_LARGE": 413,
    "BODY_TIMEOUT": 408,
    "UNSUPPORTED_MEDIA": 415,
    "DIALECT_NOT_AVAILABLE": 400,
    "METHOD_NOT_ALLOWED": 405,
    "MESSAGE_TOO_LARGE": 413,
    "ANSWER_TOO_LARGE": 502,
}
_TOO_LARGE: Final = frozenset({"MESSAGE_TOO_LARGE", "ANSWER_TOO_LARGE"})
# Classes that speak of the caller: with a reason of our own that is the client, else the gateway itself.
_OF_THE_CALLER: Final = (
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.NotFound,
    errors.FailedPrecondition,
)
_OWN_REASONS: Final = frozenset(
    {
        "MISSING_KEY",
        "UNKNOWN_KEY",
        "FOREIGN_HOST",
        "FOREIGN_ORIGIN",
        "MODEL_NOT_FOUND",
        "NO_ROUTE",
        "NO_ACTION",
        "DIALECT_NOT_AVAILABLE",
    }
)
# Why no credential is free: the code tells programs what the sentence tells people.
_OF_THE_POOL: Final = frozenset(
    {
        "MODEL_COOLDOWN",
        "CREDENTIALS_BUSY",
        "CREDENTIALS_TRIED",
        "NO_CREDENTIAL",
        "PINNED_NOT_ELIGIBLE",
    }
)
_CREDENTIAL_REFUSED: Final = frozenset({401, 403, 407})
# As much of a text that is no JSON as may be a sentence.
_MAX_TEXT: Final = 8192
_DEFAULT_RETRY_AFTER: Final = 1.0
_log = logs.get_logger("edge.faults")


def is_ours(error: PatchbayError) -> bool:
    """Whether *error* is an executor's word about what the gateway sent it, none of the client's business."""
    return isinstance(error, _OF_THE_CALLER) and error.reason not in _OWN_REASONS


def refuses_credential(error: PatchbayError) -> bool:
    """
    Whether a provider refused the gateway's own credential.

    Google tells a wrong key, and Anthropic an empty account, by a 400; their executors say so.
    """
    return isinstance(error, errors.UpstreamError) and (
        error.http_status in _CREDENTIAL_REFUSED
        or (error.http_status == 400 and error.scope is errors.FaultScope.CREDENTIAL)
    )


def status_of(error: PatchbayError) -> int:
    """Return the HTTP status that a client sees, 400 to 599."""
    if isinstance(error, errors.UpstreamError):
        if refuses_credential(error):
            return 502
        return error.http_status if 400 <= error.http_status <= 599 else 502
    if is_ours(error):
        return 502
    found = _BY_REASON.get(error.reason)
    if found is not None:
        return found
    for cls in type(error).__mro__:
        if cls in _BY_CLASS:
            return _BY_CLASS[cls]
    return 500


def code_of(error: PatchbayError, status: int) -> str:
    """Return the machine-readable code of an error of our own making; '' where the status says it all."""
    if error.reason == "DIALECT_NOT_AVAILABLE":
        return "dialect_not_available"
    if is_ours(error):
        return ""
    if isinstance(error, errors.NotFound):
        return {"NO_ROUTE": "unknown_url", "NO_ACTION": "unknown_url"}.get(
            error.reason, "model_not_found"
        )
    if status in {405, 408, 413, 415} or error.reason in _OF_THE_POOL:
        return error.reason.lower()
    return ""


def message_of(error: PatchbayError, status: int, request_id: str) -> str:
    """
    Return what the client reads: never an internal text, never a secret of the provider's answer.

    Args:
        error: The error.
        status: What the client sees.
        request_id: Its own; empty when only the status is wanted, and nothing is logged then.
    """
    if isinstance(error, errors.UpstreamError):
        if refuses_credential(error):
            return (
                f"the provider refused the gateway's credential (HTTP {error.http_status}); "
                "your own API key was accepted"
            )
        return blotting.clean(upstream_message(error) or error.message)
    if status == 500:
        error_id = error.metadata.get("error_id", "")
        return f"internal error {error_id or request_id}"
    if is_ours(error):
        if request_id:
            _log.error(
                "an executor cannot make the call",
                request_id=request_id,
                reason=error.reason,
                why=blotting.clean(error.message),
            )
        return "the gateway cannot call this model's provider; the reason is in its log"
    if error.reason == "MESSAGE_TOO_LARGE":
        # The channel's own words count bytes of an envelope that the client never saw.
        return "the request is too large for the executor of this model"
    if error.reason == "ANSWER_TOO_LARGE":
        return "the answer of this model's executor is larger than the gateway takes"
    return error.message


def upstream_object(error: errors.UpstreamError) -> Any:
    """Return the provider's body as JSON, or None."""
    if error.body.lstrip()[:1] not in {b"{", b"["}:
        return None
    try:
        return orjson.loads(error.body)
    except orjson.JSONDecodeError:
        return None


def upstream_message(error: errors.UpstreamError) -> str:
    """Return the sentence in a provider's body, whatever its shape; '' if there is none."""
    found = upstream_object(error)
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict):
        for place in (found.get("error"), found, (found.get("response") or {})):
            if isinstance(place, dict):
                if isinstance(place.get("error"), dict):
                    place = place["error"]  # noqa: PLW2901 - one level deeper, the same question
                for key in ("message", "detail", "error_description"):
                    if isinstance(text := place.get(key), str) and text:
                        return text
            elif isinstance(place, str) and place:
                return place
        return ""
    # A web server's page says nothing to a client that the status does not.
    if "html" in error.content_type or error.body.lstrip()[:1] == b"<":
        return ""
    return error.body[:_MAX_TEXT].decode("utf-8", "replace").strip()


def upstream_code(error: PatchbayError) -> tuple[str, str]:
    """Return (type, code) that a provider's JSON names, '' for what it does not."""
    if not isinstance(error, errors.UpstreamError) or refuses_credential(error):
        return "", ""
    found = upstream_object(error)
    inner = found.get("error") if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        return "", ""
    return text_of(inner, "type"), text_of(inner, "code")


def text_of(inner: dict[str, Any], name: str) -> str:
    """Return field *name* of a provider's error object as it may be shown; '' if it is no text."""
    found = inner.get(name)
    return blotting.field(found) if isinstance(found, str) else ""


def shaped(
    error: PatchbayError, fits: Callable[[Any], bool]
) -> tuple[dict[str, Any], bytes | None] | None:
    """
    Return a provider's error document if it *fits* the client's dialect and is the client's business.

    Returns:
        The document, and its bytes if they may be passed on as they are; else it is to be said anew.
    """
    if not isinstance(error, errors.UpstreamError) or refuses_credential(error):
        return None
    found = upstream_object(error)
    if not fits(found):
        return None
    return found, error.body if blotting.harmless(error.body, found) else None


def retry_headers(error: PatchbayError, status: int, *, milliseconds: bool) -> Headers:
    """
    Return `retry-after` wherever a wait is known, and what SDKs obey beside it.

    Args:
        error: The error.
        status: What the client sees.
        milliseconds: Whether the dialect's SDKs read `retry-after-ms` and `x-should-retry`.
    """
    wait = error.retry_after
    if wait is None and (status == 503 or error.reason == "CREDENTIALS_BUSY"):
        wait = None if isinstance(error, errors.UpstreamError) else _DEFAULT_RETRY_AFTER
    headers: Headers = []
    if wait is not None and wait >= 0:
        headers.append((b"retry-after", b"%d" % max(math.ceil(wait), 1 if wait else 0)))
        if milliseconds:
            headers.append((b"retry-after-ms", b"%d" % math.ceil(wait * 1000)))
    if milliseconds:
        advice = _should_retry(error)
        if advice:
            headers.append((b"x-should-retry", advice))
    return headers


def _should_retry(error: PatchbayError) -> bytes:
    if refuses_credential(error) or is_ours(error) or error.reason in _TOO_LARGE:
        # SDKs repeat a 502 by themselves, and a refused credential is refused again.
        return b"false"
    if isinstance(error, errors.UpstreamError):
        for name, value in error.headers:
            if name == b"x-should-retry" and value in {b"true", b"false"}:
                return value
        return b""
    if isinstance(error, errors.Unavailable | errors.Aborted | errors.ResourceExhausted):
        return b"true"
    return b""


def event_data(chunk: bytes) -> bytes:
    """Return the joined `data:` lines of one SSE event, or the chunk itself if it is plain JSON."""
    stripped = chunk.lstrip()
    if stripped[:1] in {b"{", b"["}:
        return stripped
    return b"\n".join(
        line[5:].removeprefix(b" ") for line in chunk.splitlines() if line.startswith(b"data:")
    )


def event_json(chunk: bytes) -> Any:
    """Return the JSON of one SSE event, or None."""
    try:
        return orjson.loads(event_data(chunk))
    except orjson.JSONDecodeError:
        return None


_STATUS_BY_CODE: Final = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "tokens": 429,
    "requests": 429,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "not_found": 404,
    "request_too_large": 413,
    "server_error": 500,
    "internal_server_error": 500,
    "api_error": 500,
    "internal": 500,
    "unavailable": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "overloaded_error": 529,
}


def status_in(*places: Any) -> int:
    """Return the status that in-stream error objects name by number or by a known word, else 502."""
    for place in places:
        if isinstance(place, dict):
            for key in ("status", "status_code", "code"):
                number = place.get(key)
                if isinstance(number, str) and number.isdigit():
                    number = int(number)
                if isinstance(number, int) and 400 <= number <= 599:
                    return number
    for place in places:
        if isinstance(place, dict):
            for key in ("code", "type", "status"):
                word = place.get(key)
                if isinstance(word, str) and word.lower() in _STATUS_BY_CODE:
                    return _STATUS_BY_CODE[word.lower()]
    return 502


def in_stream(status: int, shaped: dict[str, Any]) -> errors.UpstreamError:
    """Return the error that a 200's stream reported; *shaped* is its HTTP form in the dialect."""
    error = errors.UpstreamError(
        status,
        body=orjson.dumps(shaped),
        content_type="application/json",
        sent=errors.Sent.YES,
        reason="IN_STREAM_ERROR",
    )
    if text := upstream_message(error):
        error.message = blotting.clean(text)
    return error
