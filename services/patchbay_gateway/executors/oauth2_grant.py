"""
The token endpoint's language (RFC 6749): requests for tokens, and what the answers say.

Pure: a request becomes a `Call`, an answer becomes `Tokens` or an error of the tree. Texts of errors carry
the provider's code and description, cut short, with every secret of the request blotted out; bodies are
never passed on, because an answer that cannot be understood may still hold tokens.

Not here: sending (oauth2.py).
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote_plus, urlencode

import orjson

from patchbay import errors, upstream_headers
from patchbay.auth_provider import INVALID_GRANT
from patchbay_gateway.executors.upstream import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay.errors import Headers

INVALID_ANSWER: Final = "TOKEN_ANSWER_INVALID"
"""Reason: a success that holds no access token; the refresh token may be used up."""
CLIENT_REFUSED: Final = "OAUTH_CLIENT_REFUSED"
"""Reason: the endpoint does not accept the client; the refresh token is as it was."""
REQUEST_REFUSED: Final = "OAUTH_REQUEST_REFUSED"
"""Reason: another refusal of the request; the refresh token is as it was."""

ERROR_CODE: Final = "oauth_error"
"""Metadata key of the errors here: the provider's own code."""

CLIENT_AUTHS: Final = ("body", "basic", "none")
MAX_BODY: Final = 256 << 10

# invalid_grant by RFC 6749; the others are what providers say in its place.
_DEAD_TOKEN: Final = frozenset({
    "invalid_grant", "bad_refresh_token", "refresh_token_expired", "refresh_token_invalidated",
    "refresh_token_reused", "invalid_refresh_token",
})  # fmt: skip
_CLIENT: Final = frozenset(
    {"invalid_client", "unauthorized_client", "incorrect_client_credentials"}
)
_OWN: Final = frozenset({
    "grant_type", "refresh_token", "client_id", "client_secret", "code", "code_verifier",
    "redirect_uri", "device_code", "scope",
})  # fmt: skip
_TEXT: Final = 300
# Above it a number is milliseconds.
_MILLISECONDS: Final = 1e11
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]+")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and where."""

    token_url: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    client_auth: str = "body"
    """`body`, `basic` or `none`; without a secret only the id is sent, in the body."""
    scopes: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further parameters of the form."""
    proxy_url: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the endpoint issued."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    """Empty: the one presented stays good."""
    id_token: str = field(default="", repr=False)
    token_type: str = ""
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None
    """Unix seconds; None: not said."""


def token_call(client: Client, form: Mapping[str, str], timeout: float) -> Call:
    """
    Return the request for tokens.

    Args:
        client: Who asks.
        form: The grant's own parameters.
        timeout: Seconds until the first byte of the answer, and between two.

    Raises:
        InvalidRequest: `extra` has parameters that are not its business, or client_auth is unknown.
    """
    if foreign := sorted(_OWN & client.extra.keys()):
        raise errors.InvalidRequest(
            f"oauth2.extra must not set {', '.join(foreign)}", reason="OAUTH_EXTRA_INVALID"
        )
    if client.client_auth not in CLIENT_AUTHS:
        raise errors.InvalidRequest(
            f"oauth2.client_auth is one of {', '.join(CLIENT_AUTHS)}",
            reason="OAUTH_CLIENT_AUTH_INVALID",
        )
    parameters = {**client.extra, **form}
    if client.scopes:
        parameters["scope"] = " ".join(client.scopes)
    headers: Headers = [
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", b"patchbay/0.1"),
        # On a connection that was kept, and that the server is closing just now, nobody could say whether a
        # token that is good for one presentation was seen.
        (b"connection", b"close"),
    ]
    if client.client_secret and client.client_auth == "basic":
        pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
        headers.append((b"authorization", b"Basic " + base64.b64encode(pair.encode())))
    else:
        parameters["client_id"] = client.client_id
        if client.client_secret and client.client_auth == "body":
            parameters["client_secret"] = client.client_secret
    return Call(
        "POST",
        client.token_url,
        headers,
        urlencode(parameters).encode(),
        timeout,
        timeout,
        client.proxy_url,
        fresh=True,
    )


def refresh_form(refresh_token: str) -> dict[str, str]:
    """Return the parameters of the refresh grant (RFC 6749 §6)."""
    return {"grant_type": "refresh_token", "refresh_token": refresh_token}


def tokens_of(
    status: int, headers: Headers, body: bytes, now: float, secrets: Iterable[str] = ()
) -> Tokens:
    """
    Return the tokens of an answer.

    Args:
        status: Its status.
        headers: Its headers.
        body: Its body.
        now: Unix seconds at which it came.
        secrets: Strings of the request that must not be in a text.

    Raises:
        UpstreamError: INVALID_GRANT the token is dead; OAUTH_CLIENT_REFUSED, OAUTH_REQUEST_REFUSED;
            TOKEN_ANSWER_INVALID (502) a success without an access token; UPSTREAM_ERROR with Retry-After
            for 429 and 5xx.
    """
    answer = members_of(headers, body)
    access_token = answer.get("access_token")
    if 200 <= status < 300 and isinstance(access_token, str) and access_token:
        return Tokens(
            access_token=access_token,
            refresh_token=_string(answer, "refresh_token"),
            id_token=_string(answer, "id_token"),
            token_type=_string(answer, "token_type"),
            scopes=tuple(_string(answer, "scope").split()),
            expires_at=expiry_of(answer, now),
        )
    raise refusal(status, headers, body, now, secrets)


def expiry_of(answer: Mapping[str, Any], now: float) -> float | None:
    """Return when the access token expires, Unix seconds: of `expires_in`, else of `expires_at`."""
    duration = _number(answer.get("expires_in"))
    if duration is not None and duration >= 0:
        return now + duration
    for key in ("expires_at", "expires_on", "expires"):
        value = answer.get(key)
        moment = _number(value)
        if moment is not None and moment > 0:
            return moment / 1000 if moment > _MILLISECONDS else moment
        if isinstance(value, str):
            try:
                parsed = datetime.fromisoformat(value.strip())
            except ValueError:
                continue
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    return None


def error_code_of(answer: Mapping[str, Any]) -> str:
    """Return the code of an error answer: RFC 6749's text, or the code or type of an error object."""
    error = answer.get("error")
    if isinstance(error, dict):
        return _string(error, "code") or _string(error, "type")
    return error.strip() if isinstance(error, str) else _string(answer, "error_code")


