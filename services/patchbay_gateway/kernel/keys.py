"""
The three root keys and what is derived from them.

`store` seals credentials at rest (scheduler), `plugins` makes each plugin's key (scheduler, operator),
`cluster` digests client keys and makes the keys between services (edge, scheduler, usage, operator). Each has
up to two live generations, newest first: the newest makes, all of them open. A root is 32 bytes; it is
written as 64 hex digits or as base64, or is any secret of at least 32 characters, then hashed.

Not here: sealing (scheduler), tokens of calls and the keys below a plugin's key (the SDK).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition
from patchbay.keys import KEY_BYTES, derive

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOTS: Final = ("store", "plugins", "cluster")
GENERATIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots a process was given, each newest first; empty for those that are not its business."""

    store: tuple[bytes, ...] = field(default=(), repr=False)
    plugins: tuple[bytes, ...] = field(default=(), repr=False)
    cluster: tuple[bytes, ...] = field(default=(), repr=False)


def load_roots(
    env: Mapping[str, str], needed: Iterable[str], data_dir: Path | None = None
) -> Roots:
    """
    Read PATCHBAY_{STORE,PLUGINS,CLUSTER}_KEY or ..._KEY_FILE; make what is missing in *data_dir*.

    Args:
        env: The environment.
        needed: Which of "store", "plugins" and "cluster" this process uses; the others stay empty.
        data_dir: Roots live in its `keys/` as files of mode 0600. None: nothing is made.

    Raises:
        FailedPrecondition: A root is missing or malformed, or its file is open to others.
    """
    found: dict[str, tuple[bytes, ...]] = {}
    for name in needed:
        variable = f"PATCHBAY_{name.upper()}_KEY"
        if env.get(variable):
            found[name] = _generations(env[variable], variable)
        elif env.get(f"{variable}_FILE"):
            found[name] = _from_file(Path(env[f"{variable}_FILE"]), f"{variable}_FILE")
        elif data_dir is not None:
            path = data_dir / "keys" / name
            _make(path)
            _refuse_open(path)
            found[name] = _from_file(path, str(path))
        else:
            raise FailedPrecondition(
                f"the root key {name!r} is missing: set {variable}_FILE to a file of 64 hex digits "
                "(openssl rand -hex 32), the same for every process of this installation",
                reason="ROOT_KEY_MISSING",
            )
    return Roots(**found)


def plugin_key(root: bytes, plugin_id: str) -> bytes:
    """Return the key of *plugin_id* under a `plugins` root."""
    return derive(root, b"patchbay plugin v1:" + plugin_id.encode())


def service_key(cluster_root: bytes) -> bytes:
    """Return the key of the calls between our own services."""
    return derive(cluster_root, b"patchbay service v1")


def client_key_digest(cluster_root: bytes, key: str) -> str:
    """Return what is stored of a client's *key*: an HMAC in hex, useless without the root. About 2 µs."""
    return hmac.digest(_digest_key(cluster_root), key.encode(), "sha256").hex()


def fingerprint(store_root: bytes, material: bytes) -> str:
    """Return a name for secret *material* that tells equal from changed and nothing else, in hex."""
    return hmac.digest(derive(store_root, b"patchbay fingerprint v1"), material, "sha256").hex()


# HKDF costs ten times the HMAC, and a digest is made for every request. Holds what the process holds anyway.
@functools.lru_cache(maxsize=2 * GENERATIONS)
def _digest_key(cluster_root: bytes) -> bytes:
    return derive(cluster_root, b"patchbay client key v1")


def _generations(text: str, source: str) -> tuple[bytes, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= GENERATIONS:
        raise FailedPrecondition(
            f"{source} has {len(lines)} lines; it takes the key and, after a rotation, "
            "the previous one below",
            reason="ROOT_KEY_INVALID",
        )
    return tuple(_root(line, source) for line in lines)


def _root(text: str, source: str) -> bytes:
    with contextlib.suppress(ValueError):
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
    with contextlib.suppress(binascii.Error, ValueError):
        decoded = base64.b64decode(text, validate=True)
        if len(decoded) == KEY_BYTES:
            return decoded
    if len(text) < KEY_BYTES:
        raise FailedPrecondition(
            f"{source} is too short for a key: use 64 hex digits (openssl rand -hex 32)",
            reason="ROOT_KEY_INVALID",
        )
    return hashlib.sha256(text.encode()).digest()


def _from_file(path: Path, source: str) -> tuple[bytes, ...]:
    try:
        return _generations(path.read_text(), source)
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(
            f"{source}: the root key {path} cannot be read: {error}", reason="ROOT_KEY_MISSING"
        ) from error


def _refuse_open(path: Path) -> None:
    # Only for files we made: a mounted Secret is readable by its group, and the orchestrator guards it.
    if path.stat().st_mode & 0o077:
        raise FailedPrecondition(
            f"the root key {path} can be read by others: chmod 600 {path}", reason="ROOT_KEY_OPEN"
        )


def _make(path: Path) -> None:
    """Write a new root to *path* unless there is one; processes that start together agree on the first."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link never replaces, unlike rename, so the loser of a race keeps the winner's key.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
