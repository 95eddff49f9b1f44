"""
The snapshot: the immutable, versioned configuration that services run on (docs/adr/0006).

Plain data and its JSON form in sections, plus the model index derived from it. One request uses one
snapshot from beginning to end. No secrets: credentials appear by reference. Not here: how it is made from
a configuration (building.py) and how it travels (plugins/distribution.py).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTIONS: Final = ("plugins", "routes", "providers", "prices", "client_keys", "settings")

# Names that one route falls back to, those of its fallbacks included.
_FALLBACKS: Final = 16


class ModelEntry(msgspec.Struct, frozen=True):
    """One model of a provider."""

    name: str
    """As the provider names it."""
    alias: str = ""
    """Public name; empty means *name*."""
    told_by: str = ""
    """Id of the plugin that told it; empty: the configuration did."""

    @property
    def public(self) -> str:
        """The name that clients use."""
        return self.alias or self.name


class OAuth2Entry(msgspec.Struct, frozen=True):
    """What of an OAuth 2 credential is no secret."""

    token_url: str
    client_id: str
    scopes: tuple[str, ...] = ()
    client_auth: str = "body"
    """`body` or `basic`."""
    extra: dict[str, str] = {}
    """More fields of the token request."""
    refresh_lead: float = 300.0
    """Seconds before its end at which an access token is refreshed."""
    plugin: str = "oauth2"
    """Id of the auth provider."""
    authorization_url: str = ""
    """Where a login begins; empty: there is none by redirect."""
    authorization_extra: dict[str, str] = {}
    """More parameters of that address."""
    device_authorization_url: str = ""
    """Where a login on another device begins; empty: there is none."""


class CredentialEntry(msgspec.Struct, frozen=True):
    """One credential by reference."""

    id: str
    auth_index: str
    """First 12 hex digits of SHA-256 of the id: opaque, stable."""
    kind: str
    """`api_key`, `oauth2` or `none` (the provider asks for nothing)."""
    version: int
    """Grows when the material changes; the publisher decides."""
    fingerprint: str = ""
    """HMAC of the material under the store root, so that a change is seen without showing it."""
    priority: int = 0
    weight: int = 1
    prefix: str = ""
    proxy_url: str = ""
    disabled: bool = False
    excluded_models: tuple[str, ...] = ()
    """Globs over public model names."""
    max_in_flight: int = 0
    """Most attempts at once over all schedulers; 0 means no limit."""
    oauth2: OAuth2Entry | None = None
    """Set for kind `oauth2`."""
    secrets: dict[str, str] = {}
    """Kubernetes: `api_key`, `refresh_token`, `client_secret` → `name/key` of the Secret that holds it."""
    brought_by: str = ""
    """Plugin that read it in a file, or brought it by a login or command; empty: declared."""
    file: str = ""
    """Auth file that a plugin read it in, relative to the directory."""
    shared: bool = False
    """Whether that file holds several: they are switched and removed together."""
    origin: str = ""
    """What brought it where no file did: `login`, `command`, …"""


class RetryEntry(msgspec.Struct, frozen=True):
    """`routing.retry`, or a provider's override. Seconds."""

    rounds: int = 0
    max_credentials: int = 0
    """0 means all."""
    max_wait: float = 0.0


class CoolingEntry(msgspec.Struct, frozen=True):
    """`providers[].cooldown`. Seconds."""

    enabled: bool = True
    """False: only what no waiting helps keeps a credential out of use."""
    scope: str = ""
    """`model`, `credential`, or empty: as the provider's answer says."""
    backoff: float = 1.0
    """First rest after a quota failure without Retry-After; doubles."""
    max: float = 1800.0
    """Longest rest by doubling."""
    max_retry_after: float = 3600.0
    """What a longer Retry-After counts as."""
    transient: float = 60.0
    """Rest after a passing failure; 0 means none."""
    probe: bool = True
    """Whether single attempts go through during a rest."""


