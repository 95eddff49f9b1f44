"""
Golden tables: failures as providers answered with them, per dialect, and the neutral fault that each is.

Not here: the tests that read them (test_faults_of_providers.py).
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from patchbay.errors import FaultScope, Sent, UpstreamError
from patchbay_gateway.kernel.outcomes import FaultKind

NOW = 1_800_000_000.0
UNSAID, MODEL, CREDENTIAL = FaultScope.UNSPECIFIED, FaultScope.MODEL, FaultScope.CREDENTIAL
REQUEST = FaultScope.REQUEST
K = FaultKind


class Row(NamedTuple):
    """One answer and what it is."""

    status: int
    body: Any
    kind: FaultKind
    scope: FaultScope
    headers: Mapping[str, str] = MappingProxyType({})
    retry_after: float | None = None


def openai(message: str, kind: str = "", code: str | None = None, param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def claude(kind: str, message: str) -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}}


def gemini(code: int, status: str, message: str, *details: dict[str, Any]) -> Any:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def info(reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}


def quota(*violations: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": list(violations),
    }


def retry(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def failure(row: Row) -> UpstreamError:
    body = row.body if isinstance(row.body, bytes) else json.dumps(row.body).encode()
    return UpstreamError(
        row.status,
        body=body,
        content_type="text/html" if body.startswith(b"<") else "application/json",
        headers=[(k.encode(), v.encode()) for k, v in row.headers.items()],
        sent=Sent.YES,
    )


IRE = "invalid_request_error"
CHALLENGE = (
    b"<!DOCTYPE html><title>Just a moment...</title><script src=/cdn-cgi/challenge-platform/x>"
)

OPENAI = {
    "bad_request": Row(400, openai("bad", IRE), K.REQUEST, REQUEST),
    "context_length": Row(
        400, openai("too long", IRE, "context_length_exceeded", "messages"), K.REQUEST, REQUEST
    ),
    "context_length_as_503": Row(
        503, openai("too long", "server_error", "context_length_exceeded"), K.REQUEST, REQUEST
    ),
    "content_policy": Row(400, openai("no", IRE, "content_policy_violation"), K.REQUEST, REQUEST),
    "conflict": Row(409, openai("locked", "conflict"), K.REQUEST, REQUEST),
    "too_large": Row(413, b"", K.REQUEST, REQUEST),
    "unprocessable": Row(422, {"detail": "no such field"}, K.REQUEST, REQUEST),
    "invalid_prompt_nested": Row(
        500, {"response": {"error": {"code": "invalid_prompt", "message": "x"}}}, K.REQUEST, REQUEST
    ),
    "item_not_stored": Row(
        404,
        openai(
            "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.",
            IRE,
        ),
        K.REQUEST,
        REQUEST,
    ),
    "other_path": Row(
        404,
        openai(
            "This is a chat model and not supported in the v1/completions endpoint.",
            IRE,
            param="model",
        ),
        K.REQUEST,
        REQUEST,
    ),
    "file_not_there": Row(
        404, openai("No such File object: file-x", IRE, param="id"), K.REQUEST, REQUEST
    ),
    "parameter_of_model": Row(
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            IRE,
            "unsupported_parameter",
            "max_tokens",
        ),
        K.REQUEST,
        REQUEST,
    ),
    "feature_of_model": Row(
        400, openai("Images are not supported by this model", IRE), K.REQUEST, REQUEST
    ),
    "model_for_embeddings": Row(
        400, openai("The model `m` is not supported for embeddings", IRE), K.REQUEST, REQUEST
    ),
    "key_refused": Row(
        401,
        openai("Incorrect API key provided: tes***ey.", IRE, "invalid_api_key"),
        K.UNAUTHORIZED,
        CREDENTIAL,
    ),
    "key_refused_as_400": Row(
        400,
        {"code": "Client specified an invalid argument", "error": "Incorrect API key provided"},
        K.UNAUTHORIZED,
        CREDENTIAL,
    ),
    "unauthorized_bare": Row(401, b"", K.UNAUTHORIZED, CREDENTIAL),
    "unauthorized_request_type": Row(401, openai("no", IRE), K.UNAUTHORIZED, CREDENTIAL),
    "deactivated": Row(401, openai("off", IRE, "account_deactivated"), K.FORBIDDEN, CREDENTIAL),
    "invalid_grant": Row(400, {"error": "invalid_grant"}, K.INVALID_GRANT, CREDENTIAL),
    "invalid_grant_401": Row(401, {"error": "invalid_grant"}, K.INVALID_GRANT, CREDENTIAL),
    "payment": Row(402, b"Insufficient Balance", K.PAYMENT, CREDENTIAL),
    "insufficient_quota": Row(
        429,
        openai(
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        K.PAYMENT,
        CREDENTIAL,
    ),
    "no_credits": Row(
        403,
        {"code": "forbidden", "error": "team has used all available credits"},
        K.PAYMENT,
        CREDENTIAL,
    ),
    "forbidden": Row(403, openai("no access", "request_forbidden"), K.FORBIDDEN, CREDENTIAL),
    "country": Row(
        403,
        openai(
            "Country not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        K.FORBIDDEN,
        CREDENTIAL,
    ),
    "model_access_403": Row(
        403,
        openai("Project `p` does not have access to model `m`", IRE, "model_not_found"),
        K.NOT_FOUND,
        MODEL,
    ),
    "model_not_found": Row(
        404,
        openai("The model `m` does not exist", IRE, "model_not_found", "model"),
        K.NOT_FOUND,
        MODEL,
    ),
    "wrong_url": Row(404, b"<html>not found: file</html>", K.NOT_FOUND, MODEL),
    "unsupported_plan": Row(
        400,
        {"detail": "The 'm-codex' model is not supported when using it with this account."},
        K.MODEL_UNSUPPORTED,
        MODEL,
    ),
    "unsupported_named": Row(
        422, openai("model m-5.1 is not available", IRE), K.MODEL_UNSUPPORTED, MODEL
    ),
    "unsupported_by_plan": Row(
        400, openai("This is not available for your plan", IRE), K.MODEL_UNSUPPORTED, MODEL
    ),
    "rate_limit": Row(
        429,
        openai("Rate limit reached for m on tokens per min", "tokens", "rate_limit_exceeded"),
        K.QUOTA,
        UNSAID,
    ),
    "rate_limit_text_wait": Row(
        429,
        openai("Rate limit reached. Please try again in 1.5s.", "tokens", "rate_limit_exceeded"),
        K.QUOTA,
        UNSAID,
        retry_after=1.5,
    ),
    "rate_limit_of_request_type": Row(429, openai("slow", IRE), K.QUOTA, UNSAID),
    "usage_limit": Row(
        429,
        {"error": {"type": "usage_limit_reached", "message": "hit", "resets_in_seconds": 7200}},
        K.QUOTA,
        CREDENTIAL,
        retry_after=7200,
    ),
    "google_behind_openai": Row(
        429,
        [
            gemini(
                429,
                "RESOURCE_EXHAUSTED",
                "quota",
                quota({"quotaId": "RequestsPerDayPerProject"}),
                retry("34s"),
            )
        ],
        K.QUOTA,
        CREDENTIAL,
        retry_after=34,
    ),
    "timeout_408": Row(408, b"", K.TRANSIENT, UNSAID),
    "internal": Row(500, openai("oops", "server_error"), K.TRANSIENT, UNSAID),
    "bad_gateway_page": Row(502, b"<html>Bad Gateway</html>", K.TRANSIENT, UNSAID),
    "cloudflare_520": Row(520, b"<html>Web server error</html>", K.TRANSIENT, UNSAID),
    "overloaded": Row(
        503, openai("The engine is currently overloaded", "server_error"), K.OVERLOADED, UNSAID
    ),
    "slow_down": Row(503, openai("slow down", "server_error", "slow_down"), K.OVERLOADED, UNSAID),
    "unavailable": Row(
        503, openai("later", "server_error"), K.TRANSIENT, UNSAID, {"retry-after": "5"}, 5
    ),
    "challenge": Row(403, CHALLENGE, K.CHALLENGE, CREDENTIAL),
    "challenge_header": Row(403, b"", K.CHALLENGE, CREDENTIAL, {"cf-mitigated": "challenge"}),
}

CLAUDE = {
    "bad_request": Row(400, claude(IRE, "prompt is too long"), K.REQUEST, REQUEST),
    "too_large": Row(413, claude("request_too_large", "too large"), K.REQUEST, REQUEST),
    "credit": Row(
        400,
        claude(IRE, "Your credit balance is too low to access the Anthropic API."),
        K.PAYMENT,
        CREDENTIAL,
    ),
    "billing": Row(402, claude("billing_error", "pay"), K.PAYMENT, CREDENTIAL),
    "usage_limit": Row(
        400,
        claude(IRE, "You have reached your specified API usage limits."),
        K.QUOTA,
        CREDENTIAL,
    ),
    "disabled": Row(
        400, claude(IRE, "This organization has been disabled."), K.FORBIDDEN, CREDENTIAL
    ),
    "key": Row(
        401, claude("authentication_error", "invalid x-api-key"), K.UNAUTHORIZED, CREDENTIAL
    ),
    "token_revoked": Row(
        403,
        claude("permission_error", "OAuth token has been revoked."),
        K.UNAUTHORIZED,
        CREDENTIAL,
    ),
    "permission": Row(403, claude("permission_error", "no"), K.FORBIDDEN, CREDENTIAL),
    "model": Row(404, claude("not_found_error", "model: claude-x"), K.NOT_FOUND, MODEL),
    "file": Row(404, claude("not_found_error", "File not found: file_1"), K.REQUEST, REQUEST),
    "rate": Row(
        429, claude("rate_limit_error", "slow"), K.QUOTA, UNSAID, {"retry-after": "17"}, 17
    ),
    "rate_reset": Row(
        429,
        claude("rate_limit_error", "slow"),
        K.QUOTA,
        UNSAID,
        {
            "anthropic-ratelimit-requests-remaining": "12",
            "anthropic-ratelimit-requests-reset": "2027-01-15T09:00:00Z",
            "anthropic-ratelimit-input-tokens-remaining": "0",
            "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:30Z",
        },
        30,
    ),
    "subscription": Row(
        429,
        claude("rate_limit_error", "limit"),
        K.QUOTA,
        CREDENTIAL,
        {
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-representative-claim": "five_hour",
            "anthropic-ratelimit-unified-reset": str(int(NOW) + 900),
        },
        900,
    ),
    "subscription_one_model": Row(
        429,
        claude("rate_limit_error", "limit"),
        K.QUOTA,
        MODEL,
        {
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-representative-claim": "seven_day_opus",
        },
    ),
    "api_error": Row(500, claude("api_error", "oops"), K.TRANSIENT, UNSAID),
    "timeout": Row(504, claude("timeout_error", "slow"), K.TRANSIENT, UNSAID),
    "overloaded": Row(529, claude("overloaded_error", "Overloaded"), K.OVERLOADED, UNSAID),
    "overloaded_bare": Row(529, b"", K.OVERLOADED, UNSAID),
    "overloaded_in_500": Row(500, claude("overloaded_error", "x"), K.OVERLOADED, UNSAID),
}

PER_MODEL = {"quotaId": "x", "quotaDimensions": {"model": "m", "location": "global"}}
GEMINI = {
    "bad_request": Row(400, gemini(400, "INVALID_ARGUMENT", "bad part"), K.REQUEST, REQUEST),
    "key": Row(
        400,
        gemini(400, "INVALID_ARGUMENT", "API key not valid.", info("API_KEY_INVALID")),
        K.UNAUTHORIZED,
        CREDENTIAL,
    ),
    "key_expired_text": Row(
        400,
        gemini(400, "INVALID_ARGUMENT", "API key expired. Please renew it."),
        K.UNAUTHORIZED,
        CREDENTIAL,
    ),
    "location": Row(
        400,
        gemini(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        K.FORBIDDEN,
        CREDENTIAL,
    ),
    "unauthenticated": Row(401, gemini(401, "UNAUTHENTICATED", "no"), K.UNAUTHORIZED, CREDENTIAL),
    "disabled": Row(
        403,
        gemini(403, "PERMISSION_DENIED", "not used before", info("SERVICE_DISABLED")),
        K.FORBIDDEN,
        CREDENTIAL,
    ),
    "billing": Row(
        403,
        gemini(403, "PERMISSION_DENIED", "billing", info("BILLING_DISABLED")),
        K.PAYMENT,
        CREDENTIAL,
    ),
    "file": Row(
        403,
        gemini(403, "PERMISSION_DENIED", "You do not have permission to access the File abc"),
        K.REQUEST,
        REQUEST,
    ),
    "model": Row(
        404,
        gemini(
            404,
            "NOT_FOUND",
            "models/m is not found for API version v1beta, or is not supported for generateContent.",
        ),
        K.NOT_FOUND,
        MODEL,
    ),
    "quota_of_model": Row(
        429,
        gemini(429, "RESOURCE_EXHAUSTED", "quota", quota(PER_MODEL), retry("34.07s")),
        K.QUOTA,
        MODEL,
        retry_after=34.07,
    ),
    "quota_of_model_by_id": Row(
        429,
        gemini(
            429,
            "RESOURCE_EXHAUSTED",
            "quota",
            quota({"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}),
        ),
        K.QUOTA,
        MODEL,
    ),
    "quota_of_project": Row(
        429,
        gemini(
            429,
            "RESOURCE_EXHAUSTED",
            "quota",
            quota(PER_MODEL, {"quotaId": "GenerateRequestsPerMinutePerProject"}),
        ),
        K.QUOTA,
        CREDENTIAL,
    ),
    "quota_unsaid": Row(429, gemini(429, "RESOURCE_EXHAUSTED", "quota"), K.QUOTA, UNSAID),
    "overloaded": Row(
        503,
        gemini(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        K.OVERLOADED,
        UNSAID,
    ),
    "internal": Row(500, gemini(500, "INTERNAL", "oops"), K.TRANSIENT, UNSAID),
    "deadline": Row(504, gemini(504, "DEADLINE_EXCEEDED", "slow"), K.TRANSIENT, UNSAID),
}
TABLES = {"openai": OPENAI, "openai-response": OPENAI, "claude": CLAUDE, "gemini": GEMINI}
