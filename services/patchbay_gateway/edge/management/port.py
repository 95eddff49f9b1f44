"""
What the management API asks of the process that serves it.

Not here: who may ask (access.py), the routes (routes.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from patchbay_gateway.edge.management.logins import Logins
    from patchbay_gateway.edge.management.pool import Pool
    from patchbay_gateway.kernel.health import HealthApp
    from patchbay_gateway.plugins.command_line import CommandLines
    from patchbay_gateway.plugins.management_api import ManagementPlugins
    from patchbay_gateway.plugins.snapshot import Snapshot


class Grouping(enum.StrEnum):
    """What usage can be summed by. In a row the key has underscores."""

    MODEL = "model"
    PROVIDER = "provider"
    CREDENTIAL = "credential"
    CLIENT_KEY = "client-key"
    PLUGIN = "plugin"
    HOUR = "hour"


@dataclass(frozen=True, slots=True)
class ManagementPorts:
    """Functions of the process; each may raise an error of `patchbay.errors`."""

    health: HealthApp
    """Answers /livez, /readyz and /metrics."""
    snapshot: Callable[[], Snapshot | None]
    """The snapshot that this process runs on; None before the first."""
    usage: Callable[[float | None, str], Awaitable[Sequence[Mapping[str, Any]]]]
    """(since in Unix seconds or None for all, a `Grouping`) → rows of a usage report."""
    plugins: Callable[[], Sequence[Mapping[str, Any]]]
    """What is registered and what is not, with the reasons (PluginRegistry.status)."""
    pool: Pool
    """Credentials and models, as a scheduler sees them."""
    logins: Logins | None = None
    """Logins of credentials."""
    plugin_pages: ManagementPlugins | None = None
    """Routes and pages of plugins."""
    command_lines: CommandLines | None = None
    """Commands of plugins."""
