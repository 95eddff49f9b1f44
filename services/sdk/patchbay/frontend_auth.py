"""
Frontend auth: the base class of a plugin that says who a client is (pluginapi: FrontendAuthProvider).

    class Tokens(FrontendAuthProvider):
        id, name, version, author = "tokens", "Tokens", "1.0.0", "You"

        async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
            if header(request.headers, "x-token") == "test-token":
                return FrontendAuthResponse(principal="somebody")
            return None

None, an error and silence mean that this plugin does not know the client; none of them admits anybody.
Not here: keys that the gateway itself knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from patchbay.capability import Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.errors import Headers
    from patchbay.headers import Query
    from patchbay.plugin.v1 import plugin_pb2


@dataclass(frozen=True, slots=True)
class FrontendAuthRequest:
    """A client's request. Unlike every other hook it has the client's credentials; they show in no repr."""

    method: str
    """HTTP method."""
    path: str
    """Path without query."""
    headers: Headers = field(default_factory=list, repr=False)
    """The client's headers."""
    query: Query = field(default_factory=list, repr=False)
    """The client's query."""
    body: bytes = field(default=b"", repr=False)
    """The client's body."""
    content_type: str = ""
    """Content type of the body."""
    remote_address: str = ""
    """IP address of the peer, as the gateway sees it."""


@dataclass(frozen=True, slots=True)
class FrontendAuthResponse:
    """A verdict."""

    principal: str
    """Who it is; stands for the client key's name in usage records and limits."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the client; `tenant` names its tenant."""
    authenticated: bool = True
    """False is the same as None for an answer."""


class FrontendAuthProvider(Plugin):
    """A plugin that authenticates clients."""

    capability_flag: ClassVar = "frontend_auth_provider"
    exclusive: ClassVar[bool] = False
    """True: while this plugin is in use nobody else is asked, the gateway's own keys included."""

    def capabilities(self) -> plugin_pb2.Capabilities:
        """Return the flags, with that of exclusiveness."""
        declared = super().capabilities()
        declared.frontend_auth_provider_exclusive = self.exclusive
        return declared

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Say who the client is, None if this plugin does not know it. To be quick: 2 s at most."""
        raise NotImplementedError
