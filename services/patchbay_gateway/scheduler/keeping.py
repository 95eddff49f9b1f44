"""
Credentials that plugins bring and that nobody declared: kept as durable records that declare themselves.

Logins, command lines and documents that plugins save come here. What is for a credential that there is
already gives that one new material; all else becomes a credential of its own, beside those of the
configuration and of files, which win where ids meet. All that comes together is kept together or not at all.
Where records are Secrets, only declared credentials have one: others are refused.

Not here: opening what comes (auth_data.py), who may bring it (login.py, host_auths.py, service.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from patchbay.auth_documents import Refused
from patchbay.errors import FailedPrecondition, NotFound, PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.config import Credential
from patchbay_gateway.plugins.snapshot import CredentialEntry, OAuth2Entry
from patchbay_gateway.scheduler import refresh_rules
from patchbay_gateway.scheduler.auth_data import UNREADABLE, sub_ids
from patchbay_gateway.scheduler.durable.auth_files import (
    ProviderKey,
    credential_id,
    provider_of,
)
from patchbay_gateway.scheduler.durable.port import CredentialRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.auth_data import BroughtAuth
    from patchbay_gateway.scheduler.auth_plugins import AuthPlugins
    from patchbay_gateway.scheduler.grown import Placed
    from patchbay_gateway.scheduler.records import Records

_OAUTH: Final = "oauth2"
_LEAD: Final = OAuth2Entry("", "").refresh_lead

_log = logs.get_logger("scheduler.keeping")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one of them goes."""

    id: str
    auth: BroughtAuth
    provider: str
    lead: float
    new: bool
    """Whether nobody declared it."""


