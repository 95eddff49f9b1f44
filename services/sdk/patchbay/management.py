"""
Management plugins: the base class of a plugin with routes and pages of its own (pluginapi: ManagementAPI).

Routes are below `/v0/management/` and need a management key; pages are below `/v0/resource/plugins/<id>/`,
GET only, on the management port and, where the plugin is declared public, on the clients' port. Paths are
matched as they are. An error is a 502. Not here: the gateway's own management API.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers
    from patchbay.headers import Query


@dataclass(frozen=True, slots=True)
class ManagementRoute:
    """One route of the management API."""

    path: str
    """Below the prefix, absolute or relative."""
    method: str = "GET"
    """HTTP method."""
    menu: str = ""
    """A GET route with a menu entry is a page (kept for plugins of old)."""
    description: str = ""
    """What it is, for people."""


@dataclass(frozen=True, slots=True)
class ResourceRoute:
    """One page."""

    path: str
    """Below the prefix, absolute or relative."""
    menu: str = ""
    """Menu entry."""
    description: str = ""
    """What it is, for people."""


@dataclass(frozen=True, slots=True)
class ManagementRegistrationRequest:
    """Asks for routes."""

    base_path: str = ""
    """Prefix of management routes."""
    resource_base_path: str = ""
    """Prefix of this plugin's pages."""


@dataclass(frozen=True, slots=True)
class ManagementRegistrationResponse:
    """The routes."""

    routes: Sequence[ManagementRoute] = field(default=(), metadata=of(ManagementRoute))
    """Of the management API."""
    resources: Sequence[ResourceRoute] = field(default=(), metadata=of(ResourceRoute))
    """Pages."""


@dataclass(frozen=True, slots=True)
class ManagementRequest:
    """One request."""

    method: str
    """HTTP method."""
    path: str
    """The whole path; tells the routes apart."""
    headers: Headers = field(default_factory=list)
    """Without the caller's credentials."""
    query: Query = field(default_factory=list)
    """Query."""
    body: bytes = b""
    """Empty for pages."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


@dataclass(frozen=True, slots=True)
class ManagementResponse:
    """One answer."""

    body: bytes = b""
    """Body."""
    status_code: int = 200
    """HTTP status."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Headers, `content-type` among them."""


class ManagementAPI(Plugin):
    """A plugin with routes and pages of its own."""

    capability_flag: ClassVar = "management_api"
    routes: ClassVar[Sequence[ManagementRoute]] = ()
    """Its routes; or override `register_management`."""
    resources: ClassVar[Sequence[ResourceRoute]] = ()
    """Its pages; or override `register_management`."""

    async def register_management(
        self, request: ManagementRegistrationRequest
    ) -> ManagementRegistrationResponse:
        """Return routes and pages."""
        return ManagementRegistrationResponse(self.routes, self.resources)

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Serve one request to one of them. 30 s at most."""
        raise NotImplementedError
