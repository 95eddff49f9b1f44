"""
The form of a snapshot on its way: a manifest and sections of JSON, in Redis and in the file on disk.

Client keys are cut into 256 sections by the first byte of their digest, so that a new key moves one of them.
Equal snapshots have equal sections, so that hashes tell what changed. Not here: how they travel
(distribution.py), what is in them (snapshot.py).
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins.snapshot import (
    ClientKeyEntry,
    PluginEntry,
    PriceEntry,
    ProviderEntry,
    RouteEntry,
    SettingsEntry,
    Snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

READER: Final = 1
"""The form of sections that this release reads; a manifest may ask for a newer one."""

_log = logs.get_logger("plugins.distribution")

_SECTIONS: Final[Mapping[str, Any]] = {
    "plugins": tuple[PluginEntry, ...],
    "routes": tuple[RouteEntry, ...],
    "providers": tuple[ProviderEntry, ...],
    "prices": tuple[PriceEntry, ...],
    "settings": SettingsEntry,
}
_KEYS: Final = "client_keys/"


class Manifest(msgspec.Struct, frozen=True):
    """What a version consists of."""

    version: int
    hashes: dict[str, str]
    """Section → hex SHA-256 of its content."""
    min_reader: int = 1


class _Stored(msgspec.Struct, frozen=True):
    """The file on disk."""

    manifest: Manifest
    sections: dict[str, msgspec.Raw]


def encode_sections(snapshot: Snapshot) -> dict[str, bytes]:
    """Return the sections of *snapshot*; equal snapshots have equal ones, whatever their versions."""
    encode = msgspec.json.Encoder(order="deterministic").encode
    sections = {name: encode(getattr(snapshot, name)) for name in _SECTIONS}
    shards: dict[str, list[ClientKeyEntry]] = {}
    for key in sorted(snapshot.client_keys, key=lambda k: (k.digest, k.name)):
        shards.setdefault(key.digest[:2], []).append(key)
    for shard, entries in shards.items():
        sections[_KEYS + shard] = encode(entries)
    return sections


def decode_sections(version: int, sections: Mapping[str, bytes | msgspec.Raw]) -> Snapshot:
    """
    Put a snapshot together. Unknown sections and fields are a newer release's and left alone.

    Raises:
        FailedPrecondition: A section is not what it should be.
    """
    try:
        parts = {
            name: msgspec.json.decode(sections[name], type=kind)
            for name, kind in _SECTIONS.items()
            if name in sections
        }
        keys = [
            key
            for name in sorted(sections)
            if name.startswith(_KEYS)
            for key in msgspec.json.decode(sections[name], type=list[ClientKeyEntry])
        ]
    except msgspec.DecodeError as error:
        raise FailedPrecondition(
            f"snapshot {version} cannot be read: {error}", reason="SNAPSHOT_UNREADABLE"
        ) from error
    return Snapshot(version=version, client_keys=tuple(keys), **parts)


def hash_section(content: bytes) -> str:
    """Return the name of a section's content."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path) -> Snapshot | None:
    """Return the snapshot in the file; None when there is none that can be used."""
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        if stored.manifest.min_reader > READER:
            return None
        return decode_sections(stored.manifest.version, stored.sections)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, FailedPrecondition) as error:
        _log.warning("the snapshot on disk is not used", path=str(path), why=str(error))
        return None


def write_file(path: Path, snapshot: Snapshot) -> None:
    """Replace the file by *snapshot*, durably. OSError when the disk will not."""
    sections = encode_sections(snapshot)
    hashes = {name: hash_section(content) for name, content in sections.items()}
    stored = _Stored(
        Manifest(snapshot.version, hashes), {n: msgspec.Raw(c) for n, c in sections.items()}
    )
    content = msgspec.json.encode(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