def refusal(
    status: int, headers: Headers, body: bytes, now: float, secrets: Iterable[str] = ()
) -> errors.UpstreamError:
    """Return the error that an answer without tokens is; arguments as in `tokens_of`."""
    answer = members_of(headers, body)
    code = error_code_of(answer)
    told = _told(answer, code, tuple(filter(None, secrets)))
    retry_after = upstream_headers.parse_retry_after(
        upstream_headers.header(headers, b"retry-after"), now
    )
    if 300 <= status < 400:
        text = f"the token endpoint redirects ({status}), which is not followed"
        return _error(502, text, "UPSTREAM_REDIRECT")
    if status == 429 or status >= 500:
        text = f"the token endpoint answered {status}{told}"
        return _error(min(status, 599), text, None, retry_after, code)
    if code in _DEAD_TOKEN:
        text = f"the token endpoint does not accept the refresh token{told}; log in again"
        return _error(400, text, INVALID_GRANT, code=code)
    if code in _CLIENT or (status == 401 and not code):
        text = f"the token endpoint does not accept the client{told}; check client id and secret"
        return _error(401, text, CLIENT_REFUSED, retry_after, code)
    if code or status >= 400:
        text = f"the token endpoint refused the request ({status}){told}"
        status = max(status, 400)
        return _error(status, text, REQUEST_REFUSED, retry_after, code)
    text = f"the token endpoint answered {status} without an access token"
    return _error(502, text, INVALID_ANSWER)


def _error(
    status: int, text: str, reason: str | None, retry_after: float | None = None, code: str = ""
) -> errors.UpstreamError:
    error = errors.UpstreamError(
        status,
        text,
        reason=reason,
        retry_after=retry_after,
        scope=errors.FaultScope.CREDENTIAL,
        sent=errors.Sent.YES,
    )
    if code:
        error.metadata[ERROR_CODE] = code[:63]
    return error


def members_of(headers: Headers, body: bytes) -> dict[str, Any]:
    """Return the members of an answer: a JSON object, or a form where its type says so; else nothing."""
    kind = upstream_headers.header(headers, b"content-type").decode("latin-1").lower()
    if "x-www-form-urlencoded" in kind:
        return dict(parse_qsl(body.decode("utf-8", "replace")))
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _told(answer: Mapping[str, Any], code: str, secrets: tuple[str, ...]) -> str:
    error = answer.get("error")
    description = _string(answer, "error_description") or (
        _string(error, "message") if isinstance(error, dict) else _string(answer, "message")
    )
    text = ": ".join(part for part in (code, description) if part)
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = _UNPRINTABLE.sub(" ", text).strip()
    if len(text) > _TEXT:
        text = text[:_TEXT] + "…"
    return f" ({text})" if text else ""


def _string(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return value.strip() if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
