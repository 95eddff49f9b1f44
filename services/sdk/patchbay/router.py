"""
Model routers: the base class of a plugin that says where requests go (pluginapi: ModelRouter).

Routers are asked in order of priority before the catalogue is; the first valid answer wins. An error and a
target that cannot serve pass the question on. Not here: executing what was routed (`patchbay.executor`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay.headers import Query


class ModelRouteTargetKind(enum.StrEnum):
    """Kinds of targets."""

    UNSPECIFIED = ""
    SELF = "self"
    """The router's own executor, without a credential."""
    EXECUTOR = "executor"
    """Another plugin's executor, without a credential."""
    PROVIDER = "provider"
    """A provider, with its credentials."""


@dataclass(frozen=True, slots=True)
class ModelRouteRequest:
    """A request that wants a route."""

    source_format: str
    """Format that the client spoke."""
    requested_model: str
    """Model as the client named it."""
    stream: bool = False
    """Whether a stream is expected; False for token counts."""
    headers: Headers = field(default_factory=list)
    """The client's, without credentials."""
    query: Query = field(default_factory=list)
    """The client's, without credentials."""
    body: bytes = b""
    """The client's body."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host."""
    available_providers: Sequence[str] = ()
    """Providers with a credential that is not disabled, ordered."""
    content_type: str = ""
    """Empty means application/json."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    request_id: str = ""
    """Id of this execution, the same in every hook."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


@dataclass(frozen=True, slots=True)
class ModelRouteResponse:
    """A route. `to_self`, `to_executor` and `to_provider` make it."""

    target_kind: ModelRouteTargetKind = field(
        default=ModelRouteTargetKind.UNSPECIFIED, metadata=of(ModelRouteTargetKind)
    )
    """What kind of target."""
    target: str = ""
    """A plugin id, or a provider's name; ignored for `self`."""
    target_model: str = ""
    """Model to ask the provider for; empty: the client's."""
    reason: str = ""
    """Why, for logs."""
    handled: bool = True
    """False is the same as None for an answer."""

    @classmethod
    def to_self(cls, *, reason: str = "") -> ModelRouteResponse:
        """Return the route to the router's own executor."""
        return cls(ModelRouteTargetKind.SELF, reason=reason)

    @classmethod
    def to_executor(cls, plugin_id: str, *, reason: str = "") -> ModelRouteResponse:
        """Return the route to another plugin's executor."""
        return cls(ModelRouteTargetKind.EXECUTOR, plugin_id, reason=reason)

    @classmethod
    def to_provider(cls, name: str, *, model: str = "", reason: str = "") -> ModelRouteResponse:
        """Return the route to a provider, with another *model* if one is named."""
        return cls(ModelRouteTargetKind.PROVIDER, name, model, reason)


class ModelRouter(Plugin):
    """A plugin that routes requests."""

    capability_flag: ClassVar = "model_router"

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Say where the request goes; None passes the question on. To be quick: 500 ms at most."""
        raise NotImplementedError
