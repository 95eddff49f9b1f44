"""
The models that plugins told, and the snapshot with them: pure.

A plugin's models belong to the provider that it names, else to every provider whose executor it is. Models of
the configuration stay as they are, for every credential; a model that only some credentials have is excluded
for the others. Not here: asking (models.py), when to ask (scheduler/plugin_models.py), who publishes.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import msgspec

from patchbay_gateway.plugins.snapshot import ModelEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot


class Told(msgspec.Struct, frozen=True):
    """What a plugin told."""

    provider: str
    """Provider key, lower case; empty: it did not say."""
    models: tuple[str, ...]


class PluginTold(msgspec.Struct, frozen=True):
    """All that one plugin told."""

    fixed: Told | None = None
    """Models that every credential has; None: it was not asked, or did not answer yet."""
    credentials: dict[str, Told] = {}
    """Credential id → its models; those not asked yet are missing."""

    @property
    def anything(self) -> bool:
        """Whether it told anything at all."""
        return self.fixed is not None or bool(self.credentials)


def with_told(
    draft: Snapshot, previous: Snapshot | None, told: Mapping[str, PluginTold]
) -> Snapshot:
    """
    Return *draft* with the models that plugins told.

    Args:
        draft: Made of the configuration alone.
        previous: Whose models of plugins stay where the plugin was not asked yet.
        told: Plugin id → what it told; plugins that the draft does not enable count for nothing.
    """
    enabled = {p.id for p in draft.plugins if p.enabled}
    told = {id_: found for id_, found in told.items() if id_ in enabled}
    providers = tuple(_with_models(p, draft, previous, told) for p in draft.providers)
    if providers == draft.providers:
        return draft
    return msgspec.structs.replace(draft, providers=providers)


def _with_models(
    provider: ProviderEntry,
    draft: Snapshot,
    previous: Snapshot | None,
    told: Mapping[str, PluginTold],
) -> ProviderEntry:
    configured = {model.name for model in provider.models}
    shared: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    for plugin_id, known in told.items():
        if known.fixed is not None and _meant(provider, plugin_id, known.fixed, draft):
            shared.update(dict.fromkeys(known.fixed.models, plugin_id))
        for credential_id, found in known.credentials.items():
            own[credential_id] = dict.fromkeys(found.models, plugin_id)
    before = previous.provider_by_name.get(provider.name) if previous is not None else None
    for model in before.models if before is not None else ():
        asked = told.get(model.told_by)
        if draft.plugin_by_id.get(model.told_by) and (asked is None or not asked.anything):
            shared.setdefault(model.name, model.told_by)
    mine = {c.id: own[c.id] for c in provider.credentials if c.id in own}
    added = dict(shared)
    for names in mine.values():
        added.update(names)
    extra = [(n, by) for n, by in added.items() if n not in configured]
    if not extra:
        return provider
    entries = tuple(ModelEntry(name, told_by=by) for name, by in sorted(extra))
    partly = [n for n, _ in extra if n not in shared]
    return msgspec.structs.replace(
        provider,
        models=(*provider.models, *entries),
        credentials=tuple(_without(c, partly, mine) for c in provider.credentials),
    )


def _meant(provider: ProviderEntry, plugin_id: str, told: Told, draft: Snapshot) -> bool:
    named = [p for p in draft.providers if p.name.lower() == told.provider]
    return provider in named if named else provider.plugin == plugin_id


def _without(
    credential: CredentialEntry, partly: Iterable[str], mine: dict[str, dict[str, str]]
) -> CredentialEntry:
    """Exclude for *credential* what only others have."""
    lacking = [glob.escape(name) for name in partly if name not in mine.get(credential.id, ())]
    if not lacking:
        return credential
    return msgspec.structs.replace(
        credential, excluded_models=(*credential.excluded_models, *lacking)
    )