class ErrorRuleEntry(msgspec.Struct, frozen=True):
    """One of `providers[].errors`: what an answer means here. The first that fits is taken."""

    status: int
    action: str
    """`stop`, `stop-and-cooldown`, `continue` or `continue-and-cooldown`."""
    match: tuple[str, ...] = ()
    """Texts of which one occurs in the body. Without any, and without `match_regex`, the status is enough."""
    match_regex: tuple[str, ...] = ()
    """Patterns of `re` of which one is found in the body."""


class ProviderEntry(msgspec.Struct, frozen=True):
    """One provider with its credentials."""

    name: str
    plugin: str
    base_url: str = ""
    models: tuple[ModelEntry, ...] = ()
    proxy_url: str = ""
    retry: RetryEntry = RetryEntry()
    drain: float = 0.0
    """Seconds to go on reading after the client left; 0 cancels at once (`on_disconnect`)."""
    include_usage: bool = True
    attempt_header: str = ""
    token_factor: float = 1.0
    """Factor of the estimate UTF-8 bytes / 4."""
    credentials: tuple[CredentialEntry, ...] = ()
    cooldown: CoolingEntry = CoolingEntry()
    errors: tuple[ErrorRuleEntry, ...] = ()


class AddressEntry(msgspec.Struct, frozen=True):
    """Where one revision of a plugin listens."""

    address: str
    """`host:port`; every A record of the host is an address of the pool."""
    revision: str = ""
    weight: int = 100


class PluginEntry(msgspec.Struct, frozen=True):
    """One plugin; the snapshot lists them by priority descending, then id."""

    id: str
    priority: int = 0
    enabled: bool = True
    builtin: bool = False
    """Served by the executors service; its address is each process's own setting."""
    addresses: tuple[AddressEntry, ...] = ()
    config: str = ""
    """YAML, opaque."""
    config_hash: str = ""
    """Hex SHA-256 of *config*."""
    match: dict[str, tuple[str, ...]] = {}
    capabilities: tuple[str, ...] = ()
    failure_policies: dict[str, str] = {}
    timeouts: dict[str, float] = {}
    host_access: dict[str, object] = {}
    public: bool = False


class TargetEntry(msgspec.Struct, frozen=True):
    """One way to serve a public model."""

    provider: str
    model: str
    """As the provider names it."""


class RouteEntry(msgspec.Struct, frozen=True):
    """A ModelRoute: a public name and its targets."""

    name: str
    targets: tuple[TargetEntry, ...]
    fallbacks: tuple[str, ...] = ()


class ClientKeyEntry(msgspec.Struct, frozen=True):
    """One client key, by digest."""

    name: str
    digest: str
    """Hex HMAC-SHA-256 of the key under the cluster root's client-key key (kernel/keys.py)."""
    models: tuple[str, ...] = ("*",)
    """Globs over public model names."""
    tenant: str = "default"


class PriceEntry(msgspec.Struct, frozen=True):
    """Prices of a model; the first match by order wins."""

    provider: str
    """Glob."""
    model: str
    """Glob over the upstream model name."""
    per_million: dict[str, int]
    """Unit → nano-units of currency per 10^6 of the unit."""


class StreamingEntry(msgspec.Struct, frozen=True):
    """`streaming`, seconds; 0 switches a limit or keep-alive off."""

    first_byte_grace: float = 20.0
    keepalive: float = 15.0
    nonstream_keepalive: float = 0.0
    first_byte_timeout: float = 120.0
    idle_timeout: float = 300.0
    end_grace: float = 2.0
    write_stall: float = 120.0


class AffinityEntry(msgspec.Struct, frozen=True):
    """`routing.affinity`."""

    enabled: bool = False
    ttl: float = 3600.0
    """Seconds that a quiet session keeps its credential."""


class QueueEntry(msgspec.Struct, frozen=True):
    """`routing.queue`: the wait for a credential that is at its `max_in_flight`."""

    length: int = 100
    """Most attempts that wait for the same credentials; 0 refuses at once."""
    wait: float = 5.0
    """Seconds, at most."""


