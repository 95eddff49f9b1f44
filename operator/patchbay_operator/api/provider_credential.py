"""
ProviderCredential: one account or key at a provider.

The provider's own fields stand on each of its credentials, and must agree. Not here: what the scheduler
reads of it, which is only a reference to the Secret.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from patchbay_operator.api.fields import (
    Duration,
    Fields,
    Glob,
    Model,
    Name,
    ObjectName,
    ProxyUrl,
    SecretKey,
    SecretRef,
    Url,
    rules,
)
from patchbay_operator.api.status import Status


class ModelSpec(Fields):
    """A model of the provider."""

    name: Model
    """As the provider names it."""
    alias: Annotated[str, Field(max_length=256)] = ""
    """What clients call it; empty means the name."""


class Retry(Fields):
    """Overrides of the gateway's own values."""

    rounds: Annotated[int, Field(ge=0, le=100)] | None = None
    """Extra rounds over all credentials."""
    max_credentials: Annotated[int, Field(ge=0)] | None = None
    """Credentials tried in a round; 0 means all."""
    max_wait: Duration | None = None
    """Longest wait for a cooldown to end between rounds."""


class Cooldown(Fields):
    """What a failure of a credential costs it."""

    scope: Literal["model", "credential"] | None = None
    """What rests: the model on this credential, or the credential; absent: as the failure says."""
    backoff: Duration = "1s"
    """First rest, doubled with each failure."""
    max: Duration = "30m"
    """Longest rest."""
    max_retry_after: Duration = "1h"
    """Longest rest that a provider can ask for."""
    transient: Duration = "60s"
    """Rest after a failure of the provider itself."""
    enabled: bool = True
    """Whether failures cost anything."""
    probe: bool = True
    """Whether one request tries it before the rest ends."""


class ErrorRule(Fields):
    """What an answer of the provider means."""

    status: Annotated[int, Field(ge=100, le=599)]
    """Status of the answer."""
    match: Annotated[tuple[Glob, ...], Field(max_length=16)] = ()
    """Texts of which the body has one; with none here and none in matchRegex the status is enough."""
    match_regex: Annotated[tuple[Glob, ...], Field(max_length=16)] = ()
    """Regular expressions of which one matches the body."""
    action: Literal["stop", "stop-and-cooldown", "continue", "continue-and-cooldown"]
    """Whether another credential is tried, and whether this one rests."""


class OnDisconnect(Fields):
    """What happens upstream when the client leaves."""

    drain: Duration = "0s"
    """How long to go on reading for the usage; 0s cancels at once."""


class RefreshTokenRef(Fields):
    """The refresh token: a seed, read again only when it changes."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "refresh-token"
    """Key in its data."""


class ClientSecretRef(Fields):
    """The client secret."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "client-secret"
    """Key in its data."""


class OAuth2(Fields):
    """OAuth 2: a refresh token and where it is exchanged."""

    token_url: Url
    """Token endpoint."""
    client_id: Annotated[str, Field(min_length=1, max_length=512)]
    """Client id at the provider."""
    client_secret_ref: ClientSecretRef | None = None
    """Client secret."""
    refresh_token_ref: RefreshTokenRef
    """Refresh token to begin with; rotated ones go to a Secret of the operator."""
    scopes: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=64)] = ()
    """Scopes to ask for."""
    extra: Annotated[
        dict[str, Annotated[str, Field(max_length=2048)]],
        Field(json_schema_extra={"maxProperties": 16}),
    ] = {}
    """More parameters of the token request."""
    refresh_lead: Duration = "5m"
    """How long before its end an access token is replaced."""
    client_auth: Literal["body", "basic"] = "body"
    """How the client names itself at the token endpoint."""
    plugin: Name = "oauth2"
    """Auth provider that refreshes it: the built-in, or a Plugin."""


class ProviderCredentialSpec(Fields):
    """One credential, and its provider."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!(has(self.secretRef) && has(self.oauth2))",
                "secretRef and oauth2 exclude each other; keep one",
            ),
            (
                "self.plugin != 'openai-compatible' || has(self.baseUrl)",
                "openai-compatible needs baseUrl, as https://api.openai.com/v1",
            ),
            (
                "self.provider == oldSelf.provider",
                (
                    "provider cannot be changed: usage is counted under it; create another "
                    "ProviderCredential"
                ),
            ),
        )
    )

    provider: Name
    """Name of the provider; usage and affinity are counted under it. It cannot be changed."""
    plugin: Name
    """Executor plugin: a built-in (openai-compatible, claude, gemini, echo) or the id of a Plugin."""
    base_url: Url | None = None
    """Where its API begins, with the version, as https://api.openai.com/v1."""
    models: Annotated[tuple[ModelSpec, ...], Field(max_length=512)] = ()
    """What clients may ask it for."""
    retry: Retry = Retry()
    """Overrides of the gateway's retry rules."""
    on_disconnect: OnDisconnect = OnDisconnect()
    """What happens upstream when the client leaves."""
    include_usage: bool = True
    """Ask streams in the OpenAI dialect for usage."""
    attempt_header: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """Request header that carries the id of the attempt."""
    token_factor: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Factor of the estimate bytes / 4 where the provider tells no usage."""
    cooldown: Cooldown = Cooldown()
    """What a failure costs a credential."""
    errors: Annotated[tuple[ErrorRule, ...], Field(max_length=64)] = ()
    """What answers mean, where that is not what their status says."""

    secret_ref: SecretRef | None = None
    """The key; read again when the Secret changes."""
    oauth2: OAuth2 | None = Field(default=None, alias="oauth2")
    """OAuth 2 instead of a key."""
    priority: int = 0
    """Larger first."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Share among equals where the strategy weighs."""
    prefix: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Its models are also called prefix/name."""
    proxy_url: ProxyUrl | None = None
    """Proxy of its calls: http or https; socks5 where its plugin knows it. direct ignores HTTPS_PROXY."""
    max_in_flight: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Calls at once; 0 means no bound."""
    disabled: bool = False
    """Keeps it out of use."""
    excluded_models: Annotated[tuple[Glob, ...], Field(max_length=256)] = ()
    """Globs over models that it does not serve."""


PROVIDER_FIELDS = (
    "plugin",
    "base_url",
    "models",
    "retry",
    "on_disconnect",
    "include_usage",
    "attempt_header",
    "token_factor",
    "cooldown",
    "errors",
)
"""Fields on which all credentials of one provider must agree."""


class ProviderCredentialStatus(Status):
    """What is known of it; never anything of the material."""

    auth_index: Annotated[str, Field(max_length=12)] | None = None
    """Its opaque short name in logs and metrics."""
    expires_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When its access token ends."""
    cooling_until: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """Until when it rests, or the last of coolingModels does."""
    cooling_models: Annotated[tuple[Model, ...], Field(max_length=32)] = ()
    """Models that rest; absent with coolingUntil: all of them."""
    last_error: Annotated[str, Field(max_length=1024)] | None = None
    """What the provider last complained about, until an attempt succeeds."""
