"""What a plugin is told of the host's configuration (pluginapi: HostConfigSummary). Never secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.plugin.v1 import host_config_pb2


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """One configured alias."""

    name: str
    """Model as the provider names it."""
    alias: str
    """Name that clients use."""


@dataclass(frozen=True, slots=True)
class HostConfigSummary:
    """Host configuration relevant to plugin providers."""

    auth_dir: str = ""
    """Directory of auth files; empty where credentials are kept elsewhere."""
    proxy_url: str = ""
    """Proxy for upstream calls; empty: the process's environment decides."""
    force_model_prefix: bool = False
    """Whether models are offered under their credential's prefix only."""
    oauth_model_alias: Mapping[str, Sequence[ModelAlias]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Provider → aliases."""
    excluded_models: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Provider → model names that the configuration hides; globs."""


def read_host_config(message: host_config_pb2.HostConfigSummary) -> HostConfigSummary:
    """Return the dataclass of a message."""
    return HostConfigSummary(
        auth_dir=message.auth_dir,
        proxy_url=message.proxy_url,
        force_model_prefix=message.force_model_prefix,
        oauth_model_alias={
            provider: tuple(ModelAlias(a.name, a.alias) for a in aliases.aliases)
            for provider, aliases in message.oauth_model_alias.items()
        },
        excluded_models={
            provider: tuple(names.values) for provider, names in message.excluded_models.items()
        },
    )
