"""
The configuration model: what `patchbay.yaml` may say, and what it says when it says nothing.

The operator builds the same model from CRs. Immutable; durations are float seconds and sizes are bytes.
The string below a field is its description in the JSON Schema and in docs/configuration.md. Here: the whole,
keys and process-wide limits; its parts are in providers.py, routing.py and plugins.py. Not here:
reading files and environment (file.py, environment.py), what is set per process (settings.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from patchbay_gateway.kernel.config.fields import File, Glob, Name
from patchbay_gateway.kernel.config.plugins import Plugin
from patchbay_gateway.kernel.config.providers import Provider
from patchbay_gateway.kernel.config.quantities import Duration, Size, duration, size
from patchbay_gateway.kernel.config.routing import Route, Routing
from patchbay_gateway.kernel.config.secrets import resolve_secret
from patchbay_gateway.kernel.config.section import Section, exactly_one

if TYPE_CHECKING:
    from collections.abc import Mapping


class Key(Section):
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
        exactly_one(self, ("key", "key_env", "key_file", "hash"))
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


class Streaming(Section):
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
    end_grace: Duration = duration("2s")
    """How long an answer that has had its last event waits for its upstream to end it."""
    write_stall: Duration = duration("120s")
    """How long a client may take nothing."""


class HeaderRules(Section):
    """Response headers."""

    passthrough: bool = False
    """Pass on the upstream's response headers that are safe to pass."""
    patchbay: bool = True
    """Send x-patchbay-model, -provider, -attempts and -overhead-ms."""


class Limits(Section):
    """Bounds of one process."""

    body: Size = size("32MiB")
    """Largest request body, also after decompression."""
    in_flight: Size = size("256MiB")
    """All request bodies at once; above it the answer is 503."""


class UsageConfig(Section):
    """The ledger."""

    database_url: str | None = None
    """SQLAlchemy URL, `sqlite:///…` or `postgresql://…`; absent: a file in the data directory."""
    prices: File | None = None
    """Prices per model; absent: costs are 0."""


class Config(Section):
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
