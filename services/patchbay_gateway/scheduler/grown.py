"""
Credentials that come of auth files by plugins: entries of the snapshot, and seeds of their tokens.

Their material is always in the durable records, whatever it is, so that a restart needs neither the plugin
nor another reading of the file: what the snapshot before had of a file stays while its plugin cannot be
asked. A file says for all its credentials whether they are disabled, and their priority and weight.

Not here: asking plugins (parsed_files.py), files that the gateway reads itself (durable/auth_seeds.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic import ValidationError

from patchbay.auth_documents import Refused
from patchbay_gateway.kernel.config import Credential, OAuth2
from patchbay_gateway.plugins.building import KEYLESS, implicit_id
from patchbay_gateway.plugins.snapshot import CredentialEntry, OAuth2Entry
from patchbay_gateway.scheduler.auth_data import sub_ids
from patchbay_gateway.scheduler.durable.auth_files import (
    ProviderKey,
    RefusedFile,
    credential_id,
    provider_of,
)
from patchbay_gateway.scheduler.parsed_files import Parsed
from patchbay_gateway.scheduler.refresh_rules import Seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patchbay.auth_documents import DocumentHead
    from patchbay_gateway.kernel.config import Config, Provider
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.auth_data import BroughtAuth
    from patchbay_gateway.scheduler.durable.auth_files import AuthFiles, OfferedFile

OAUTH: Final = "oauth2"
# The record's version counts; this one must only stay the same.
_VERSION: Final = 1

Placed = tuple[str, CredentialEntry]
"""Provider name and a credential of it."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What files give by plugins."""

    entries: tuple[Placed, ...] = ()
    """Ordered by file."""
    seeds: Mapping[str, Seed] = field(default_factory=dict, repr=False)
    refused: tuple[RefusedFile, ...] = ()
    """Files of which nothing is used, and why."""
    warnings: tuple[RefusedFile, ...] = ()
    """Files of which not everything is used, or that count as before."""
    readers: Mapping[str, str] = field(default_factory=dict)
    """Path of a file → plugin that has it."""


def read_by_plugins(
    config: Config, files: AuthFiles, parsed: Mapping[str, Parsed], former: Snapshot | None
) -> dict[str, Parsed | tuple[Placed, ...]]:
    """
    Return which files plugins have: path → what they made of it, or what the snapshot before has of it.

    The gateway reads all others.
    """
    enabled = {plugin.id for plugin in config.plugins if plugin.enabled}
    before: dict[str, list[Placed]] = {}
    for provider in former.providers if former is not None else ():
        for entry in provider.credentials:
            if entry.file and entry.brought_by in enabled:
                before.setdefault(entry.file, []).append((provider.name, entry))
    found: dict[str, Parsed | tuple[Placed, ...]] = {}
    for file in files.offered:
        told = parsed.get(file.source)
        if told is not None and told.taken:
            found[file.source] = told
        elif file.source in before and (told is None or told.problem):
            found[file.source] = tuple(before[file.source])
    return found


def grow(
    config: Config,
    files: AuthFiles,
    read: Mapping[str, Parsed | tuple[Placed, ...]],
    parsed: Mapping[str, Parsed],
    taken: Iterable[str],
) -> Grown:
    """
    Return the credentials of the files that plugins have.

    Args:
        config: The configuration.
        files: The directory.
        read: Of `read_by_plugins`.
        parsed: What plugins said of all files.
        taken: Ids of other credentials, which win.
    """
    growing = _Growing(config, set(taken))
    for file in files.offered:
        found = read.get(file.source)
        if isinstance(found, Parsed):
            growing.add(file, found)
        elif found is not None:
            told = parsed.get(file.source)
            growing.keep(file, found, told.problem if told is not None else "")
    return growing.grown()


class _Growing:
    """One pass over the files."""

    def __init__(self, config: Config, taken: set[str]) -> None:
        self._keys = [ProviderKey(p.name, p.plugin) for p in config.providers]
        self._providers = {p.name: p for p in config.providers}
        self._taken = taken
        self._entries: list[Placed] = []
        self._seeds: dict[str, Seed] = {}
        self._refused: list[RefusedFile] = []
        self._warnings: list[RefusedFile] = []
        self._readers: dict[str, str] = {}

    def grown(self) -> Grown:
        return Grown(
            tuple(self._entries),
            self._seeds,
            tuple(self._refused),
            tuple(self._warnings),
            self._readers,
        )

    def add(self, file: OfferedFile, parsed: Parsed) -> None:
        """Add what a plugin made of *file*."""
        self._readers[file.source] = parsed.plugin_id
        ids = sub_ids(parsed.auths, credential_id(file.source))
        troubles: list[str] = []
        used = 0
        for id_, auth in zip(ids, parsed.auths, strict=True):
            name = f"its credential {id_}" if len(ids) > 1 else "it"
            try:
                self._add(file, parsed, id_, auth)
                used += 1
            except Refused as error:
                troubles.append(f"{name} {error}")
        if not parsed.auths:
            troubles.append(f"holds no credential, says plugin {parsed.plugin_id}")
        if parsed.problem:
            troubles.append(f"counts as before: {parsed.problem}")
        if troubles:
            told = RefusedFile(file.source, "; ".join(troubles))
            (self._warnings if used else self._refused).append(told)

    def keep(self, file: OfferedFile, placed: Sequence[Placed], problem: str) -> None:
        """Keep what the snapshot before has of *file*; its tokens are in the records."""
        head = file.head
        for provider, entry in placed:
            self._readers[file.source] = entry.brought_by
            if entry.id in self._taken or provider not in self._providers:
                continue
            self._taken.add(entry.id)
            changed = msgspec.structs.replace(
                entry,
                disabled=head.disabled,
                priority=head.priority,
                weight=head.weight,
                excluded_models=head.excluded_models,
            )
            self._entries.append((provider, changed))
        why = problem or f"plugin {self._readers[file.source]} is not registered yet"
        self._warnings.append(RefusedFile(file.source, f"counts as before: {why}"))

    def _add(self, file: OfferedFile, parsed: Parsed, id_: str, auth: BroughtAuth) -> None:
        if id_ in self._taken:
            raise Refused("has the id of another credential")
        type_ = auth.provider or parsed.identifier
        if not type_:
            raise Refused(f"has no provider; plugin {parsed.plugin_id} names none")
        provider = self._providers[provider_of(type_, self._keys)]
        entry = entry_of(id_, auth, provider, parsed.plugin_id, file.head)
        entry = msgspec.structs.replace(entry, file=file.source, shared=len(parsed.auths) > 1)
        self._taken.add(id_)
        self._entries.append((provider.name, entry))
        self._seeds[id_] = seed_of(auth, file.head, alone=len(parsed.auths) == 1)


