"""
Configuration: the model of `patchbay.yaml`, its loader, and the settings of one process.

This file is the package's face; import from here. Nothing below knows a service.
"""

from patchbay_gateway.kernel.config.clear_text import in_clear
from patchbay_gateway.kernel.config.environment import (
    for_up,
    load_for,
    with_echo_provider,
    with_environment_providers,
)
from patchbay_gateway.kernel.config.file import load, parse
from patchbay_gateway.kernel.config.model import (
    ClientKey,
    Config,
    HeaderRules,
    Key,
    Limits,
    ManagementKey,
    Streaming,
    UsageConfig,
)
from patchbay_gateway.kernel.config.plugins import (
    AUTH_PROVIDERS,
    BUILTIN_PLUGINS,
    CAPABILITIES,
    DEFAULT_BASE_URLS,
    HostAccess,
    HttpAccess,
    Match,
    Plugin,
)
from patchbay_gateway.kernel.config.problems import ConfigError, Problem
from patchbay_gateway.kernel.config.providers import (
    Cooldown,
    Credential,
    ErrorRule,
    ModelSpec,
    OAuth2,
    OnDisconnect,
    Provider,
    RetryOverride,
)
from patchbay_gateway.kernel.config.routing import (
    Affinity,
    Queue,
    Retry,
    Route,
    RouteTarget,
    Routing,
)
from patchbay_gateway.kernel.config.secrets import (
    environment_secret,
    missing_secrets,
    resolve_secret,
)
from patchbay_gateway.kernel.config.settings import ProcessSettings, is_loopback
from patchbay_gateway.kernel.config.unserved import UNSERVED, unserved

__all__ = [
    "AUTH_PROVIDERS",
    "BUILTIN_PLUGINS",
    "CAPABILITIES",
    "DEFAULT_BASE_URLS",
    "UNSERVED",
    "Affinity",
    "ClientKey",
    "Config",
    "ConfigError",
    "Cooldown",
    "Credential",
    "ErrorRule",
    "HeaderRules",
    "HostAccess",
    "HttpAccess",
    "Key",
    "Limits",
    "ManagementKey",
    "Match",
    "ModelSpec",
    "OAuth2",
    "OnDisconnect",
    "Plugin",
    "Problem",
    "ProcessSettings",
    "Provider",
    "Queue",
    "Retry",
    "RetryOverride",
    "Route",
    "RouteTarget",
    "Routing",
    "Streaming",
    "UsageConfig",
    "environment_secret",
    "for_up",
    "in_clear",
    "is_loopback",
    "load",
    "load_for",
    "missing_secrets",
    "parse",
    "resolve_secret",
    "unserved",
    "with_echo_provider",
    "with_environment_providers",
]
