"""
What a plugin may ask of the host: its declaration's `host_access`, read once.

Default: nothing but a line in the log. Not here: checking an address that a granted host name resolves to
(edge/callbacks).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import PluginEntry


@dataclass(frozen=True, slots=True)
class Grants:
    """The grants of one plugin."""

    models: bool = False
    hosts: tuple[str, ...] = ()
    """Globs over host names, or `host:port` globs."""
    auths: str = "none"
    """`none`, `own` (credentials of the providers that it serves) or `all`."""

    @property
    def some(self) -> bool:
        """Whether anything is granted."""
        return self.models or bool(self.hosts) or self.auths != "none"

    def allows_host(self, host: str, port: int) -> bool:
        """Whether HTTP may go there by name."""
        name = host.lower().rstrip(".")
        return any(
            fnmatch.fnmatchcase(name, pattern.lower())
            or fnmatch.fnmatchcase(f"{name}:{port}", pattern.lower())
            for pattern in self.hosts
        )

    def names_host(self, host: str, port: int) -> bool:
        """Whether a grant spells exactly this host: then even a private address is meant."""
        name = host.lower().rstrip(".")
        return any(pattern.lower() in {name, f"{name}:{port}"} for pattern in self.hosts)


def grants_of(entry: PluginEntry) -> Grants:
    """Return what *entry* declares; what is malformed grants nothing."""
    access: dict[str, Any] = entry.host_access
    http = access.get("http")
    hosts = http.get("hosts", ()) if isinstance(http, dict) else ()
    auths = access.get("auths", "none")
    return Grants(
        models=access.get("models") is True,
        hosts=tuple(h for h in hosts if isinstance(h, str)),
        auths=auths if auths in {"own", "all"} else "none",
    )
