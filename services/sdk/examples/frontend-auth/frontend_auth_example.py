"""Clients known by tokens of another system: a frontend auth provider."""

from __future__ import annotations

import hmac

import yaml

from patchbay.frontend_auth import (
    FrontendAuthProvider,
    FrontendAuthRequest,
    FrontendAuthResponse,
)
from patchbay.headers import header


class FrontendAuth(FrontendAuthProvider):
    """Knows clients by the header `x-team-token`."""

    id = "frontend-auth"
    name = "Frontend auth"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._teams: dict[str, str] = {}

    async def configure(self, config: bytes) -> None:
        """Take `teams`: name to token."""
        self._teams = dict((yaml.safe_load(config) or {}).get("teams", {}))

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Say whose token it is; None leaves the client to the next provider."""
        token = header(request.headers, "x-team-token").encode()
        if not token:
            return None
        for team, expected in self._teams.items():
            if hmac.compare_digest(token, expected.encode()):
                return FrontendAuthResponse(principal=team, metadata={"tenant": team})
        return None
