"""The only way in: an exclusive frontend auth provider. While it is in use, the gateway's keys are not."""

from __future__ import annotations

from patchbay.frontend_auth import (
    FrontendAuthProvider,
    FrontendAuthRequest,
    FrontendAuthResponse,
)
from patchbay.headers import header


class FrontendAuthExclusive(FrontendAuthProvider):
    """Admits requests with the header `x-example-frontend-auth: exclusive` and no others."""

    id = "frontend-auth-exclusive"
    name = "Exclusive frontend auth"
    version = "1.0.0"
    author = "Patchbay"
    exclusive = True

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Admit by the header."""
        if header(request.headers, "x-example-frontend-auth") != "exclusive":
            return None
        return FrontendAuthResponse(principal="exclusive")
