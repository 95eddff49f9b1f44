"""
From resources and values to the snapshot: `draft(…)` decides which resource takes part and says why not.

Pure. Values come first and win, then the oldest resource; whoever comes later and claims the same name is
told so. Nothing is dropped in silence: each resource gets a `Verdict`, and one that is wrong leaves the rest
as it is. Here they are put together in the order in which they refer to each other; each subject has a module
(draft_plugins.py, draft_providers.py, draft_clients.py). Not here: what is read from the cluster to decide it
(gathering.py), publishing, status.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from patchbay_gateway.plugins.building import build_snapshot, implicit_id
from patchbay_operator.draft_clients import Clients
from patchbay_operator.draft_plugins import Plugins
from patchbay_operator.draft_providers import Providers
from patchbay_operator.verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from patchbay_gateway.kernel import config as model
    from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
    from patchbay_operator.api.client_key import ClientKeySpec
    from patchbay_operator.api.model_route import ModelRouteSpec
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.api.provider_credential import ProviderCredentialSpec
    from patchbay_operator.installation import Installation
    from patchbay_operator.resources import Resource


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that the snapshot is made of."""

    base: model.Config
    """The values' configuration."""
    plugins: Sequence[Resource[PluginSpec]] = ()
    credentials: Sequence[Resource[ProviderCredentialSpec]] = ()
    routes: Sequence[Resource[ModelRouteSpec]] = ()
    client_keys: Sequence[Resource[ClientKeySpec]] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Name of each Secret → what changes with its content."""
    configs: Mapping[str, str | None] = field(default_factory=dict)
    """Plugin with `configFrom` → its YAML, None when there is none."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """ClientKey → digest of its key; those without key are missing."""
    base_digests: Mapping[str, str] = field(default_factory=dict)
    """The same for client keys of the values."""
    prices: Sequence[PriceEntry] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Plugin → `Secret/name` and `ConfigMap/name` without which its pods cannot start."""
    serving: Collection[str] = ()
    """Plugins whose pods are ready, or were once."""


@dataclass(frozen=True, slots=True)
class _Material:
    """What the snapshot says of a Secret's content."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration, what is known of its secrets, and a verdict for each resource."""

    config: model.Config
    verdicts: Mapping[tuple[str, str], Verdict]
    """(kind, name) → verdict."""
    material: Mapping[str, _Material]
    digests: Mapping[str, str]
    prices: Sequence[PriceEntry]
    sources: Mapping[str, Mapping[str, str]]
    """Credential → what of its material is in which Secret, as `name/key`."""

    def snapshot(self, previous: Snapshot | None, now: float) -> Snapshot:
        """Return the snapshot, without a version; *now* in Unix seconds dates new material."""
        built = build_snapshot(
            self.config,
            material=self.material,
            digests=self.digests,
            prices=self.prices,
            previous=previous,
            now=now,
            open_access=False,
        )
        providers = tuple(
            msgspec.structs.replace(
                provider,
                credentials=tuple(
                    msgspec.structs.replace(c, secrets=dict(self.sources.get(c.id, {})))
                    for c in provider.credentials
                ),
            )
            for provider in built.providers
        )
        return msgspec.structs.replace(built, providers=providers)


def draft(gathered: Gathered, installation: Installation) -> Draft:
    """Return what the resources and values come to."""
    verdicts = Verdicts()
    base = gathered.base
    plugins = (*base.plugins, *Plugins(gathered, installation, verdicts).drafted())
    pools = Providers(gathered, verdicts)
    providers = (*base.providers, *pools.drafted({p.id for p in plugins}))
    material = {id_: _Material(found) for id_, found in pools.fingerprints.items()}
    for provider in providers:
        if not provider.credentials:
            material[implicit_id(provider.name)] = _Material("")
    interim = base.model_copy(update={"plugins": plugins, "providers": providers})
    clients = Clients(gathered, verdicts)
    routes = (*base.routes, *clients.routes(interim))
    keys = (*base.client_keys, *clients.client_keys())
    return Draft(
        config=interim.model_copy(update={"routes": routes, "client_keys": keys}),
        verdicts=verdicts.of,
        material=material,
        digests=clients.digests,
        prices=gathered.prices,
        sources=pools.sources,
    )
