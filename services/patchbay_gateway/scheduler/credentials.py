"""
Credential material of this scheduler: held in memory, and sealed for the executor that will use it.

Material comes from the configuration (a value, a variable or a file) and never leaves this object but
sealed for one plugin, for the provider's origin alone, for `SEALED_FOR`. The snapshot carries a fingerprint
of the material it was published with; where ours differs (a file that this scheduler has not seen yet, or a
key it was not given) the credential is not usable here.

Not here: choosing one (selection.py), what the snapshot says about them (publish.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from patchbay.errors import PatchbayError
from patchbay.keys import sealing_key
from patchbay.secrets import origin_of, seal
from patchbay_gateway.kernel import keys, logs
from patchbay_gateway.plugins.building import KEYLESS, implicit_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.type.v1 import secret_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry

__all__ = ["KEYLESS", "SEALED_FOR", "Credentials", "Material", "implicit_id", "read_material"]

_log = logs.get_logger("scheduler.credentials")

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


def read_material(
    config: Config, environ: Mapping[str, str], store_root: bytes
) -> dict[str, Material]:
    """
    Return credential id → material.

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
                _log.warning(
                    "credentials of this kind are not served yet",
                    credential=credential.id,
                    kind=credential.kind,
                )
                continue
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
        self._sealed: dict[tuple[str, str, int, str], tuple[secret_pb2.SealedSecret, float]] = {}
        self._keys: dict[str, bytes] = {}
        self.generation = 0
        """Grows with each `replace`."""

    def replace(self, material: Mapping[str, Material]) -> None:
        """
        Hold *material* from now on.

        What it replaces stays one generation longer, for requests that are pinned to a snapshot of then.
        """
        self._previous = {key: known for key, known in self._material.items() if key[0] in material}
        self._material = {(id_, m.fingerprint): m for id_, m in material.items()}
        self._sealed.clear()
        self.generation += 1

    def _find(self, credential: CredentialEntry) -> Material | None:
        key = (credential.id, credential.fingerprint)
        return self._material.get(key) or self._previous.get(key)

    def usable(self, provider: ProviderEntry, credential: CredentialEntry) -> bool:
        """Whether the material that the snapshot means is here."""
        return credential.kind == KEYLESS or self._find(credential) is not None

    def sealed(
        self, provider: ProviderEntry, credential: CredentialEntry
    ) -> tuple[secret_pb2.SealedSecret | None, float]:
        """
        Return the access material sealed for the provider's plugin, and until when to use it.

        None when it sends no key. The message is shared: copy it, never change it.
        """
        if credential.kind == KEYLESS:
            return None, math.inf
        key = (provider.plugin, credential.id, credential.version, provider.base_url)
        now = self._clock.now()
        kept = self._sealed.get(key)
        if kept is not None and kept[1] > now:
            return kept
        material = self._find(credential)
        if material is None:
            return None, now
        secret = seal(
            self._sealing_key(provider.plugin),
            provider.plugin,
            credential.id,
            credential.version,
            [origin_of(provider.base_url)] if provider.base_url else [],
            now + SEALED_FOR,
            material.values,
        )
        self._sealed[key] = (secret, now + SEALED_FOR - _RENEW_BELOW)
        return self._sealed[key]

    def _sealing_key(self, plugin_id: str) -> bytes:
        key = self._keys.get(plugin_id)
        if key is None:
            key = sealing_key(keys.plugin_key(self._root, plugin_id))
            self._keys[plugin_id] = key
        return key
