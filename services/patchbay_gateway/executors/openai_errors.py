"""
What an OpenAI-like provider says of its failures: inside a 200, in bodies and in rate-limit headers.

Not here: failures of HTTP itself (upstream.py), what a failure means for a credential (the gateway).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay.upstream_headers import MAX_RETRY_AFTER, header
from patchbay_gateway.executors.upstream import scope_of

if TYPE_CHECKING:
    from patchbay.errors import Headers

# The whole account has run dry: other models of it answer the same.
_OF_THE_ACCOUNT: Final = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "usage_limit_reached",
        "account_deactivated",
    }
)
ERROR: Final = b'"error"'
"""What a report of a failure inside a 200 holds."""
_NULL: Final = re.compile(rb"\s*:\s*null")
_DURATION: Final = re.compile(rb"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {b"ms": 0.001, b"s": 1.0, b"m": 60.0, b"h": 3600.0, b"d": 86400.0}

_STATUS_BY_CODE: Final = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "usage_limit_reached": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
}


def _status(told: object) -> int:
    """Return the HTTP status that a status, code or type stands for; 0 for none."""
    if isinstance(told, str):
        told = int(told) if told.isdigit() and len(told) == 3 else _STATUS_BY_CODE.get(told)
    return told if isinstance(told, int) and 400 <= told <= 599 else 0


def may_report(block: bytes) -> bool:
    """Whether *block* may report a failure; `"error":null`, a part of sound answers, does not count."""
    at = block.find(ERROR)
    while at >= 0:
        at += len(ERROR)
        if not _NULL.match(block, at):
            return True
        at = block.find(ERROR, at)
    return False


def reported_failure(document: dict[str, Any], body: bytes) -> errors.UpstreamError:
    """
    Return the failure that a provider reports inside a 200.

    Args:
        document: The event or body, parsed.
        body: The same as bytes; becomes the error's body when it has the shape of an error answer.
    """
    response = document.get("response")
    inner = document.get("error") or (response.get("error") if isinstance(response, dict) else None)
    detail = inner if isinstance(inner, dict) else document
    status = 502
    for told in (
        document.get("status"),
        document.get("status_code"),
        detail.get("status"),
        detail.get("code"),
        detail.get("type"),
    ):
        found = _status(told)
        if found:
            status = found
            break
    message = detail.get("message")
    if not isinstance(message, str):
        message = inner if isinstance(inner, str) else "the provider reported a failure"
    shaped = isinstance(document.get("error"), dict)
    return errors.UpstreamError(
        status,
        message,
        body=body
        if shaped
        else orjson.dumps(
            {
                "error": {
                    "message": message,
                    "type": "server_error" if status >= 500 else "invalid_request_error",
                    "param": detail.get("param"),
                    "code": detail.get("code"),
                }
            }
        ),
        content_type="application/json",
        scope=_scope(status, detail),
        sent=errors.Sent.YES,
        reason="UPSTREAM_ERROR_EVENT",
    )


def explain(error: errors.UpstreamError, _now: float) -> None:
    """Add what body and rate-limit headers say: whose quota is spent and how long it is."""
    detail = _detail(error.body)
    error.scope = _scope(error.http_status, detail)
    if error.http_status == 429 and error.retry_after is None:
        told = detail.get("resets_in_seconds")
        if isinstance(told, int | float) and not isinstance(told, bool) and told >= 0:
            error.retry_after = min(float(told), MAX_RETRY_AFTER)
        else:
            error.retry_after = _rate_limit_wait(error.headers)


def _scope(status: int, detail: dict[str, Any]) -> errors.FaultScope:
    if status == 429 and _OF_THE_ACCOUNT & {
        told for told in (detail.get("code"), detail.get("type")) if isinstance(told, str)
    }:
        return errors.FaultScope.CREDENTIAL
    return scope_of(status)


def _detail(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    inner = document.get("error") if isinstance(document, dict) else None
    return inner if isinstance(inner, dict) else {}


def _rate_limit_wait(headers: Headers) -> float | None:
    """Return when the limit that is used up starts anew (`x-ratelimit-reset-tokens: 6m0s`)."""
    waits = [
        _seconds(header(headers, b"x-ratelimit-reset-" + what))
        for what in (b"requests", b"tokens")
        if header(headers, b"x-ratelimit-remaining-" + what).strip() == b"0"
    ]
    known = [wait for wait in waits if wait is not None]
    return min(max(known), MAX_RETRY_AFTER) if known else None


def _seconds(duration: bytes) -> float | None:
    """Return the seconds of `1s`, `6m0s`, `17ms`; None for anything else."""
    parts = _DURATION.findall(duration)
    if not parts or b"".join(number + unit for number, unit in parts) != duration.strip():
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
