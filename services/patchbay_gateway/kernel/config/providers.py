"""
The configuration of providers: where their APIs are, what they serve, and the pool of credentials of each.

Not here: how a credential is chosen (routing.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from patchbay_gateway.kernel.config.fields import File, Glob, Name, ProxyUrl, Url
from patchbay_gateway.kernel.config.plugins import DEFAULT_BASE_URLS
from patchbay_gateway.kernel.config.quantities import Duration, duration
from patchbay_gateway.kernel.config.secrets import resolve_secret
from patchbay_gateway.kernel.config.section import Section, exactly_one

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

    from patchbay_gateway.kernel.config.routing import Retry


class ModelSpec(Section):
    """A model of a provider: its name, or name and alias."""

    name: str = Field(min_length=1)
    """As the provider names it."""
    alias: str = ""
    """What clients call it; empty means the name."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core_schema))]}

    @property
    def public(self) -> str:
        """The name that clients use."""
        return self.alias or self.name


class RetryOverride(Section):
    """A provider's own values; what is absent is taken from `routing.retry`."""

    rounds: int | None = Field(default=None, ge=0, le=100)
    """Overrides `routing.retry.rounds`."""
    max_credentials: int | None = Field(default=None, ge=0)
    """Overrides `routing.retry.max_credentials`."""
    max_wait: Duration | None = None
    """Overrides `routing.retry.max_wait`."""

    def over(self, default: Retry) -> Retry:
        """Return *default* with what is set here."""
        return default.model_copy(update=self.model_dump(exclude_none=True))


class OnDisconnect(Section):
    """What happens upstream when the client leaves: `cancel`, or `drain: 10s`."""

    drain: Duration = duration("0s")
    """How long to go on reading; 0 cancels at once."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if value == "cancel":
            return {}
        if isinstance(value, str) and value.startswith("drain:"):
            return {"drain": value.removeprefix("drain:").strip()}
        if not isinstance(value, dict | OnDisconnect):
            raise ValueError("write cancel, or {drain: 10s}")  # noqa: TRY004 - pydantic's way
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        text = {"type": "string", "pattern": r"^(cancel|drain: *\S+)$"}
        return {"anyOf": [text, handler.resolve_ref_schema(handler(core_schema))]}


class OAuth2(Section):
    """An OAuth 2 credential: where its tokens are exchanged, and a refresh token unless it logs in."""

    token_url: Url
    """Token endpoint."""
    client_id: str = Field(min_length=1)
    """Client id at the provider."""
    client_secret: str | None = Field(default=None, repr=False)
    """Client secret; prefer the others."""
    client_secret_env: str | None = None
    """Environment variable that holds it."""
    client_secret_file: File | None = None
    """File that holds it."""
    refresh_token: str | None = Field(default=None, repr=False)
    """Refresh token; prefer the others."""
    refresh_token_env: str | None = None
    """Environment variable that holds it."""
    refresh_token_file: File | None = None
    """File that holds it."""
    access_token_env: str | None = None
    """Environment variable that holds an access token to begin with."""
    access_token_file: File | None = None
    """File that holds an access token to begin with."""
    scopes: tuple[str, ...] = ()
    """Scopes to ask for."""
    client_auth: Literal["body", "basic"] = "body"
    """How client id and secret go to the token endpoint: form fields, or HTTP basic."""
    extra: dict[str, str] = Field(default={})
    """More fields of the token request; no secrets, services read them in the snapshot."""
    refresh_lead: Duration = duration("5m")
    """How long before its end an access token is refreshed, at most a quarter of its life."""
    plugin: Name = "oauth2"
    """Auth provider that refreshes it: the built-in, or one of `plugins`."""
    authorization_url: Url | None = None
    """Where `patchbay login` sends a person, for a login by redirect."""
    authorization_extra: dict[str, str] = Field(default={})
    """More parameters of that address."""
    device_authorization_url: Url | None = None
    """Where `patchbay login --device` begins, for a login on another device."""

    @model_validator(mode="after")
    def _sources(self) -> Self:
        names = ("refresh_token", "refresh_token_env", "refresh_token_file")
        exactly_one(self, names, optional=self._logs_in())
        names = ("client_secret", "client_secret_env", "client_secret_file")
        exactly_one(self, names, optional=True)
        exactly_one(self, ("access_token_env", "access_token_file"), optional=True)
        return self

    def _logs_in(self) -> bool:
        """Whether a login can bring the refresh token; other auth providers know themselves."""
        return bool(
            self.authorization_url or self.device_authorization_url or self.plugin != "oauth2"
        )


class Credential(Section):
    """One account or key at a provider; without any source it sends no key."""

    id: Name
    """Stable, unique over all providers; usage is counted under it."""
    api_key: str | None = Field(default=None, repr=False)
    """The key itself; prefer the others."""
    api_key_env: str | None = None
    """Environment variable that holds it."""
    api_key_file: File | None = None
    """File that holds it; read again when it changes."""
    oauth2: OAuth2 | None = None
    """OAuth 2 instead of a key."""
    priority: int = 0
    """Larger first."""
    weight: int = Field(default=1, ge=0, le=1_000_000)
    """Share among equals where the strategy weighs; 0 takes no part in it."""
    prefix: str | None = Field(default=None, min_length=1)
    """Its models are also called `prefix/name`."""
    proxy_url: ProxyUrl | None = None
    """Overrides the provider's."""
    disabled: bool = False
    """Keeps it out of use."""
    excluded_models: tuple[Glob, ...] = ()
    """Globs over models that it does not serve."""
    max_in_flight: int = Field(default=0, ge=0, le=1_000_000)
    """Most attempts at once over all schedulers; 0 means no limit."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        exactly_one(self, ("api_key", "api_key_env", "api_key_file", "oauth2"), optional=True)
        return self

    @property
    def kind(self) -> str:
        """`api_key`, `oauth2` or `none`."""
        if self.oauth2 is not None:
            return "oauth2"
        keyed = self.api_key or self.api_key_env or self.api_key_file
        return "api_key" if keyed is not None else "none"

    def resolve(self, environ: Mapping[str, str]) -> str | None:
        """Return the API key, None if it has none; ConfigError if its source is missing."""
        return resolve_secret(
            self.api_key,
            self.api_key_env,
            self.api_key_file,
            environ,
            where=f"credential {self.id}",
        )


class Cooldown(Section):
    """How long a credential rests after a failure that is its own or its provider's."""

    enabled: bool = True
    """false: only what no waiting helps keeps a credential out of use."""
    scope: Literal["model", "credential"] | None = None
    """What rests after a failure: the model on this credential, or all of the credential; null: \
as the provider's answer says."""
    backoff: Duration = duration("1s")
    """First rest after a quota failure without Retry-After; doubles with each one that follows."""
    max: Duration = duration("30m")
    """Longest rest by doubling."""
    max_retry_after: Duration = duration("1h")
    """What a longer Retry-After counts as."""
    transient: Duration = duration("60s")
    """Rest after a passing failure of the provider (408, 500, 502, 503, 504); 0 means none."""
    probe: bool = True
    """Let single attempts through during a long rest, to see whether it is over."""


