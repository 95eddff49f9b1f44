"""Sealed secrets opened without our SDK, as proto/README.md says. Not here: where the key comes from."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class RefusedSecretError(Exception):
    """A secret that is not used; `code` and `reason` say why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        denied = reason == "SECRET_ORIGIN"
        self.code = (
            grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.FAILED_PRECONDITION
        )


def opened(key: bytes, plugin_id: str, sealed: Any, url: str) -> dict[str, str]:
    """
    Return the plain text of a secret that may go to *url*.

    Raises:
        RefusedSecretError: It may not, or cannot be opened with the sealing *key*.
    """
    if sealed.plugin_id != plugin_id:
        raise RefusedSecretError("SECRET_FOREIGN")
    if sealed.not_after.ToNanoseconds() < time.time_ns():
        raise RefusedSecretError("SECRET_EXPIRED")
    if sealed.key_id != hashlib.sha256(key).digest()[:8].hex():
        raise RefusedSecretError("SECRET_KEY_UNKNOWN")
    texts = (sealed.key_id, sealed.plugin_id, sealed.credential_id)
    associated = b"patchbay sealed v1" + b"".join(map(_sized, texts))
    associated += struct.pack(">qI", sealed.version, len(sealed.allowed_origins))
    associated += b"".join(map(_sized, sealed.allowed_origins))
    associated += struct.pack(">qI", sealed.not_after.seconds, sealed.not_after.nanos)
    nonce, rest = sealed.ciphertext[:12], sealed.ciphertext[12:]
    try:
        plain: dict[str, str] = json.loads(AESGCM(key).decrypt(nonce, rest, associated))
    except InvalidTag:
        raise RefusedSecretError("SECRET_INVALID") from None
    where = urlsplit(url)
    if f"{where.scheme}://{where.netloc}" not in sealed.allowed_origins:
        raise RefusedSecretError("SECRET_ORIGIN")
    return plain


def _sized(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()
