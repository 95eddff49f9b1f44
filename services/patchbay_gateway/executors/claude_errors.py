"""
What Anthropic says of its failures: inside a 200, in bodies and in rate-limit headers.

Not here: failures of HTTP itself (upstream.py), what a failure means for a credential (the gateway).
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay.upstream_headers import MAX_RETRY_AFTER, header
from patchbay_gateway.executors.upstream import scope_of

if TYPE_CHECKING:
    from patchbay.errors import Headers

_STATUS_BY_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_LIMITS: Final = (b"requests", b"tokens", b"input-tokens", b"output-tokens")


def error_document(data: bytes) -> dict[str, Any] | None:
    """Return *data*, a body or the data of an event, if it is an error's envelope."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if isinstance(document, dict) and document.get("type") == "error":
        return document
    return None


def reported_failure(
    document: dict[str, Any], body: bytes, headers: Headers
) -> errors.UpstreamError:
    """
    Return the failure that Anthropic reports inside a 200.

    Args:
        document: The envelope, parsed.
        body: The same as bytes.
        headers: Of the 200, for their rate limits.
    """
    detail = _detail(document)
    kind, message = detail.get("type"), detail.get("message")
    status = _STATUS_BY_TYPE.get(kind, 502) if isinstance(kind, str) else 502
    return errors.UpstreamError(
        status,
        message if isinstance(message, str) and message else "the provider reported a failure",
        headers=headers,
        body=body,
        content_type="application/json",
        scope=_scope(status, detail),
        sent=errors.Sent.YES,
        reason="UPSTREAM_ERROR_EVENT",
    )


def explain(error: errors.UpstreamError, now: float) -> None:
    """Add what body and rate-limit headers say: whose quota is spent and how long it is."""
    document = error_document(error.body)
    error.scope = _scope(error.http_status, _detail(document) if document is not None else {})
    if error.http_status != 429:
        return
    headers = error.headers
    if header(headers, b"anthropic-ratelimit-unified-status") == b"rejected":
        # The limits of a subscription hold for the account, whatever the model.
        error.scope = errors.FaultScope.CREDENTIAL
    if error.retry_after is None:
        error.retry_after = _rate_limit_wait(headers, now)


def _scope(status: int, detail: dict[str, Any]) -> errors.FaultScope:
    message = detail.get("message")
    if status == 400 and isinstance(message, str) and "credit balance is too low" in message:
        # An empty account is told by a 400; the request would be as well elsewhere.
        return errors.FaultScope.CREDENTIAL
    return scope_of(status)


def _detail(document: dict[str, Any]) -> dict[str, Any]:
    detail = document.get("error")
    return detail if isinstance(detail, dict) else {}


def _rate_limit_wait(headers: Headers, now: float) -> float | None:
    """Return when the limits that are used up start anew."""
    resets = [_time(header(headers, b"anthropic-ratelimit-unified-reset"))]
    for what in _LIMITS:
        limit = b"anthropic-ratelimit-" + what
        if header(headers, limit + b"-remaining").strip() == b"0":
            resets.append(_time(header(headers, limit + b"-reset")))
    waits = [max(reset - now, 0.0) for reset in resets if reset is not None]
    return min(max(waits), MAX_RETRY_AFTER) if waits else None


def _time(value: bytes) -> float | None:
    """Return the Unix seconds of an RFC 3339 time or of seconds; None for garbage."""
    text = value.decode("latin-1").strip()
    if not text:
        return None
    try:
        found = float(text) if text.isdigit() else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