class ErrorRule(Section):
    """
    What one answer of the provider means, in place of what Patchbay makes of it.

    The first rule whose status is the answer's and whose texts occur in its body is taken.
    """

    status: int = Field(ge=100, le=599)
    """HTTP status of the provider's answer."""
    match: tuple[Glob, ...] = ()
    """Texts of which one occurs in the body, in this case; with none here and none in \
`match_regex`, the status is enough."""
    match_regex: tuple[Glob, ...] = ()
    """Regular expressions of which one is found in the body."""
    action: Literal["stop", "stop-and-cooldown", "continue", "continue-and-cooldown"]
    """Answer the client now or try elsewhere; with or without a rest for the credential."""

    @field_validator("match_regex", mode="after")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


class Provider(Section):
    """An upstream: one API behind one executor plugin, with a pool of credentials."""

    name: Name
    """Unique; usage and affinity are counted under it."""
    plugin: Name
    """Executor plugin id: a built-in, or one of `plugins`."""
    base_url: Url | None = None
    """Where its API begins: with the version for openai-compatible (https://api.openai.com/v1), with \
or without it for claude and gemini, which also have a default."""
    models: tuple[ModelSpec, ...] = ()
    """What clients may ask it for."""
    proxy_url: ProxyUrl | None = None
    """Proxy for its calls: http or https; no built-in knows socks5. `direct` ignores HTTPS_PROXY. User and \
password as `${PROXY_AUTH}@`, a variable of the executors: written out they lie in clear in Redis."""
    retry: RetryOverride = RetryOverride()
    """Overrides of `routing.retry`."""
    cooldown: Cooldown = Cooldown()
    """How long credentials rest after failures."""
    errors: tuple[ErrorRule, ...] = ()
    """Answers that mean something else here than they usually do."""
    on_disconnect: OnDisconnect = Field(
        default=OnDisconnect(), json_schema_extra={"default": "cancel"}
    )
    """`cancel`, or `drain: 10s` to go on reading for the usage when the client leaves."""
    include_usage: bool = True
    """Ask streams in the OpenAI dialect for usage, and take it out if the client did not ask."""
    attempt_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$")
    """Request header that carries the id of the attempt; off by default."""
    token_factor: float = Field(default=1.0, gt=0, le=100)
    """Factor of the estimate bytes / 4 where the provider tells no usage."""
    credentials: tuple[Credential, ...] = ()
    """The pool; empty means that calls carry no key."""

    @model_validator(mode="after")
    def _base_url(self) -> Self:
        if self.plugin == "openai-compatible" and self.base_url is None:
            raise ValueError("openai-compatible needs base_url, as https://api.openai.com/v1")
        return self

    @property
    def api_url(self) -> str:
        """`base_url`, or where a built-in executor's API is; empty when neither says."""
        return self.base_url or DEFAULT_BASE_URLS.get(self.plugin, "")
