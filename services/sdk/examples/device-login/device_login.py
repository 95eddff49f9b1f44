"""
Accounts of a provider with a device flow (RFC 8628): an auth provider that logs in, reads and refreshes.

HTTP goes through the gateway (`callbacks.http_do`), which reaches the hosts that the declaration grants.
One call is one try: the gateway decides when to come back, and who else is trying.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from patchbay import errors
from patchbay.auth_provider import (
    AuthData,
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthLoginStatus,
    AuthParseRequest,
    AuthParseResponse,
    AuthProvider,
    AuthRefreshRequest,
    AuthRefreshResponse,
    invalid_grant,
)
from patchbay.host_types import HTTPRequest

if TYPE_CHECKING:
    from patchbay.host_client import HostClient

_FORM = ((b"content-type", b"application/x-www-form-urlencoded"),)


class DeviceLogin(AuthProvider):
    """Logs in by a code that a person types at a page."""

    id = "device-login"
    name = "Device login"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._server = "https://identity.example"
        self._client = "patchbay"

    async def configure(self, config: bytes) -> None:
        """Take `server` and `client_id`."""
        settings = yaml.safe_load(config) or {}
        self._server = str(settings.get("server", self._server)).rstrip("/")
        self._client = str(settings.get("client_id", self._client))

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        """Read documents of this type."""
        document = json.loads(request.raw_json)
        if document.get("type") != self.identifier:
            return AuthParseResponse(handled=False)
        kept = {k: v for k, v in document.items() if k in {"access_token", "refresh_token"}}
        auth = AuthData(provider=self.identifier, label=document.get("email", ""), storage=kept)
        return AuthParseResponse(handled=True, auths=[auth])

    async def start_login(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        """Ask for a code."""
        status, answer = await self._ask(request.callbacks, "/device", {"client_id": self._client})
        if status != 200:
            raise errors.UpstreamError(status, "the identity server gives no code")
        return AuthLoginStartResponse(
            url=answer["verification_uri"],
            state=secrets.token_urlsafe(24),
            user_code=answer["user_code"],
            interval=float(answer.get("interval", 5)),
            expires_at=time.time() + float(answer.get("expires_in", 600)),
            metadata={"device_code": answer["device_code"]},
        )

    async def poll_login(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        """Ask whether the code was typed."""
        status, answer = await self._ask(
            request.callbacks,
            "/token",
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                "device_code": str(request.metadata.get("device_code", "")),
                "client_id": self._client,
            },
        )
        if status == 200:
            auth = self._auth(answer, answer.get("email", ""))
            return AuthLoginPollResponse(AuthLoginStatus.SUCCESS, auths=[auth])
        if answer.get("error") == "slow_down":
            return AuthLoginPollResponse(AuthLoginStatus.PENDING, interval=10.0)
        if answer.get("error") == "authorization_pending":
            return AuthLoginPollResponse(AuthLoginStatus.PENDING)
        return AuthLoginPollResponse(AuthLoginStatus.ERROR, str(answer.get("error", status)))

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """Exchange the refresh token, once."""
        secret = request.secret()
        secret.check(f"{self._server}/token")
        form = {"grant_type": "refresh_token", "client_id": self._client}
        status, answer = await self._ask(
            request.callbacks, "/token", {**form, "refresh_token": secret["refresh_token"]}
        )
        if status == 200:
            return AuthRefreshResponse(self._auth(answer))
        if answer.get("error") == "invalid_grant":
            raise invalid_grant("the refresh token is not accepted any more; log in again")
        raise errors.UpstreamError(status, "the identity server refused", sent=errors.Sent.YES)

    def _auth(self, answer: dict[str, Any], label: str = "") -> AuthData:
        # A server that sends no new refresh token means the old one: what is absent is kept.
        kept: dict[str, str] = {
            k: str(answer[k]) for k in ("access_token", "refresh_token") if k in answer
        }
        lasts = float(answer.get("expires_in", 3600))
        return AuthData(
            provider=self.identifier, label=label, storage=kept, expires_at=time.time() + lasts
        )

    async def _ask(
        self, host: HostClient, path: str, form: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        url, body = self._server + path, urlencode(form).encode()
        answer = await host.http_do(HTTPRequest(url, "POST", _FORM, body))
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        return answer.status_code, found if isinstance(found, dict) else {}