class Keeper:
    """
    Keeps what plugins bring.

    Args:
        records: Where it is kept.
        holder: Tells which credentials there are.
        plugins: Auth providers, for the keys that they know.
        clock: Time.
    """

    def __init__(
        self, records: Records, *, holder: SnapshotHolder, plugins: AuthPlugins, clock: Clock
    ) -> None:
        self._records = records
        self._holder = holder
        self._plugins = plugins
        self._clock = clock
        self._writing: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait until all that came is kept."""
        if self._writing:
            await asyncio.wait(self._writing)

    async def keep(
        self,
        plugin_id: str,
        auths: Sequence[BroughtAuth],
        *,
        origin: str,
        base: str = "",
        target: str = "",
        auth_provider: str = "",
        settings: Mapping[str, Any] | None = None,
        everywhere: bool = False,
    ) -> list[str]:
        """
        Keep *auths*; return their credential ids, in order.

        Args:
            plugin_id: Who brought them.
            auths: What it brought.
            origin: In which way, for people.
            base: What ids are made of where an auth has none; default its provider.
            target: Credential that the first of them is for, unless another is known to be its account.
            auth_provider: Plugin that renews them; default who brought them.
            settings: More settings of new credentials.
            everywhere: Whether the plugin may bring credentials of providers that are not its own.

        Raises:
            FailedPrecondition: AUTH_UNREADABLE, AUTH_CONFIGURED, CREDENTIAL_NOT_DECLARED.
            NotFound: AUTH_UNKNOWN, the plugin has no part in such a credential.
            Unavailable: The durable store does not answer; nothing is kept.
        """
        snapshot = self._holder.current
        if snapshot is None:
            raise FailedPrecondition("there is no snapshot yet", reason="NO_SNAPSHOT")
        await self._plugins.look(snapshot)  # who came a moment ago has a key, too
        ids = self._ids(plugin_id, auths, base, target)
        places = [
            self._place(snapshot, plugin_id, id_, auth, everywhere=everywhere or id_ == target)
            for id_, auth in zip(ids, auths, strict=True)
        ]
        if len(set(ids)) < len(ids):
            raise _unusable(plugin_id, "two of the credentials have one id")
        fresh = [
            CredentialRecord(
                place.id,
                provider=place.provider,
                plugin=auth_provider or plugin_id,
                brought_by=plugin_id,
                origin=origin,
                settings={**_settings(place.auth), **(settings or {})},
            )
            for place in places
        ]
        writing = asyncio.get_running_loop().create_task(
            self._write(places, fresh), name=f"keep {ids[0]}"
        )
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        # A caller that leaves meanwhile leaves no half of it; what was issued exists nowhere else.
        await asyncio.shield(writing)
        _log.info("credentials are kept", plugin=plugin_id, credentials=ids, origin=origin)
        return ids

    async def remove(self, credential_id_: str) -> None:
        """
        Forget a credential that was kept.

        Raises:
            NotFound: CREDENTIAL_NOT_FOUND.
            FailedPrecondition: CREDENTIAL_DECLARED, it stands elsewhere.
            Unavailable: The durable store does not answer.
        """
        record = self._records.get(credential_id_)
        snapshot = self._holder.current
        entry = snapshot.credential_by_id.get(credential_id_) if snapshot is not None else None
        if entry is not None and not entry.origin:
            where = f"in the auth file {entry.file}" if entry.file else "in the configuration"
            raise FailedPrecondition(
                f"credential {credential_id_} stands {where}; remove it there",
                reason="CREDENTIAL_DECLARED",
            )
        if record is None or not record.provider:
            raise NotFound(
                f"no credential {credential_id_!r} is kept", reason="CREDENTIAL_NOT_FOUND"
            )
        await self._records.delete(credential_id_)
        _log.info("a kept credential was removed", credential=credential_id_)

    # -- what there is ----------------------------------------------------------------------------

    def entries(self, draft: Snapshot) -> list[Placed]:
        """Return the kept credentials that *draft* has a provider for and that it does not have itself."""
        found = []
        for record in self._records.kept():
            provider = draft.provider_by_name.get(record.provider)
            if provider is not None and record.id not in draft.credential_by_id:
                found.append((provider.name, _entry(record, provider)))
        return found

    def told(self) -> list[tuple[str, str]]:
        """Return kept credentials that are not used, and why."""
        snapshot = self._holder.current
        if snapshot is None:
            return []
        return [
            (record.id, f"is for provider {record.provider}, which is not configured")
            for record in self._records.kept()
            if record.provider not in snapshot.provider_by_name
        ]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* when another set of credentials is kept, or with other settings."""
        known = {record.id: _shape(record) for record in self._records.kept()}

        def changed(id_: str, record: CredentialRecord | None) -> None:
            shape = _shape(record) if record is not None and record.provider else None
            if known.get(id_) == shape:
                return
            if shape is None:
                known.pop(id_, None)
            else:
                known[id_] = shape
            listener()

        self._records.on_change(changed)

    # -- keeping ----------------------------------------------------------------------------------

    async def _write(self, places: Sequence[_Place], fresh: Sequence[CredentialRecord]) -> None:
        written: list[tuple[str, CredentialRecord | None]] = []
        try:
            for place, record in zip(places, fresh, strict=True):
                stored = await self._records.read(place.id)
                written.append((place.id, stored.record if stored is not None else None))
                await self._records.update(place.id, self._change(place, record))
        except PatchbayError:
            await self._take_back(written)
            raise

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("credentials are not kept", task=task.get_name(), why=str(error))

    def _ids(
        self, plugin_id: str, auths: Sequence[BroughtAuth], base: str, target: str
    ) -> list[str]:
        if not auths:
            raise _unusable(plugin_id, "there is no credential in it")
        made = []
        for at, id_ in enumerate(sub_ids(auths, base)):
            auth = auths[at]
            if auth.id or base:
                made.append(id_)
                continue
            provider = auth.provider or self._plugins.identifier(plugin_id) or plugin_id
            name = auth.file_name or (f"{provider}-{auth.label}" if auth.label else "")
            more = f"-{at + 1}" if len(auths) > 1 else ""
            made.append(credential_id(name) if name else credential_id(f"{provider}{more}"))
        if target and target not in made:
            made[self._meant(auths, made, target)] = target
        return made

    def _meant(self, auths: Sequence[BroughtAuth], ids: Sequence[str], target: str) -> int:
        """Return which of *auths* is for *target*: its account so far, else the first that is new."""
        record = self._records.get(target)
        label = record.label if record is not None else ""
        for at, auth in enumerate(auths):
            if label and auth.label == label:
                return at
        kept = {each.id for each in self._records.kept()}
        return next((at for at, id_ in enumerate(ids) if id_ not in kept), 0)

    def _place(
        self, snapshot: Snapshot, plugin_id: str, id_: str, auth: BroughtAuth, *, everywhere: bool
    ) -> _Place:
        if not auth.usable:
            raise _unusable(plugin_id, f"credential {id_} has nothing for executors")
        try:
            Credential.model_validate({"id": id_, **_settings(auth)})
        except ValidationError as error:
            wrong = ", ".join(str(e["loc"][0]) for e in error.errors() if e["loc"])
            raise _unusable(plugin_id, f"credential {id_} has a wrong {wrong}") from None
        entry = snapshot.credential_by_id.get(id_)
        if entry is not None:
            provider = snapshot.provider_of[id_]
            if entry.oauth2 is None:
                raise FailedPrecondition(
                    f"credential {id_} is the configuration's and has a key there; "
                    "choose another name",
                    reason="AUTH_CONFIGURED",
                )
            mine = plugin_id in {provider.plugin, entry.oauth2.plugin, entry.brought_by}
            if not mine and not everywhere:
                raise _not_served(plugin_id)
            new = bool(entry.origin)
            return _Place(id_, auth, provider.name, entry.oauth2.refresh_lead, new)
        keys = [ProviderKey(p.name, p.plugin) for p in snapshot.providers]
        identifier = self._plugins.identifier(plugin_id)
        try:
            name = provider_of(auth.provider or identifier or plugin_id, keys)
        except Refused as error:
            raise _unusable(plugin_id, f"credential {id_} {error}") from error
        provider = snapshot.provider_by_name[name]
        if not everywhere and not _serves(plugin_id, identifier, provider):
            raise _not_served(plugin_id)
        if not self._records.open:
            raise FailedPrecondition(
                f"credential {id_} has no place here: declare a ProviderCredential named {id_} for "
                f"provider {name}, with `oauth2`; its Secret then keeps what comes",
                reason="CREDENTIAL_NOT_DECLARED",
            )
        return _Place(id_, auth, name, _LEAD, new=True)

    def _change(
        self, place: _Place, fresh: CredentialRecord
    ) -> Callable[[CredentialRecord | None], CredentialRecord]:
        now, auth = self._clock.now(), place.auth

        def change(record: CredentialRecord | None) -> CredentialRecord:
            before = record or CredentialRecord(place.id)
            same = bool(auth.label) and auth.label == before.label
            material = {"client_secret": auth.client_secret} if auth.client_secret else {}
            before = before.replace(
                # Another account perhaps: nothing of the old tokens stays.
                material=material if place.new else {},
                # Seconds, as with a seed: a version grows even when the record was lost.
                version=max(before.version, int(now)),
                account=before.account if same else secrets.token_hex(8),
                renewable=auth.renewable,
            )
            if not same:
                before = before.replace(access_keys=(), metadata={}, attributes={}, label="")
            if place.new:
                before = before.replace(
                    provider=fresh.provider,
                    plugin=fresh.plugin,
                    brought_by=fresh.brought_by,
                    origin=fresh.origin,
                    settings=fresh.settings,
                    disabled=auth.disabled or (before.disabled if same else False),
                )
            return refresh_rules.renewed(before, auth.renewal, place.lead, now)

        return change

    async def _take_back(self, written: Sequence[tuple[str, CredentialRecord | None]]) -> None:
        """Bring back what was there before; what cannot be is told."""
        for id_, before in reversed(written):
            try:
                if before is None:
                    await self._records.delete(id_)
                else:
                    await self._records.update(id_, _back_to(before))
            except PatchbayError as error:
                _log.error("a credential is half kept", credential=id_, why=error.message)


