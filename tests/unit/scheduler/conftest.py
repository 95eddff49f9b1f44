"""Snapshots made to measure."""

from __future__ import annotations

from typing import Any

from patchbay_gateway.plugins.snapshot import (
    CredentialEntry,
    ModelEntry,
    ProviderEntry,
    RouteEntry,
    SettingsEntry,
    Snapshot,
    TargetEntry,
)


def make_credential(id_: str, **more: Any) -> CredentialEntry:
    """Return a credential that needs no material."""
    return CredentialEntry(**{"id": id_, "auth_index": id_, "kind": "none", "version": 1, **more})


def make_provider(
    name: str, *credentials: CredentialEntry | str, models: tuple[str, ...] = ("m",), **more: Any
) -> ProviderEntry:
    """Return a provider of *models*, each `name` or `name=alias`."""
    entries = tuple(ModelEntry(*model.split("=")) for model in models)
    made = tuple(make_credential(c) if isinstance(c, str) else c for c in credentials)
    return ProviderEntry(
        **{"name": name, "plugin": "p", "models": entries, "credentials": made, **more}
    )


def make_snapshot(
    *providers: ProviderEntry,
    version: int = 1,
    routes: dict[str, list[tuple[str, str]]] | None = None,
    fallbacks: dict[str, tuple[str, ...]] | None = None,
    **settings: Any,
) -> Snapshot:
    """Return a snapshot; *routes* is name → (provider, model), *fallbacks* name → names."""
    return Snapshot(
        version=version,
        providers=providers,
        routes=tuple(
            RouteEntry(
                name, tuple(TargetEntry(*t) for t in targets), (fallbacks or {}).get(name, ())
            )
            for name, targets in (routes or {}).items()
        ),
        settings=SettingsEntry(**settings),
    )
