"""
A snapshot as the management API shows it: without key digests, passwords and plugins' configurations.

Not here: the snapshot (plugins/snapshot.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import Snapshot


def snapshot_view(snapshot: Snapshot) -> dict[str, Any]:
    """Return *snapshot* as JSON values, with what is secret taken out."""
    shown: dict[str, Any] = msgspec.to_builtins(snapshot)
    for plugin in shown["plugins"]:
        # Opaque to us, so it may hold anything; its hash tells whether it changed.
        del plugin["config"]
    for key in shown["client_keys"]:
        del key["digest"]
    for provider in shown["providers"]:
        provider["proxy_url"] = without_password(provider["proxy_url"])
        for credential in provider["credentials"]:
            del credential["fingerprint"]
            credential["proxy_url"] = without_password(credential["proxy_url"])
    return shown


def keys_view(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return every client key without its digest, ordered by name."""
    return [
        {"name": key.name, "tenant": key.tenant, "models": list(key.models)}
        for key in sorted(snapshot.client_keys, key=lambda key: key.name)
    ]


def models_view(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return every public model name with its targets, ordered by name."""
    routes = {route.name for route in snapshot.routes}
    providers = snapshot.provider_by_name
    return [
        {
            "id": name,
            "route": name in routes,
            "targets": [
                {
                    "provider": target.provider,
                    "model": target.model,
                    "plugin": providers[target.provider].plugin
                    if target.provider in providers
                    else None,
                }
                for target in targets
            ],
        }
        for name, targets in sorted(snapshot.targets.items())
    ]


def without_password(url: str) -> str:
    """Return *url* with user and password replaced."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))