def _back_to(
    before: CredentialRecord,
) -> Callable[[CredentialRecord | None], CredentialRecord | None]:
    def change(record: CredentialRecord | None) -> CredentialRecord | None:
        if record == before:
            return None
        version = max(before.version, record.version if record is not None else 0)
        return before.replace(version=version + 1)

    return change


def _entry(record: CredentialRecord, provider: ProviderEntry) -> CredentialEntry:
    said = {**record.attributes, **record.metadata}
    token_url, client_id = (
        value if isinstance(value := said.get(name), str) else ""
        for name in ("token_url", "client_id")
    )
    settings = OAuth2Entry(token_url, client_id, plugin=record.plugin)
    if not token_url:
        alike = [
            c.oauth2
            for c in provider.credentials
            if c.oauth2 is not None and c.oauth2.plugin == record.plugin and not c.brought_by
        ]
        if len({(found.token_url, found.client_id) for found in alike}) == 1:
            settings = alike[0]
    more: Any = record.settings
    return CredentialEntry(
        id=record.id,
        auth_index=hashlib.sha256(record.id.encode()).hexdigest()[:12],
        kind=_OAUTH,
        version=1,
        priority=more.get("priority", 0),
        weight=more.get("weight", 1),
        prefix=more.get("prefix", ""),
        proxy_url=more.get("proxy_url", ""),
        excluded_models=tuple(more.get("excluded_models", ())),
        oauth2=settings,
        brought_by=record.brought_by,
        origin=record.origin,
    )


def _shape(record: CredentialRecord) -> tuple[object, ...]:
    said = {**record.attributes, **record.metadata}
    where = said.get("token_url"), said.get("client_id")
    return record.provider, record.plugin, record.brought_by, dict(record.settings), where


def _settings(auth: BroughtAuth) -> dict[str, Any]:
    found = {"prefix": auth.prefix, "proxy_url": auth.proxy_url}
    return {name: value for name, value in found.items() if value}


def _serves(plugin_id: str, identifier: str, provider: ProviderEntry) -> bool:
    return (
        provider.plugin == plugin_id
        or (bool(identifier) and identifier in {provider.name.lower(), provider.plugin.lower()})
        or any(c.oauth2 is not None and c.oauth2.plugin == plugin_id for c in provider.credentials)
    )


def _not_served(plugin_id: str) -> NotFound:
    return NotFound(
        f"the credential is not one that plugin {plugin_id} serves", reason="AUTH_UNKNOWN"
    )


def _unusable(plugin_id: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"what plugin {plugin_id} brought: {why}", reason=UNREADABLE)