def entry_of(
    id_: str, auth: BroughtAuth, provider: Provider, plugin_id: str, head: DocumentHead
) -> CredentialEntry:
    """
    Return the credential of *auth*.

    Raises:
        Refused: It has no material to use, or a wrong value.
    """
    if not auth.usable:
        raise Refused(
            "has nothing for executors: neither api_key nor access_token nor a key that access_keys names"
        )
    try:
        checked = Credential.model_validate(
            {
                "id": id_,
                "priority": head.priority,
                "weight": head.weight,
                "excluded_models": head.excluded_models,
                "prefix": auth.prefix or head.prefix or None,
                "proxy_url": auth.proxy_url or head.proxy_url or None,
                "disabled": auth.disabled or head.disabled,
            }
        )
        oauth2 = _oauth2(auth, provider, plugin_id, head)
    except ValidationError as error:
        keys = ", ".join(str(e["loc"][0]) for e in error.errors() if e["loc"])
        raise Refused(f"has a wrong {keys or 'value'}") from None
    return CredentialEntry(
        id=id_,
        auth_index=hashlib.sha256(id_.encode()).hexdigest()[:12],
        kind=OAUTH,
        version=_VERSION,
        priority=checked.priority,
        weight=checked.weight,
        prefix=checked.prefix or "",
        proxy_url=checked.proxy_url or "",
        disabled=checked.disabled,
        excluded_models=checked.excluded_models,
        oauth2=oauth2,
        brought_by=plugin_id,
    )


def _oauth2(
    auth: BroughtAuth, provider: Provider, plugin_id: str, head: DocumentHead
) -> OAuth2Entry:
    token_url = auth.setting("token_url") or head.token_url
    client_id = auth.setting("client_id") or head.client_id
    more: dict[str, Any] = {"refresh_lead": head.refresh_interval} if head.refresh_interval else {}
    if not token_url:
        configured = [
            c.oauth2
            for c in provider.credentials
            if c.oauth2 is not None and c.oauth2.plugin == plugin_id
        ]
        if len({(found.token_url, found.client_id) for found in configured}) == 1:
            token_url = configured[0].token_url
            client_id = client_id or configured[0].client_id
    if token_url:
        OAuth2.model_validate(
            {"token_url": token_url, "client_id": client_id or "-", "refresh_token": "-"}
        )
    return OAuth2Entry(
        token_url=token_url,
        client_id=client_id,
        scopes=head.scopes,
        plugin=plugin_id,
        **more,
    )


def seed_of(auth: BroughtAuth, head: DocumentHead, *, alone: bool) -> Seed:
    """
    Return the seed that the tokens of *auth* grow from.

    Args:
        auth: The credential.
        head: Of its file.
        alone: Whether the file holds no other, so that its times are those of its access token.
    """
    timed = alone and not auth.expires_at and bool(auth.material.get("access_token"))
    return Seed(
        hash=auth.seed_hash,
        material=auth.material,
        client_secret=auth.client_secret or head.client_secret,
        expires_at=(head.expires_at or 0.0) if timed else auth.expires_at,
        refreshed_at=(head.last_refresh or 0.0) if timed else 0.0,
        label=auth.label,
        next_refresh_after=auth.next_refresh_after,
        access_keys=auth.access_keys,
        metadata=auth.metadata or {},
        attributes=auth.attributes,
        renewable=auth.renewable,
        described=auth.described,
    )


def add_entries(draft: Snapshot, placed: Iterable[Placed]) -> Snapshot:
    """
    Return *draft* with more credentials.

    A provider without any of its own, that sends no key, sends those from now on.
    """
    more: dict[str, list[CredentialEntry]] = {}
    for provider, entry in placed:
        more.setdefault(provider, []).append(entry)
    if not more:
        return draft
    return msgspec.structs.replace(
        draft,
        providers=tuple(
            msgspec.structs.replace(
                provider, credentials=(*_own(provider.name, provider.credentials), *found)
            )
            if (found := more.get(provider.name))
            else provider
            for provider in draft.providers
        ),
    )


def _own(name: str, credentials: Sequence[CredentialEntry]) -> tuple[CredentialEntry, ...]:
    implicit = len(credentials) == 1 and credentials[0].kind == KEYLESS
    if implicit and credentials[0].id == implicit_id(name):
        return ()
    return tuple(credentials)
