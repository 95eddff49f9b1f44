"""
Models: the base classes of plugins that tell which models there are.

`ModelRegistrar` names models by itself; `ModelProvider` those of a provider, fixed ones and those of one
credential, and is the only one asked where a plugin is both. What they return replaces their previous
answer; an error keeps it. Not here: executing a model (`patchbay.executor`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.host_config import HostConfigSummary
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.auth_provider import AuthData
    from patchbay.secrets import OpenedSecret


@dataclass(frozen=True, slots=True)
class ThinkingSupport:
    """Reasoning controls of a model."""

    min: int = 0
    """Smallest budget, tokens."""
    max: int = 0
    """Largest budget, tokens."""
    zero_allowed: bool = False
    """Whether reasoning can be switched off."""
    dynamic_allowed: bool = False
    """Whether the provider can choose the budget."""
    levels: Sequence[str] = ()
    """Names of levels, weakest first."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model. Zero and empty mean "not known"."""

    id: str
    """Name that clients use."""
    object: str = ""
    """API object type; empty: `model`."""
    created: int = 0
    """Unix seconds."""
    owned_by: str = ""
    """Owner shown to clients; empty: the provider."""
    type: str = ""
    """Capability family."""
    display_name: str = ""
    """Name for people."""
    name: str = ""
    """Name that the provider uses; empty: the id."""
    version: str = ""
    """Revision."""
    description: str = ""
    """One sentence for people."""
    input_token_limit: int = 0
    """Largest input."""
    output_token_limit: int = 0
    """Largest output."""
    supported_generation_methods: Sequence[str] = ()
    """In the provider's words."""
    context_length: int = 0
    """Input and output together, tokens."""
    max_completion_tokens: int = 0
    """Largest completion."""
    supported_parameters: Sequence[str] = ()
    """Request parameters that the model knows."""
    supported_input_modalities: Sequence[str] = ()
    """For example `text`, `image`."""
    supported_output_modalities: Sequence[str] = ()
    """For example `text`, `audio`."""
    thinking: ThinkingSupport | None = field(default=None, metadata=of(ThinkingSupport))
    """Reasoning controls; None: there are none."""
    user_defined: bool = False
    """Whether the configuration named the model."""


@dataclass(frozen=True, slots=True)
class ModelRegistrationRequest:
    """Asks a registrar for its models."""

    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


@dataclass(frozen=True, slots=True)
class ModelRegistrationResponse:
    """A registrar's models."""

    provider: str
    """Provider key of the models."""
    models: Sequence[ModelInfo] = field(default=(), metadata=of(ModelInfo))
    """All of them."""


@dataclass(frozen=True, slots=True)
class StaticModelRequest:
    """Asks for the models that every credential has."""

    host: HostConfigSummary = field(default_factory=HostConfigSummary, metadata=APART)
    """Host configuration."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """As in ModelRegistrationRequest."""


@dataclass(frozen=True, slots=True)
class AuthModelRequest:
    """Asks for the models of one credential."""

    auth_id: str
    """Credential id."""
    auth_provider: str
    """Provider key."""
    secret: OpenedSecret | None = field(default=None, repr=False, metadata=APART)
    """The access material; `check` the URL that it goes to. None: the credential has none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Mutable metadata of the credential."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Immutable attributes of the credential."""
    host: HostConfigSummary = field(default_factory=HostConfigSummary, metadata=APART)
    """Host configuration."""
    base_url: str = ""
    """Base URL of the provider in the configuration."""
    proxy_url: str = ""
    """Proxy of this credential."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """As in ModelRegistrationRequest."""


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """Models of a provider."""

    models: Sequence[ModelInfo] = field(default=(), metadata=of(ModelInfo))
    """All of them; none takes the credential's models away."""
    provider: str = ""
    """Provider key; empty: the request's. Another one passes the question on to the next plugin."""
    auth_update: AuthData | None = field(default=None, metadata=APART)
    """What the plugin learned of the credential on the way."""


class ModelRegistrar(Plugin):
    """A plugin that registers models."""

    capability_flag: ClassVar = "model_registrar"

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        """Return the plugin's models."""
        raise NotImplementedError


class ModelProvider(Plugin):
    """A plugin that knows the models of a provider."""

    capability_flag: ClassVar = "model_provider"

    async def static_models(self, request: StaticModelRequest) -> ModelResponse:
        """Return the models that every credential has."""
        return ModelResponse()

    async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
        """Return the models of one credential."""
        raise NotImplementedError
