"""
The configuration of plugins: the built-in ones by name, and those that run elsewhere.

Not here: executors' providers and their credentials (providers.py).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import yaml
from pydantic import Field, field_validator

from patchbay_gateway.kernel.config.fields import Address, Glob, Name
from patchbay_gateway.kernel.config.quantities import Duration
from patchbay_gateway.kernel.config.section import Section

BUILTIN_PLUGINS: Final = ("openai-compatible", "claude", "gemini", "oauth2", "echo")
"""Plugins that this release serves itself: executors, and the auth provider `oauth2`."""

DEFAULT_BASE_URLS: Final = {
    "claude": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}
"""Where the APIs of built-in executors are when a provider does not say."""

AUTH_PROVIDERS: Final = frozenset({"oauth2"})
"""Built-in plugins that execute nothing, so that no provider can name them."""

CAPABILITIES: Final = frozenset({
    "model_registrar", "model_provider", "auth_provider", "frontend_auth_provider",
    "frontend_auth_provider_exclusive", "scheduler", "model_router", "executor",
    "request_translator", "request_normalizer", "request_interceptor", "request_lifecycle_plugin",
    "response_translator", "response_before_translator", "response_after_translator",
    "response_interceptor", "response_stream_interceptor", "thinking_applier", "usage_plugin",
    "command_line_plugin", "management_api",
})  # fmt: skip
"""Capability flags, as a plugin declares them."""


class Match(Section):
    """Which requests a plugin sees: all given keys must match, an empty one matches any."""

    formats: tuple[Glob, ...] = ()
    """Globs over the dialect."""
    models: tuple[Glob, ...] = ()
    """Globs over the model name."""
    routes: tuple[Glob, ...] = ()
    """Globs over the name of the route."""
    client_keys: tuple[Glob, ...] = ()
    """Globs over the name of the client key."""


class HttpAccess(Section):
    """HTTP through the gateway."""

    hosts: tuple[Glob, ...] = ()
    """Globs over hosts that it may call."""


class HostAccess(Section):
    """What a plugin may ask of the gateway."""

    models: bool = False
    """May run models."""
    http: HttpAccess = HttpAccess()
    """May call HTTP hosts."""
    auths: Literal["none", "own", "all"] = "none"
    """Whose credentials it may read."""


class Plugin(Section):
    """A plugin that runs elsewhere; with the id of a built-in it takes its place."""

    id: Name
    """As the plugin names itself; unique."""
    address: Address
    """host:port of its gRPC server; every address of the host is used."""
    priority: int = 0
    """Larger first; ties by id."""
    enabled: bool = True
    """Switches it off without losing the entry."""
    config: dict[str, Any] = Field(default={})
    """Its own configuration; Patchbay passes it on as YAML and does not look inside."""
    match: Match = Match()
    """Which requests it sees."""
    capabilities: tuple[str, ...] = ()
    """Which of its capabilities are used; empty means all that it declares."""
    failure_policies: dict[str, Literal["Fail", "Ignore"]] = Field(default={})
    """Capability to `Fail` or `Ignore`."""
    timeouts: dict[str, Duration] = Field(default={})
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
