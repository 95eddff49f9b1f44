"""
The durable store in Kubernetes: the record of a credential is in the Secret `<id>-state`.

The operator makes the Secrets, empty, and lets schedulers get and update each by name; a revision is the
Secret's resourceVersion, so the API server decides who wrote first. The record is encrypted as in a
directory. Without the right to list, `revisions` asks for the credentials that it is told of. Not here: what
is in a record (port.py), its encryption (sealing.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import Aborted, Unavailable
from patchbay_gateway.scheduler.durable.port import (
    RecordChanged,
    RecordUnreadable,
    Stored,
    decode,
    encode,
)
from patchbay_gateway.scheduler.durable.sealing import RecordCipher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from patchbay_gateway.scheduler.cluster_secrets import Secret, SecretsApi
    from patchbay_gateway.scheduler.durable.port import CredentialRecord

_KEY: Final = "record"
_FORM: Final = 1
_AT_ONCE: Final = 8


class _Sealed(msgspec.Struct, frozen=True):
    """What is under the key `record`."""

    form: int
    id: str
    version: int
    key_id: str
    sealed: bytes


def state_name(credential_id: str) -> str:
    """Return the name of a credential's Secret."""
    return f"{credential_id}-state"


class SecretStore:
    """
    The adapter.

    Args:
        api: The namespace's Secrets.
        store_roots: Newest first.
        ids: Tells the credentials that may have records.
    """

    def __init__(
        self,
        api: SecretsApi,
        store_roots: Sequence[bytes],
        *,
        ids: Callable[[], Iterable[str]],
    ) -> None:
        self._api = api
        self._cipher = RecordCipher(store_roots)
        self._ids = ids

    @property
    def open(self) -> bool:
        """No: each Secret belongs to a ProviderCredential."""
        return False

    async def revisions(self) -> Mapping[str, str]:
        """Return id → revision."""
        bound = asyncio.Semaphore(_AT_ONCE)

        async def ask(id_: str) -> tuple[str, Secret | None]:
            async with bound:
                return id_, await self._api.get(state_name(id_))

        found = await asyncio.gather(*(ask(id_) for id_ in sorted(set(self._ids()))))
        return {id_: s.revision for id_, s in found if s is not None and s.data.get(_KEY)}

    async def read(self, credential_id: str) -> Stored | None:
        """Return the record."""
        secret = await self._api.get(state_name(credential_id))
        if secret is None or not secret.data.get(_KEY):
            return None
        try:
            sealed = msgspec.json.decode(secret.data[_KEY], type=_Sealed)
        except msgspec.MsgspecError as error:
            raise RecordUnreadable(
                f"the record of credential {credential_id} is damaged"
            ) from error
        if sealed.id != credential_id or sealed.form > _FORM:
            raise RecordUnreadable(
                f"the Secret of credential {credential_id} is another one's, or of a newer release"
            )
        plain = self._cipher.open(credential_id, sealed.version, sealed.key_id, sealed.sealed)
        return Stored(decode(plain), secret.revision)

    async def write(self, record: CredentialRecord, *, expected: str | None) -> str:
        """Replace the record."""
        secret = await self._expected(record.id, expected)
        sealed = _Sealed(
            form=_FORM,
            id=record.id,
            version=record.version,
            key_id=self._cipher.key_id,
            sealed=self._cipher.seal(record.id, record.version, encode(record)),
        )
        return await self._put(record.id, secret, {_KEY: msgspec.json.encode(sealed)})

    async def delete(self, credential_id: str, *, expected: str) -> None:
        """Empty the Secret, which stays the operator's."""
        secret = await self._expected(credential_id, expected)
        await self._put(credential_id, secret, {})

    async def reseal(self) -> None:
        """Encrypt records anew that a former root sealed; what cannot be opened is left alone."""
        for id_ in await self.revisions():
            with contextlib.suppress(RecordUnreadable, RecordChanged):
                secret = await self._api.get(state_name(id_))
                if secret is None or not secret.data.get(_KEY):
                    continue
                if (
                    msgspec.json.decode(secret.data[_KEY], type=_Sealed).key_id
                    == self._cipher.key_id
                ):
                    continue
                stored = await self.read(id_)
                if stored is not None:
                    await self.write(stored.record, expected=stored.revision)

    async def _expected(self, credential_id: str, expected: str | None) -> Secret:
        secret = await self._api.get(state_name(credential_id))
        if secret is None:
            if expected is not None:
                raise RecordChanged(f"the record of credential {credential_id} is gone")
            raise Unavailable(
                f"the operator has not made the Secret {state_name(credential_id)} yet",
                reason="STATE_SECRET_MISSING",
            )
        there = secret.revision if await self._readable(secret) else None
        if there != expected:
            raise RecordChanged(f"the record of credential {credential_id} was changed meanwhile")
        return secret

    async def _readable(self, secret: Secret) -> bool:
        """Whether there is a record whose revision somebody can have read; a damaged one is none."""
        try:
            return bool(
                secret.data.get(_KEY) and msgspec.json.decode(secret.data[_KEY], type=_Sealed)
            )
        except msgspec.MsgspecError:
            return False

    async def _put(self, credential_id: str, secret: Secret, data: Mapping[str, bytes]) -> str:
        try:
            return (await self._api.replace(secret, data)).revision
        except Aborted as error:
            raise RecordChanged(
                f"the record of credential {credential_id} was changed meanwhile"
            ) from error
