"""
Credential material of this scheduler: held in memory, and sealed for the executor that will use it.

API keys come from the configuration (a value, a variable or a file), OAuth tokens from the durable records;
neither leaves this object but sealed for one plugin, for the provider's origin alone, for `SEALED_FOR`. The
snapshot carries a fingerprint of the key it was published with; where ours differs (a file that this
scheduler has not seen yet, or a key it was not given) the credential is not usable here; but a key that is
read from elsewhere serves until its new form is read. A token is usable until it expires.

Not here: choosing one (selection.py), what the snapshot says about them (plugins/building.py), refreshing
(refresh.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay.errors import PatchbayError
from patchbay.keys import sealing_key
from patchbay.secrets import origin_of, seal
from patchbay_gateway.kernel import keys, logs
from patchbay_gateway.plugins.building import KEYLESS, implicit_id
from patchbay_gateway.scheduler.refresh_rules import usable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.type.v1 import secret_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry
    from patchbay_gateway.scheduler.durable.port import CredentialRecord

__all__ = ["KEYLESS", "SEALED_FOR", "Credentials", "Material", "implicit_id", "read_material"]

_log = logs.get_logger("scheduler.credentials")

OAUTH: Final = "oauth2"
"""Kind of a credential whose material is in the durable records."""
SEALED_FOR: Final = 900.0
"""Seconds for which a sealed secret can be opened."""
# Sealed anew when less is left: an attempt that was leased just before still has to reach its executor,
# and its first byte may be waited for.
_RENEW_BELOW: Final = 300.0


@dataclass(frozen=True, slots=True)
class Material:
    """The secret strings of one credential."""

    kind: str
    """`api_key`, `oauth2` or `none`."""
    values: Mapping[str, str] = field(repr=False)
    fingerprint: str = ""
    """HMAC of `values` under the store root; empty for kind none."""


Source = tuple[str, str, tuple[tuple[str, str], ...]]
"""Where a key goes and where it comes from: plugin, address, and (what, Secret/key) of each part."""


def source_of(provider: ProviderEntry, credential: CredentialEntry) -> Source:
    """Return for whom the key of a credential is meant, and where it is read."""
    return provider.plugin, provider.base_url, tuple(sorted(credential.secrets.items()))


def read_material(
    config: Config, environ: Mapping[str, str], store_root: bytes
) -> dict[str, Material]:
    """
    Return credential id → material, of all but OAuth credentials.

    A credential whose source is missing has none and is named in the log; the others serve on. Reads
    files: not for the event loop.
    """
    found: dict[str, Material] = {}
    for provider in config.providers:
        if not provider.credentials:
            found[implicit_id(provider.name)] = Material(KEYLESS, {})
        for credential in provider.credentials:
            if credential.kind == KEYLESS:
                found[credential.id] = Material(KEYLESS, {})
                continue
            if credential.kind != "api_key":
                continue  # its material is in the durable records
            try:
                value = credential.resolve(environ)
            except PatchbayError as error:
                _log.warning("credential without key", credential=credential.id, why=str(error))
                continue
            values = {"api_key": value or ""}
            found[credential.id] = Material("api_key", values, _fingerprint(store_root, values))
    return found


def _fingerprint(store_root: bytes, values: Mapping[str, str]) -> str:
    material = orjson.dumps(dict(values), option=orjson.OPT_SORT_KEYS)
    return keys.fingerprint(store_root, material)


class Credentials:
    """
    The material of all credentials, and what was sealed of it.

    Args:
        plugins_roots: Newest first; the newest seals.
        clock: Says when a sealed secret grows old.
    """

    def __init__(self, plugins_roots: tuple[bytes, ...], *, clock: Clock) -> None:
        self._root = plugins_roots[0]
        self._clock = clock
        self._material: dict[tuple[str, str], Material] = {}
        self._previous: dict[tuple[str, str], Material] = {}
        self._given: dict[tuple[str, str], Material] = {}
        self._former: dict[tuple[str, str], Material] = {}
        self._stand_ins: dict[str, tuple[Source, Material]] = {}
        """Credential id → what was last put, usable until the new form of the same source is."""
        self._records: dict[str, CredentialRecord] = {}
        self._disabled: set[str] = set()
        self._sealed: dict[tuple[str, str, int, str], tuple[secret_pb2.SealedSecret, float]] = {}
        self._keys: dict[str, bytes] = {}
        self.generation = 0
        """Grows with each change of what is usable, time aside."""
        self.changes: dict[str, int] = {}
        """Credential id → how often its record's material changed."""

    def replace(self, material: Mapping[str, Material]) -> None:
        """
        Hold *material* from now on.

        What it replaces stays one generation longer, for requests that are pinned to a snapshot of then.
        """
        self._previous = {key: known for key, known in self._material.items() if key[0] in material}
        self._material = {(id_, m.fingerprint): m for id_, m in material.items()}
        self._sealed.clear()
        self.generation += 1

    def put(self, credential_id: str, material: Material, source: Source) -> None:
        """
        Hold the material of one credential besides what `replace` brought; the former stays, too.

        When the snapshot tells of another fingerprint of the same *source*, this one serves until then.
        """
        self._stand_ins[credential_id] = (source, material)
        for key in [key for key in self._former if key[0] == credential_id]:
            del self._former[key]
        for key in [key for key in self._given if key[0] == credential_id]:
            self._former[key] = self._given.pop(key)
        self._given[credential_id, material.fingerprint] = material
        for kept in [kept for kept in self._sealed if kept[1] == credential_id]:
            del self._sealed[kept]
        self.generation += 1

    def forget(self, credential_id: str) -> None:
        """Let nothing of what was put stand in for a credential that is gone."""
        self._stand_ins.pop(credential_id, None)

    def take(self, credential_id: str, record: CredentialRecord | None) -> None:
        """Hold the material of *record* from now on; None: there is none any more."""
        before = self._records.get(credential_id)
        disabled = record is not None and record.disabled
        if disabled != (credential_id in self._disabled):
            (self._disabled.add if disabled else self._disabled.discard)(credential_id)
            self.generation += 1
        if record is None:
            self._records.pop(credential_id, None)
        else:
            self._records[credential_id] = record
        if (before.version if before else 0) != (record.version if record else 0):
            self.changes[credential_id] = self.changes.get(credential_id, 0) + 1
            for key in [key for key in self._sealed if key[1] == credential_id]:
                del self._sealed[key]
            now = self._clock.now()
            # A token that has run out may have been counted on before that, or not be counted on since.
            counted_on = {bool(before and before.access), usable(before, now)}
            if counted_on != {usable(record, now)}:
                self.generation += 1

    def version(self, credential: CredentialEntry) -> int:
        """Return the version of the material: the record's, for a token; else the snapshot's."""
        if credential.kind != OAUTH:
            return credential.version
        record = self._records.get(credential.id)
        return record.version if record is not None else 0

    def refreshable(self, credential: CredentialEntry) -> bool:
        """Whether there is a refresh token, so that a refused access token may be replaced."""
        record = self._records.get(credential.id) if credential.kind == OAUTH else None
        return record is not None and bool(record.refresh_token)

    def attributes(self, credential: CredentialEntry) -> Mapping[str, str]:
        """Return what the auth provider said of the credential for executors."""
        record = self._records.get(credential.id)
        return record.attributes if record is not None else {}

    def metadata(self, credential: CredentialEntry) -> Mapping[str, Any]:
        """Return what the auth provider keeps of the credential for itself."""
        record = self._records.get(credential.id)
        return record.metadata if record is not None else {}

    def material(self, credential: CredentialEntry) -> Mapping[str, str]:
        """Return the plain material of the configuration, for its owner; empty for tokens."""
        found = self._find(credential)
        return found.values if found is not None else {}

    def _find(self, credential: CredentialEntry) -> Material | None:
        key = (credential.id, credential.fingerprint)
        return (
            self._material.get(key)
            or self._previous.get(key)
            or self._given.get(key)
            or self._former.get(key)
        )

    def _serving(self, provider: ProviderEntry, credential: CredentialEntry) -> Material | None:
        """Return the material to call *provider* with: what the snapshot means, or what stands in for it."""
        found = self._find(credential)
        if found is None and (kept := self._stand_ins.get(credential.id)) is not None:
            source, material = kept
            # Only for whom it was meant: another address must never see a key by mistake.
            if source == source_of(provider, credential):
                return material
        return found

    def usable(self, provider: ProviderEntry, credential: CredentialEntry) -> bool:
        """Whether the material that the snapshot means is here."""
        if credential.id in self._disabled:
            return False
        if credential.kind == OAUTH:
            return usable(self._records.get(credential.id), self._clock.now())
        return credential.kind == KEYLESS or self._serving(provider, credential) is not None

    def obstacle(self, provider: ProviderEntry, credential: CredentialEntry) -> str:
        """
        Return why `usable` says no; empty when it says yes.

        `disabled` (by management), `no_material`, `needs_login`, or `expired`: a token that has run out and
        is being refreshed, or will be (the refresher's status says how).
        """
        if self.usable(provider, credential):
            return ""
        if credential.id in self._disabled:
            return "disabled"
        if credential.kind != OAUTH:
            return "no_material"
        record = self._records.get(credential.id)
        if record is None or not (record.access or record.refresh_token):
            return "no_material"
        if record.status == "needs_login" or not record.refresh_token:
            return "needs_login"
        return "expired"

    def sealed(
        self, provider: ProviderEntry, credential: CredentialEntry
    ) -> tuple[secret_pb2.SealedSecret | None, float]:
        """
        Return the access material sealed for the provider's plugin, and until when to use it.

        None when it sends no key. The message is shared: copy it, never change it.
        """
        if credential.kind == KEYLESS:
            return None, math.inf
        version = self.version(credential)
        key = (provider.plugin, credential.id, version, provider.base_url)
        now = self._clock.now()
        kept = self._sealed.get(key)
        if kept is not None and kept[1] > now:
            return kept
        until = now + SEALED_FOR
        values: Mapping[str, str]
        if credential.kind == OAUTH:
            record = self._records.get(credential.id)
            if record is None or not record.access:
                return None, now
            values = record.access
            if record.expires_at:
                # A grant ends with its token; the attempts that it was made for still open the secret.
                until = min(until, max(record.expires_at, now) + _RENEW_BELOW)
        else:
            material = self._serving(provider, credential)
            if material is None:
                return None, now
            values = material.values
        secret = seal(
            self._sealing_key(provider.plugin),
            provider.plugin,
            credential.id,
            version,
            [origin_of(provider.base_url)] if provider.base_url else [],
            until,
            values,
        )
        self._sealed[key] = (secret, until - _RENEW_BELOW)
        return self._sealed[key]

    def _sealing_key(self, plugin_id: str) -> bytes:
        key = self._keys.get(plugin_id)
        if key is None:
            key = sealing_key(keys.plugin_key(self._root, plugin_id))
            self._keys[plugin_id] = key
        return key
