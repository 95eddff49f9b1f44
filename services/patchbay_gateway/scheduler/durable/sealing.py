"""
Records encrypted at rest: AES-256-GCM under a key of the `store` root.

The associated data are the credential's id and the record's version, so that a record cannot be passed off as
another credential's or as another version. The newest root seals, all live ones open.

Not here: where the bytes are kept (the adapters).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from patchbay.keys import derive, key_id
from patchbay_gateway.scheduler.durable.port import RecordUnreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

_INFO: Final = b"patchbay durable store v1"
_LABEL: Final = b"patchbay record v1"
_NONCE_BYTES: Final = 12


class RecordCipher:
    """
    Seals and opens.

    Args:
        store_roots: Newest first.
    """

    def __init__(self, store_roots: Sequence[bytes]) -> None:
        derived = [derive(root, _INFO) for root in store_roots]
        self.key_id = key_id(derived[0])
        """Public name of the key that seals."""
        self._ciphers = {key_id(key): AESGCM(key) for key in derived}

    def seal(self, name: str, version: int, plain: bytes) -> bytes:
        """Return *plain* encrypted for record *name* in *version*."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.key_id].encrypt(nonce, plain, _associated(name, version))
        return nonce + sealed

    def open(self, name: str, version: int, sealed_under: str, sealed: bytes) -> bytes:
        """
        Return the plain text.

        Raises:
            RecordUnreadable: Another root sealed it, or it is not what was sealed.
        """
        cipher = self._ciphers.get(sealed_under)
        if cipher is None:
            raise RecordUnreadable(
                f"the record of credential {name} is sealed under another store key; "
                "start with the key it was written with (second line of PATCHBAY_STORE_KEY)"
            )
        try:
            return cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(name, version)
            )
        except (InvalidTag, ValueError) as error:
            raise RecordUnreadable(f"the record of credential {name} is damaged") from error


def _associated(name: str, version: int) -> bytes:
    data = name.encode()
    return _LABEL + struct.pack(">I", len(data)) + data + struct.pack(">q", version)
