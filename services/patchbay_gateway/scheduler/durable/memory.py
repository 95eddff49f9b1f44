"""
A durable store that is not durable: for tests, behind the same contract.

Not here: anything that a process runs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.scheduler.durable.port import RecordChanged, Stored, decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.scheduler.durable.port import CredentialRecord


class MemoryStore:
    """Records of this process; several schedulers of one test may share it."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[bytes, str]] = {}
        self._writes = 0

    @property
    def open(self) -> bool:
        """Yes."""
        return True

    async def revisions(self) -> Mapping[str, str]:
        """Return id → revision."""
        return {id_: revision for id_, (_, revision) in self._records.items()}

    async def read(self, credential_id: str) -> Stored | None:
        """Return the record."""
        found = self._records.get(credential_id)
        return Stored(decode(found[0]), found[1]) if found is not None else None

    async def write(self, record: CredentialRecord, *, expected: str | None) -> str:
        """Replace the record."""
        self._compare(record.id, expected)
        self._writes += 1
        revision = str(self._writes)
        # Through the same form as on disk, so that what cannot be written fails here too.
        self._records[record.id] = (encode(record), revision)
        return revision

    async def delete(self, credential_id: str, *, expected: str) -> None:
        """Remove the record."""
        self._compare(credential_id, expected)
        del self._records[credential_id]

    def _compare(self, credential_id: str, expected: str | None) -> None:
        found = self._records.get(credential_id)
        if (found[1] if found is not None else None) != expected:
            raise RecordChanged(f"the record of credential {credential_id} was changed meanwhile")
