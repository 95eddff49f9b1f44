"""
Secrets sealed for one plugin: how they are sealed, opened and kept from leaking.

A SealedSecret is AES-256-GCM under the plugin's sealing key (`patchbay.keys.sealing_key`). The fields
beside `ciphertext` are the associated data, so none of them can be changed: whom it is for, where it may
be sent, until when. Layout of the associated data, integers big-endian:

    "patchbay sealed v1"
    u32 length + UTF-8    key_id
    u32 length + UTF-8    plugin_id
    u32 length + UTF-8    credential_id
    i64                   version
    u32 count, then count x (u32 length + UTF-8)   allowed_origins
    i64 seconds + u32 nanoseconds                  not_after (Unix)

`ciphertext` = 12 bytes of nonce, then AES-GCM's output with its tag. The plain text is a JSON object of
strings. Test vectors: tests/golden/sealed.json.

Not here: where sealing keys come from (`patchbay.keys`, `patchbay.serve`).
"""

from __future__ import annotations

import functools
import json
import os
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from patchbay import errors, keys
from patchbay.type.v1 import secret_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LABEL = b"patchbay sealed v1"
_NONCE_BYTES = 12
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def _field(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data


def associated_data(sealed: secret_pb2.SealedSecret) -> bytes:
    """Return the associated data of *sealed*: all its fields but the ciphertext."""
    origins = [_field(origin) for origin in sealed.allowed_origins]
    return b"".join(
        (
            _LABEL,
            _field(sealed.key_id),
            _field(sealed.plugin_id),
            _field(sealed.credential_id),
            struct.pack(">q", sealed.version),
            struct.pack(">I", len(origins)),
            *origins,
            struct.pack(">qI", sealed.not_after.seconds, sealed.not_after.nanos),
        )
    )


@functools.lru_cache(maxsize=1024)
def origin_of(url: str) -> str:
    """
    Return the origin of *url*: scheme://host[:port], lower case, the default port left out.

    Raises:
        InvalidRequest: *url* is not absolute or has user information in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise errors.InvalidRequest("the URL cannot be parsed", reason="INVALID_URL") from e
    if not parts.scheme or not host:
        raise errors.InvalidRequest("the URL must be absolute", reason="INVALID_URL")
    if "@" in parts.netloc or "\\" in url:
        # Such URLs are read differently by different parsers; the check here must be the client's.
        raise errors.InvalidRequest(
            "the URL must not carry user information or backslashes", reason="INVALID_URL"
        )
    if ":" in host:
        host = f"[{host}]"
    if port is None or port == _DEFAULT_PORTS.get(parts.scheme):
        return f"{parts.scheme}://{host}"
    return f"{parts.scheme}://{host}:{port}"


def seal(
    key: bytes,
    plugin_id: str,
    credential_id: str,
    version: int,
    allowed_origins: Iterable[str],
    not_after: float,
    material: Mapping[str, str],
    *,
    nonce: bytes | None = None,
) -> secret_pb2.SealedSecret:
    """
    Seal *material* for one plugin.

    Args:
        key: The plugin's sealing key, 32 bytes.
        plugin_id: Who may open it.
        credential_id: What it belongs to.
        version: Version of the credential.
        allowed_origins: URLs or origins it may be sent to; stored as origins.
        not_after: Unix seconds after which it must not be used.
        material: The secret strings; an API key is {"api_key": …}.
        nonce: 12 bytes, only for test vectors; random otherwise.
    """
    sealed = secret_pb2.SealedSecret(
        key_id=keys.key_id(key),
        plugin_id=plugin_id,
        credential_id=credential_id,
        version=version,
        allowed_origins=[origin_of(origin) for origin in allowed_origins],
    )
    sealed.not_after.FromMicroseconds(int(not_after * 1_000_000))
    nonce = nonce if nonce is not None else os.urandom(_NONCE_BYTES)
    plain = json.dumps(dict(material), separators=(",", ":"), ensure_ascii=False).encode()
    sealed.ciphertext = nonce + AESGCM(key).encrypt(nonce, plain, associated_data(sealed))
    return sealed


class OpenedSecret:
    """
    Secret strings that do not show themselves: `str`, `repr`, formats and pickles have none of them.

    Read a value with `secret["api_key"]` where it is needed, after `check` allowed the URL it goes to.
    """

    __slots__ = ("_material", "allowed_origins", "credential_id", "not_after", "version")

    def __init__(self, sealed: secret_pb2.SealedSecret, material: dict[str, str]) -> None:
        self._material = material
        self.credential_id = sealed.credential_id
        self.version = sealed.version
        self.allowed_origins = frozenset(sealed.allowed_origins)
        self.not_after = sealed.not_after.seconds + sealed.not_after.nanos / 1e9

    def __getitem__(self, name: str) -> str:
        try:
            return self._material[name]
        except KeyError:
            raise errors.FailedPrecondition(
                f"credential {self.credential_id} has no {name}", reason="SECRET_INCOMPLETE"
            ) from None

    def get(self, name: str, default: str = "") -> str:
        """Return one value, *default* if there is none."""
        return self._material.get(name, default)

    def material(self) -> dict[str, str]:
        """Return all values, for who keeps them: the host that gets a credential from its auth provider."""
        return dict(self._material)

    def check(self, url: str) -> None:
        """
        Allow sending this secret to *url*. To be called for every URL, targets of redirects included.

        Raises:
            PermissionDenied: the URL's origin is not one of the allowed.
            InvalidRequest: the URL is not absolute or ambiguous.
        """
        if origin_of(url) not in self.allowed_origins:
            raise errors.PermissionDenied(
                f"credential {self.credential_id} must not be sent to {origin_of(url)}",
                reason="SECRET_ORIGIN",
                sent=errors.Sent.NO,
            )

    def __repr__(self) -> str:
        return f"<OpenedSecret {self.credential_id} version {self.version} [redacted]>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an opened secret cannot be pickled or copied")


class SecretOpener:
    """
    Opens what was sealed under any of a plugin's keys, once per secret.

    Args:
        sealing_keys: The generations of sealing keys, of one plugin or of several in one process.
        cache_size: Opened secrets kept, so that AES-GCM runs once per secret and not per call.
    """

    def __init__(self, sealing_keys: Iterable[bytes], *, cache_size: int = 8192) -> None:
        self._keys = {keys.key_id(key): AESGCM(key) for key in sealing_keys}
        self._size = cache_size
        # The whole message is the key: a stolen ciphertext under a changed header must not hit.
        self._opened: OrderedDict[bytes, OpenedSecret] = OrderedDict()

    def open(self, sealed: secret_pb2.SealedSecret, now: float | None = None) -> OpenedSecret:
        """
        Return the opened secret.

        Args:
            sealed: The message as it came.
            now: Unix seconds; default the machine's clock.

        Raises:
            FailedPrecondition: expired (SECRET_EXPIRED), sealed under a key that is not here
                (SECRET_KEY_UNKNOWN), changed on the way or not an object of strings (SECRET_INVALID).
        """
        message = sealed.SerializeToString(deterministic=True)
        opened = self._opened.get(message)
        if opened is None:
            opened = self._decrypt(sealed)
            self._opened[message] = opened
            if len(self._opened) > self._size:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(message)
        if (time.time() if now is None else now) > opened.not_after:
            self._opened.pop(message, None)
            raise errors.FailedPrecondition(
                f"the secret of credential {sealed.credential_id} has expired",
                reason="SECRET_EXPIRED",
                sent=errors.Sent.NO,
            )
        return opened

    def _decrypt(self, sealed: secret_pb2.SealedSecret) -> OpenedSecret:
        cipher = self._keys.get(sealed.key_id)
        if cipher is None:
            raise errors.FailedPrecondition(
                f"the secret of credential {sealed.credential_id} is sealed under key "
                f"{sealed.key_id}, which plugin {sealed.plugin_id} does not have here; "
                "give it the plugin key of this installation",
                reason="SECRET_KEY_UNKNOWN",
                sent=errors.Sent.NO,
            )
        nonce, body = sealed.ciphertext[:_NONCE_BYTES], sealed.ciphertext[_NONCE_BYTES:]
        try:
            material = json.loads(cipher.decrypt(nonce, body, associated_data(sealed)))
        except (InvalidTag, ValueError) as e:
            raise errors.FailedPrecondition(
                f"the secret of credential {sealed.credential_id} was changed on the way",
                reason="SECRET_INVALID",
                sent=errors.Sent.NO,
            ) from e
        if not isinstance(material, dict) or not all(isinstance(v, str) for v in material.values()):
            raise errors.FailedPrecondition(
                f"the secret of credential {sealed.credential_id} is not an object of strings",
                reason="SECRET_INVALID",
                sent=errors.Sent.NO,
            )
        return OpenedSecret(sealed, material)
