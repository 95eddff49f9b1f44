"""
The configuration model: what `patchbay.yaml` may say, and what it says when it says nothing.

The operator builds the same model from CRs. Immutable; durations are float seconds and sizes are bytes.
The string below a field is its description in the JSON Schema and in docs/configuration.md. Not here:
reading files and environment (file.py, environment.py), what is set per process (settings.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from patchbay_gateway.kernel.config.fields import Address, File, Glob, Name, ProxyUrl, Url
from patchbay_gateway.kernel.config.quantities import (
    Duration,
    Size,
    duration,
    size,
)
from patchbay_gateway.kernel.config.secrets import resolve_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

BUILTIN_PLUGINS: Final = ("openai-compatible", "echo")
"""Executor plugins that this release serves itself."""

CAPABILITIES: Final = frozenset({
    "model_registrar", "model_provider", "auth_provider", "frontend_auth_provider",
    "frontend_auth_provider_exclusive", "scheduler", "model_router", "executor",
    "request_translator", "request_normalizer", "request_interceptor", "request_lifecycle_plugin",
    "response_translator", "response_before_translator", "response_after_translator",
    "response_interceptor", "response_stream_interceptor", "thinking_applier", "usage_plugin",
    "command_line_plugin", "management_api",
})  # fmt: skip
"""Capability flags, as a plugin declares them."""


class _Model(BaseModel):
    """Unknown keys are errors; nothing changes after loading; no value is ever in a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _exactly_one(model: BaseModel, names: Iterable[str], *, optional: bool = False) -> None:
    """Raise ValueError unless one of the fields *names* is set."""
    names = tuple(names)
    given = [n for n in names if getattr(model, n) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
    if not given and not optional:
        raise ValueError(f"needs one of {', '.join(names)}")


class Key(_Model):
    """A key that opens Patchbay: given as one of key, key_env, key_file and hash."""

    name: Name
    """Shown in logs, usage and management; unique."""
    key: str | None = Field(default=None, min_length=8, repr=False)
    """The key itself; prefer the others."""
    key_env: str | None = None
    """Environment variable that holds it."""
    key_file: File | None = None
    """File that holds it; a relative path starts at the configuration file."""
    hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest of a key that Patchbay generated: hex HMAC-SHA-256 under the cluster root."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(self, ("key", "key_env", "key_file", "hash"))
        return self

    def resolve(self, environ: Mapping[str, str]) -> str | None:
        """Return the plain key, None if only its hash is known; ConfigError if it is missing."""
        return resolve_secret(
            self.key, self.key_env, self.key_file, environ, where=f"key {self.name}"
        )


class ClientKey(Key):
    """A key that Patchbay gave to one of its clients."""

    models: tuple[Glob, ...] = ("*",)
    """Globs over the model names that it may use."""
    tenant: Name = "default"
    """Whom its usage is counted for."""


class ManagementKey(Key):
    """A key for the management API."""


class ModelSpec(_Model):
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


class Retry(_Model):
    """How often a request is tried again; never after the first byte of an answer."""

    rounds: int = Field(default=0, ge=0, le=100)
    """Extra rounds over all credentials."""
    max_credentials: int = Field(default=0, ge=0)
    """Credentials tried in a round; 0 means all."""
    max_wait: Duration = duration("0s")
    """Longest wait for a cooldown to end between rounds."""


class RetryOverride(_Model):
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


class OnDisconnect(_Model):
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


class OAuth2(_Model):
    """An OAuth 2 credential: a refresh token and where it is exchanged."""

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
    scopes: tuple[str, ...] = ()
    """Scopes to ask for."""

    @model_validator(mode="after")
    def _sources(self) -> Self:
        names = ("refresh_token", "refresh_token_env", "refresh_token_file")
        _exactly_one(self, names)
        names = ("client_secret", "client_secret_env", "client_secret_file")
        _exactly_one(self, names, optional=True)
        return self


class Credential(_Model):
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

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(self, ("api_key", "api_key_env", "api_key_file", "oauth2"), optional=True)
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


class Provider(_Model):
    """An upstream: one API behind one executor plugin, with a pool of credentials."""

    name: Name
    """Unique; usage and affinity are counted under it."""
    plugin: Name
    """Executor plugin id: a built-in, or one of `plugins`."""
    base_url: Url | None = None
    """Where its API begins, with the version, as https://api.openai.com/v1."""
    models: tuple[ModelSpec, ...] = ()
    """What clients may ask it for."""
    proxy_url: ProxyUrl | None = None
    """Proxy for its calls: http, https or socks5; `direct` ignores HTTPS_PROXY."""
    retry: RetryOverride = RetryOverride()
    """Overrides of `routing.retry`."""
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


class RouteTarget(_Model):
    """One way to serve a route."""

    provider: Name
    """Name of a provider."""
    model: str = Field(min_length=1)
    """Model as that provider names it."""


class Route(_Model):
    """A ModelRoute: a model name of one's own and what stands behind it."""

    name: str = Field(min_length=1)
    """What clients ask for."""
    targets: tuple[RouteTarget, ...] = Field(min_length=1)
    """Ways to serve it."""
    fallbacks: tuple[str, ...] = ()
    """Routes or models tried when no target can serve."""


class Match(_Model):
    """Which requests a plugin sees: all given keys must match, an empty one matches any."""

    formats: tuple[Glob, ...] = ()
    """Globs over the dialect."""
    models: tuple[Glob, ...] = ()
    """Globs over the model name."""
    routes: tuple[Glob, ...] = ()
    """Globs over the name of the route."""
    client_keys: tuple[Glob, ...] = ()
    """Globs over the name of the client key."""


class HttpAccess(_Model):
    """HTTP through the gateway."""

    hosts: tuple[Glob, ...] = ()
    """Globs over hosts that it may call."""


class HostAccess(_Model):
    """What a plugin may ask of the gateway."""

    models: bool = False
    """May run models."""
    http: HttpAccess = HttpAccess()
    """May call HTTP hosts."""
    auths: Literal["none", "own", "all"] = "none"
    """Whose credentials it may read."""


class Plugin(_Model):
    """A plugin that runs elsewhere; with the id of a built-in it takes its place."""

    id: Name
    """As the plugin names itself; unique."""
    address: Address
    """host:port of its gRPC server; every address of the host is used."""
    priority: int = 0
    """Larger first; ties by id."""
    enabled: bool = True
    """Switches it off without losing the entry."""
    config: dict[str, Any] = {}
    """Its own configuration; Patchbay passes it on as YAML and does not look inside."""
    match: Match = Match()
    """Which requests it sees."""
    capabilities: tuple[str, ...] = ()
    """Which of its capabilities are used; empty means all that it declares."""
    failure_policies: dict[str, Literal["Fail", "Ignore"]] = {}
    """Capability to `Fail` or `Ignore`."""
    timeouts: dict[str, Duration] = {}
    """Capability to deadline."""
    host_access: HostAccess = HostAccess()
    """What it may ask of the gateway."""
    public: bool = False
    """Serve its resource pages on the client port."""

    @field_validator("capabilities", "failure_policies", "timeouts", mode="after")
    @classmethod
    def _known_capabilities(cls, value: Any) -> Any:
        if unknown := sorted(set(value) - CAPABILITIES):
            raise ValueError(
                f"unknown capability {', '.join(unknown)}; known: {', '.join(sorted(CAPABILITIES))}"
            )
        return value

    def config_yaml(self) -> str:
        """Return `config` as the YAML that the plugin receives; empty when there is none."""
        return yaml.safe_dump(self.config, sort_keys=True) if self.config else ""


class Affinity(_Model):
    """Keeps a session on its credential."""

    enabled: bool = False
    """Switches it on."""
    ttl: Duration = duration("1h")
    """How long a quiet session keeps its credential."""


class Routing(_Model):
    """How a credential is chosen."""

    strategy: Literal["round-robin", "weighted-round-robin", "fill-first"] = "round-robin"
    """Choice among credentials of the same priority."""
    retry: Retry = Retry()
    """How often a request is tried again."""
    affinity: Affinity = Affinity()
    """Session affinity."""
    force_model_prefix: bool = False
    """Models of a credential with a prefix are reachable only with it."""


class Streaming(_Model):
    """Limits of answers, and their keep-alive; 0 switches one off."""

    first_byte_grace: Duration = duration("20s")
    """How long the status waits for an upstream before a keep-alive commits it."""
    keepalive: Duration = duration("15s")
    """Silence after which a stream gets a keep-alive."""
    nonstream_keepalive: Duration = duration("0s")
    """The same for answers that do not stream: white space before the body."""
    first_byte_timeout: Duration = duration("120s")
    """Longest wait for the first byte of an upstream."""
    idle_timeout: Duration = duration("300s")
    """Longest silence of an upstream after it."""
    write_stall: Duration = duration("120s")
    """How long a client may take nothing."""


class HeaderRules(_Model):
    """Response headers."""

    passthrough: bool = False
    """Pass on the upstream's response headers that are safe to pass."""
    patchbay: bool = True
    """Send x-patchbay-model, -provider, -attempts and -overhead-ms."""


class Limits(_Model):
    """Bounds of one process."""

    body: Size = size("32MiB")
    """Largest request body, also after decompression."""
    in_flight: Size = size("256MiB")
    """All request bodies at once; above it the answer is 503."""


class UsageConfig(_Model):
    """The ledger."""

    database_url: str | None = None
    """SQLAlchemy URL, `sqlite:///…` or `postgresql://…`; absent: a file in the data directory."""
    prices: File | None = None
    """Prices per model; absent: costs are 0."""


class Config(_Model):
    """The whole of `patchbay.yaml`."""

    client_keys: tuple[ClientKey, ...] = ()
    """Who may use the gateway. None: only `patchbay up` on loopback answers."""
    management_keys: tuple[ManagementKey, ...] = ()
    """Who may use the management API."""
    providers: tuple[Provider, ...] = ()
    """Upstreams."""
    routes: tuple[Route, ...] = ()
    """Model names of one's own."""
    plugins: tuple[Plugin, ...] = ()
    """Plugins that run elsewhere."""
    routing: Routing = Routing()
    """How a credential is chosen."""
    streaming: Streaming = Streaming()
    """Limits of answers, and their keep-alive."""
    headers: HeaderRules = HeaderRules()
    """Response headers."""
    limits: Limits = Limits()
    """Bounds of one process."""
    auth_dir: File | None = None
    """A directory of credential files in the format of CLIProxyAPI."""
    usage: UsageConfig = UsageConfig()
    """The ledger."""

    @property
    def public_models(self) -> frozenset[str]:
        """Every model name that clients can ask for, with and without prefix."""
        names = {route.name for route in self.routes}
        for provider in self.providers:
            prefixes = {c.prefix for c in provider.credentials if c.prefix}
            for model in provider.models:
                names.add(model.public)
                names.update(f"{prefix}/{model.public}" for prefix in prefixes)
        return frozenset(names)
