"""
What Google says of Gemini's failures: google.rpc.Status as JSON, with details of quota and retry.

Not here: failures of HTTP itself (upstream.py), what a failure means for a credential (the gateway).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay.upstream_headers import MAX_RETRY_AFTER
from patchbay_gateway.executors.upstream import scope_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchbay.errors import Headers

_STATUS_BY_NAME: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_TYPES: Final = "type.googleapis.com/google.rpc."
# A wrong key is told by a 400.
_OF_THE_KEY: Final = frozenset({"API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED"})
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)s")


def error_document(data: bytes) -> dict[str, Any] | None:
    """Return *data*, a body or the data of an event, if it is an error's envelope, alone or in a list."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if isinstance(document, list) and document:
        document = document[0]
    if isinstance(document, dict) and isinstance(document.get("error"), dict):
        return None if document.get("candidates") else document
    return None


def reported_failure(document: dict[str, Any], headers: Headers) -> errors.UpstreamError:
    """
    Return the failure that Google reports inside a 200.

    Args:
        document: The envelope, parsed.
        headers: Of the 200.
    """
    detail = document["error"]
    code, name, message = detail.get("code"), detail.get("status"), detail.get("message")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 0
    if not status:
        status = _STATUS_BY_NAME.get(name, 502) if isinstance(name, str) else 502
    error = errors.UpstreamError(
        status,
        message if isinstance(message, str) and message else "the provider reported a failure",
        headers=headers,
        body=orjson.dumps(document),
        content_type="application/json",
        sent=errors.Sent.YES,
        reason="UPSTREAM_ERROR_EVENT",
    )
    _explain(error, detail)
    return error


def explain(error: errors.UpstreamError, _now: float) -> None:
    """Add what the details say: whose quota is spent, when to come back, that the key is a wrong one."""
    document = error_document(error.body)
    if document is not None:
        _explain(error, document["error"])


def _explain(error: errors.UpstreamError, detail: dict[str, Any]) -> None:
    error.scope = scope_of(error.http_status)
    for name, told in _details(detail):
        if name == "RetryInfo" and error.retry_after is None:
            error.retry_after = _seconds(told.get("retryDelay"))
        elif (name == "ErrorInfo" and told.get("reason") in _OF_THE_KEY) or (
            name == "QuotaFailure" and error.http_status == 429 and not _of_one_model(told)
        ):
            error.scope = errors.FaultScope.CREDENTIAL


def _details(detail: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    details = detail.get("details")
    for told in details if isinstance(details, list) else ():
        kind = told.get("@type") if isinstance(told, dict) else None
        if isinstance(kind, str) and kind.startswith(_TYPES):
            yield kind.removeprefix(_TYPES), told


def _of_one_model(quota: dict[str, Any]) -> bool:
    """Whether the quota that is spent is one model's; so too when it does not say whose it is."""
    violations = quota.get("violations")
    return all(
        _names_a_model(violation)
        for violation in (violations if isinstance(violations, list) else ())
        if isinstance(violation, dict)
    )


def _names_a_model(violation: dict[str, Any]) -> bool:
    dimensions = violation.get("quotaDimensions")
    if isinstance(dimensions, dict) and "model" in dimensions:
        return True
    return "permodel" in str(violation.get("quotaId", "")).lower()


def _seconds(duration: object) -> float | None:
    """Return the seconds of a protobuf duration in JSON (`17s`, `0.5s`), at most an hour."""
    found = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    return min(float(found[1]), MAX_RETRY_AFTER) if found else None