class SettingsEntry(msgspec.Struct, frozen=True):
    """What is set once for the whole gateway."""

    strategy: str = "round-robin"
    """`round-robin`, `weighted-round-robin` or `fill-first`."""
    retry: RetryEntry = RetryEntry()
    affinity: AffinityEntry = AffinityEntry()
    queue: QueueEntry = QueueEntry()
    streaming: StreamingEntry = StreamingEntry()
    headers_passthrough: bool = False
    headers_patchbay: bool = True
    body_limit: int = 32 << 20
    in_flight_limit: int = 256 << 20
    force_model_prefix: bool = False
    open_access: bool = False
    """True: no client keys and answered without (only `patchbay up` on loopback)."""


class Snapshot(msgspec.Struct, frozen=True, dict=True):
    """One version of everything."""

    version: int
    plugins: tuple[PluginEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    providers: tuple[ProviderEntry, ...] = ()
    prices: tuple[PriceEntry, ...] = ()
    client_keys: tuple[ClientKeyEntry, ...] = ()
    settings: SettingsEntry = SettingsEntry()

    @functools.cached_property
    def provider_by_name(self) -> Mapping[str, ProviderEntry]:
        """Providers by name."""
        return {p.name: p for p in self.providers}

    @functools.cached_property
    def route_by_name(self) -> Mapping[str, RouteEntry]:
        """Routes by name."""
        return {r.name: r for r in self.routes}

    @functools.cached_property
    def credential_by_id(self) -> Mapping[str, CredentialEntry]:
        """Credentials of all providers by id."""
        return {c.id: c for p in self.providers for c in p.credentials}

    @functools.cached_property
    def provider_of(self) -> Mapping[str, ProviderEntry]:
        """Credential id → its provider."""
        return {c.id: p for p in self.providers for c in p.credentials}

    @functools.cached_property
    def enabled_credentials(self) -> Mapping[str, int]:
        """Provider name → how many of its credentials are enabled."""
        return {p.name: sum(not c.disabled for c in p.credentials) for p in self.providers}

    @functools.cached_property
    def fallbacks(self) -> Mapping[str, tuple[str, ...]]:
        """Route name → public names tried when no target can serve, in order, theirs behind them."""
        found: dict[str, tuple[str, ...]] = {}
        for route in self.routes:
            if not route.fallbacks:
                continue
            names: list[str] = []
            waiting = list(route.fallbacks)
            while waiting and len(names) < _FALLBACKS:
                name = waiting.pop(0)
                if name == route.name or name in names or name not in self.targets:
                    continue
                names.append(name)
                if (further := self.route_by_name.get(name)) is not None:
                    waiting.extend(further.fallbacks)
            found[route.name] = tuple(names)
        return found

    @functools.cached_property
    def plugin_by_id(self) -> Mapping[str, PluginEntry]:
        """Enabled plugins by id."""
        return {p.id: p for p in self.plugins if p.enabled}

    @functools.cached_property
    def client_key_by_digest(self) -> Mapping[str, ClientKeyEntry]:
        """Client keys by digest."""
        return {k.digest: k for k in self.client_keys}

    @functools.cached_property
    def route_names(self) -> frozenset[str]:
        """Names of the routes."""
        return frozenset(route.name for route in self.routes)

    @functools.cached_property
    def targets(self) -> Mapping[str, tuple[TargetEntry, ...]]:
        """
        Public model name → ways to serve it.

        A route of that name wins over provider models of that name. A credential's `prefix` adds
        `prefix/name`, and with `force_model_prefix` it takes the plain name away.
        """
        found: dict[str, list[TargetEntry]] = {}
        for provider in self.providers:
            prefixes = {c.prefix for c in provider.credentials if c.prefix}
            plain = not self.settings.force_model_prefix or any(
                not c.prefix for c in provider.credentials
            )
            for model in provider.models:
                target = TargetEntry(provider.name, model.name)
                names = [f"{prefix}/{model.public}" for prefix in sorted(prefixes)]
                if plain:
                    names.append(model.public)
                for name in names:
                    found.setdefault(name, []).append(target)
        for route in self.routes:
            found[route.name] = list(route.targets)
        return {name: tuple(targets) for name, targets in found.items()}
