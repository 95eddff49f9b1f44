"""
The auth provider `oauth2`: tokens of every provider that keeps to OAuth 2.0.

Refresh grant (RFC 6749 §6), login by authorization code with PKCE (RFC 7636) and by device (RFC 8628), and
reading of documents that name their own token endpoint. Settings come with each call (the credential's
`oauth2` in the configuration); the plugin keeps nothing between calls. One call is one request to the token
endpoint.

Not here: what its answers mean (oauth2_grant.py), when to refresh and where tokens are kept (the scheduler).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode

from patchbay import errors
from patchbay.auth_documents import Refused, parse
from patchbay.auth_provider import (
    INVALID_GRANT,
    AuthData,
    AuthLoginPollResponse,
    AuthLoginStartResponse,
    AuthLoginStatus,
    AuthParseResponse,
    AuthProvider,
    AuthRefreshResponse,
)
from patchbay_gateway.executors import oauth2_grant as grant
from patchbay_gateway.executors.upstream import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from patchbay.auth_provider import (
        AuthLoginPollRequest,
        AuthLoginStartRequest,
        AuthParseRequest,
        AuthRefreshRequest,
    )
    from patchbay.errors import Headers
    from patchbay.secrets import OpenedSecret
    from patchbay_gateway.executors.upstream import Call, Upstream

TIMEOUT: Final = 30.0
"""Seconds for the token endpoint, where the caller does not grant less."""
# Kept of the caller's time, so that the answer still gets there.
_MARGIN: Final = 0.5

_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER: Final = 5.0


class OAuth2Provider(AuthProvider):
    """
    Speaks OAuth 2.0 with token endpoints.

    Args:
        upstream: How to reach them.
        now: Unix seconds.
    """

    id: ClassVar = "oauth2"
    name: ClassVar = "OAuth 2.0"
    version: ClassVar = "0.1.0"
    author: ClassVar = "Patchbay"

    def __init__(self, upstream: Upstream, *, now: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._now = now

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """Exchange the refresh token (RFC 6749 §6)."""
        secret = request.secret()
        client = _client(request.config, secret, request.proxy_url)
        secret.check(client.token_url)
        presented = secret["refresh_token"]
        tokens = await self._tokens(
            client, grant.refresh_form(presented), _timeout(request.time_remaining), (presented,)
        )
        return AuthRefreshResponse(_auth_of(tokens, presented))

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        """Read a document that is of type `oauth2`, or of none, and names its token endpoint."""
        if request.provider not in {"", self.id}:
            return AuthParseResponse(handled=False)
        try:
            document = parse(request.raw_json, default_type=self.id)
        except Refused as error:
            if not request.provider:
                return AuthParseResponse(handled=False)
            raise errors.InvalidRequest(
                f"the document {error}", reason="AUTH_DOCUMENT_INVALID"
            ) from error
        if not (document.token_url and document.client_id and document.refreshable):
            return AuthParseResponse(handled=False)
        storage = dict(document.material)
        if document.client_secret:
            storage["client_secret"] = document.client_secret
        metadata: dict[str, Any] = {
            "token_url": document.token_url,
            "client_id": document.client_id,
            "scopes": list(document.scopes),
        }
        auth = AuthData(
            label=document.label or document.email,
            prefix=document.prefix,
            proxy_url=document.proxy_url,
            disabled=document.disabled,
            storage=storage,
            metadata=metadata,
            expires_at=document.expires_at,
        )
        return AuthParseResponse(handled=True, auths=[auth])

    async def start_login(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        """Begin the authorization code flow; the device flow if asked, or if there is no other."""
        config, asked = request.config, str(request.metadata.get("flow", ""))
        by_code, by_device = config.get("authorization_url"), config.get("device_authorization_url")
        if asked not in {"", "code", "device"}:
            raise errors.InvalidRequest("flow is code or device", reason="LOGIN_FLOW_UNKNOWN")
        if not (by_code or by_device) or (
            asked and not {"code": by_code, "device": by_device}[asked]
        ):
            raise errors.FailedPrecondition(
                "this provider has no login: its oauth2 settings name neither authorization_url nor "
                "device_authorization_url for it",
                reason="LOGIN_NOT_CONFIGURED",
            )
        client = _client(config, request.secret(), request.host.proxy_url)
        if asked == "device" or not by_code:
            return await self._start_device(client, str(by_device))
        state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            **_strings(config.get("authorization_extra")),
            "response_type": "code",
            "client_id": client.client_id,
            "redirect_uri": request.base_url,
            "scope": " ".join(client.scopes),
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in str(by_code) else "?"
        url = f"{by_code}{joint}{urlencode({k: v for k, v in query.items() if v})}"
        return AuthLoginStartResponse(url, state, metadata={"verifier": verifier})

    async def poll_login(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        """Redeem the code that the redirect brought, or ask how the device stands."""
        client = _client(request.config, secret := request.secret(), request.host.proxy_url)
        if secret is not None:
            secret.check(client.token_url)
        metadata, callback = request.metadata, request.callback
        if device_code := metadata.get("device_code"):
            form = {"grant_type": _DEVICE_GRANT, "device_code": str(device_code)}
        elif callback is None:
            return AuthLoginPollResponse(AuthLoginStatus.PENDING)
        elif callback.state != request.state or callback.error or not callback.code:
            told = callback.error_description or callback.error or "no code came back"
            return AuthLoginPollResponse(
                AuthLoginStatus.ERROR, f"the provider refused: {told[:300]}"
            )
        else:
            form = {
                "grant_type": "authorization_code",
                "code": callback.code,
                "redirect_uri": request.base_url,
                "code_verifier": str(metadata.get("verifier", "")),
            }
        try:
            tokens = await self._tokens(client, form, TIMEOUT, form.values())
        except errors.UpstreamError as error:
            return _unfinished(error, metadata)
        return AuthLoginPollResponse(AuthLoginStatus.SUCCESS, auths=[_auth_of(tokens)])

    async def _start_device(self, client: grant.Client, url: str) -> AuthLoginStartResponse:
        call = grant.token_call(client, {}, TIMEOUT)
        answer = await self._device_answer(call, url)
        interval = answer.get("interval")
        device_code, told = answer.get("device_code"), answer.get("verification_uri_complete")
        told = told or answer.get("verification_uri") or answer.get("verification_url")
        if not isinstance(device_code, str) or not isinstance(told, str):
            raise errors.UpstreamError(
                502,
                "the device endpoint's answer has no device code or no address to open",
                reason=grant.INVALID_ANSWER,
                sent=errors.Sent.YES,
            )
        return AuthLoginStartResponse(
            told,
            secrets.token_urlsafe(24),
            expires_at=grant.expiry_of(answer, self._now()),
            metadata={"device_code": device_code, "interval": interval},
            user_code=str(answer.get("user_code", "")),
            interval=float(interval) if isinstance(interval, int | float) else None,
        )

    async def _device_answer(self, call: Call, url: str) -> dict[str, Any]:
        status, headers, body = await self._send(
            type(call)(call.method, url, call.headers, call.body, TIMEOUT, TIMEOUT, call.proxy_url)
        )
        if status >= 300:
            raise grant.refusal(status, headers, body, self._now())
        return grant.members_of(headers, body)

    async def _tokens(
        self, client: grant.Client, form: Mapping[str, str], patience: float, hidden: Iterable[str]
    ) -> grant.Tokens:
        status, headers, body = await self._send(grant.token_call(client, form, patience))
        return grant.tokens_of(status, headers, body, self._now(), (client.client_secret, *hidden))

    async def _send(self, call: Call) -> tuple[int, Headers, bytes]:
        reply = await self._upstream.send(call)
        try:
            return reply.status, reply.headers, await read_all(reply, grant.MAX_BODY)
        finally:
            reply.close()


def _client(config: Mapping[str, Any], secret: OpenedSecret | None, proxy_url: str) -> grant.Client:
    missing = [key for key in ("token_url", "client_id") if not isinstance(config.get(key), str)]
    if missing:
        raise errors.InvalidRequest(
            f"the oauth2 settings of the credential have no {' and no '.join(missing)}",
            reason="OAUTH_SETTINGS_INCOMPLETE",
            sent=errors.Sent.NO,
        )
    scopes = config.get("scopes")
    return grant.Client(
        token_url=config["token_url"],
        client_id=config["client_id"],
        client_secret=secret.get("client_secret") if secret is not None else "",
        client_auth=str(config.get("client_auth") or "body"),
        scopes=tuple(map(str, scopes)) if isinstance(scopes, list) else (),
        extra=_strings(config.get("extra")),
        proxy_url=proxy_url,
    )


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}


def _timeout(remaining: float | None) -> float:
    if remaining is None:
        return TIMEOUT
    if remaining <= _MARGIN:
        raise errors.DeadlineExceeded(
            "no time was left to ask the token endpoint",
            reason="NO_TIME_LEFT",
            sent=errors.Sent.NO,
        )
    return min(TIMEOUT, remaining - _MARGIN)


def _auth_of(tokens: grant.Tokens, presented: str = "") -> AuthData:
    storage = {"access_token": tokens.access_token}
    if tokens.token_type:
        storage["token_type"] = tokens.token_type
    if tokens.refresh_token and tokens.refresh_token != presented:
        storage["refresh_token"] = tokens.refresh_token
    return AuthData(
        label="" if presented else _mail_of(tokens.id_token),
        storage=storage,
        expires_at=tokens.expires_at,
    )


def _mail_of(id_token: str) -> str:
    """Return the mail address that an ID token names, as a label: not verified, and nothing rests on it."""
    try:
        payload = id_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return ""
    mail = claims.get("email") if isinstance(claims, dict) else None
    return mail[:200] if isinstance(mail, str) else ""


def _unfinished(error: errors.UpstreamError, metadata: Mapping[str, Any]) -> AuthLoginPollResponse:
    """Return what a refusal means for a login; what may pass is raised."""
    code = error.metadata.get(grant.ERROR_CODE, "")
    if code == "authorization_pending":
        return AuthLoginPollResponse(AuthLoginStatus.PENDING)
    if code == "slow_down":
        # RFC 8628 §3.5: five seconds more, for this and all later polls.
        before = metadata.get("interval")
        slower = (float(before) if isinstance(before, int | float) else _SLOWER) + _SLOWER
        return AuthLoginPollResponse(
            AuthLoginStatus.PENDING, metadata={**metadata, "interval": slower}, interval=slower
        )
    if error.reason in {INVALID_GRANT, grant.CLIENT_REFUSED, grant.REQUEST_REFUSED}:
        return AuthLoginPollResponse(AuthLoginStatus.ERROR, error.message)
    raise error
