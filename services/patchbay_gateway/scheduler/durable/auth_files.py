"""
The directory of auth files that CLIProxyAPI keeps, read as seeds of credentials: `auth_dir`.

Files are never written, moved or removed here: rotated tokens go to our own store, and a file counts anew
only when its token changes (`AuthDocument.seed_hash`). A file belongs to the configured provider that bears
the name of its `type`, or to the only provider whose executor plugin has that id. What cannot be used is told
with its reason, never passed over in silence.

Not here: what a document says (`patchbay.auth_documents`), files that plugins read (parsed_files.py), where
rotated tokens are kept (the durable store).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from patchbay.auth_documents import Refused, Torn, head, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from patchbay.auth_documents import AuthDocument, DocumentHead

MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 8
MAX_BYTES: Final = 1 << 20

# CLIProxyAPI's watcher reads files of the one type as the other.
_OTHER_NAMES: Final[Mapping[str, str]] = {"gemini": "gemini-cli"}
# What the configuration allows for ids; file names have more, addresses of people for example.
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_ID_LENGTH: Final = 100


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One usable file."""

    id: str
    """Stable credential id, made of the file's name."""
    source: str
    """Path relative to the directory, with slashes (pluginapi: the auth's id and file name)."""
    path: Path
    document: AuthDocument


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """One file as plugins are asked about it: readable JSON, whatever it says."""

    source: str
    """As in `AuthFile`."""
    path: Path
    digest: str
    """Hex SHA-256 of its content."""
    head: DocumentHead

    @property
    def type(self) -> str:
        """Provider key that plugins are asked by; empty where it names none."""
        return _OTHER_NAMES.get(self.head.type, self.head.type)

    def read(self) -> str | None:
        """Return its text; None when it is another one now. Blocking."""
        try:
            data = _read(self.path)
            if hashlib.sha256(data).hexdigest() != self.digest:
                return None
            return data.decode()
        except (Refused, UnicodeDecodeError):
            return None


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """One file that is not used."""

    source: str
    reason: str
    """Rest of a sentence that begins with the file's name."""


@dataclass(frozen=True, slots=True)
class AuthFiles:
    """A directory, read."""

    files: tuple[AuthFile, ...] = ()
    """Ordered by source."""
    refused: tuple[RefusedFile, ...] = ()
    signature: tuple[object, ...] = ()
    """Equal as long as nothing changed (`signature_of`), taken before the files were read."""
    offered: tuple[OfferedFile, ...] = ()
    """Those that plugins may read, usable here or not; ordered by source."""

    def without(self, sources: Collection[str]) -> AuthFiles:
        """Return what is left for the built-in reading when plugins have *sources*."""
        if not sources:
            return self
        return replace(
            self,
            files=tuple(file for file in self.files if file.source not in sources),
            refused=tuple(file for file in self.refused if file.source not in sources),
        )


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """What decides whether a file belongs to a configured provider."""

    name: str
    plugin: str


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file and the provider that it belongs to."""

    provider: str
    file: AuthFile


def read_auth_dir(path: Path, former: AuthFiles | None = None) -> AuthFiles:
    """
    Read every `*.json` below *path*; hidden files and directories are left out. Blocking.

    A file that is torn (CLIProxyAPI writes in place) counts as it did in *former*, and is told. A directory
    that is not there, or cannot be read, is one refusal and no file.
    """
    refused: list[RefusedFile] = []
    signature = signature_of(path)
    found: dict[str, AuthFile] = {}
    offered: dict[str, OfferedFile] = {}
    offered_before = {file.source: file for file in former.offered} if former is not None else {}
    before = {file.source: file for file in former.files} if former is not None else {}
    sources = list(_sources(path, refused))
    if len(sources) > MAX_FILES:
        refused.append(RefusedFile(".", f"has more than {MAX_FILES} files; the rest is left out"))
    for source in sources[:MAX_FILES]:
        try:
            data = _read(path / source)
            offered[source] = OfferedFile(
                source, path / source, hashlib.sha256(data).hexdigest(), head(data)
            )
            document = parse(data)
        except Refused as error:
            if isinstance(error, Torn) and source in offered_before:
                offered[source] = offered_before[source]
            kept = before.get(source) if isinstance(error, Torn) else None
            if kept is not None and kept.id not in found:
                found[kept.id] = kept
                error = Refused(f"{error}; what it said before counts")
            refused.append(RefusedFile(source, str(error)))
            continue
        id_ = credential_id(source)
        if id_ in found:
            refused.append(RefusedFile(source, f"would have the id of {found[id_].source}"))
            continue
        found[id_] = AuthFile(id_, source, path / source, document)
    return AuthFiles(
        files=tuple(sorted(found.values(), key=lambda file: file.source)),
        refused=tuple(refused),
        signature=signature,
        offered=tuple(sorted(offered.values(), key=lambda file: file.source)),
    )


def signature_of(path: Path) -> tuple[object, ...]:
    """Return what tells a changed directory from an unchanged one. Blocking; reads no content."""
    entries: list[object] = []
    for source in sorted(_sources(path, [])):
        target = path / source
        try:
            stat = target.stat()
        except OSError as error:
            entries.append((source, error.errno))
            continue
        # The name behind all links: a mounted Secret is swapped by a link.
        behind = os.path.realpath(target) if target.is_symlink() else ""
        entries.append((source, behind, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(entries)


def credential_id(source: str) -> str:
    """
    Return the credential id of the file at *source*, a path relative to the directory.

    It is the path without `.json` where the configuration's rule for ids allows that; otherwise what is not
    allowed becomes a hyphen, and a part of the path's hash keeps two such files apart.
    """
    plain = re.sub(r"\.json$", "", source, flags=re.IGNORECASE)
    safe = _NOT_IN_IDS.sub("-", plain).strip("-._")[:_ID_LENGTH]
    if safe == plain and safe:
        return safe
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{safe or 'auth'}-{digest}"


def place(
    files: Iterable[AuthFile], providers: Iterable[ProviderKey], taken: Iterable[str] = ()
) -> tuple[tuple[PlacedFile, ...], tuple[RefusedFile, ...]]:
    """
    Return which file belongs to which provider, and which to none and why.

    Args:
        files: Of `read_auth_dir`.
        providers: The configured ones.
        taken: Ids of configured credentials; the configuration wins.
    """
    providers, taken = list(providers), set(taken)
    placed: list[PlacedFile] = []
    refused: list[RefusedFile] = []
    for file in files:
        if file.id in taken:
            refused.append(
                RefusedFile(file.source, f"has the id of a configured credential, {file.id}")
            )
            continue
        try:
            provider = provider_of(file.document.type, providers)
        except Refused as error:
            refused.append(RefusedFile(file.source, str(error)))
            continue
        placed.append(PlacedFile(provider, file))
    return tuple(placed), tuple(refused)


def provider_of(type_: str, providers: Sequence[ProviderKey]) -> str:
    """
    Return the name of the provider that files of a type belong to.

    Raises:
        Refused: None, or more than one.
    """
    names = [name for name in (_OTHER_NAMES.get(type_), type_) if name]
    for name in names:
        for provider in providers:
            if provider.name.lower() == name:
                return provider.name
    for name in names:
        having = [provider.name for provider in providers if provider.plugin.lower() == name]
        if len(having) == 1:
            return having[0]
        if having:
            raise Refused(
                f"is of type {type_}, the plugin of several providers ({', '.join(having)}); "
                "write the name of one as its type"
            )
    raise Refused(
        f"is of type {type_}; no provider has that name, and no provider's plugin that id"
    )


def _sources(
    path: Path, refused: list[RefusedFile], prefix: str = "", depth: int = 0
) -> Iterator[str]:
    """Yield the paths of auth files relative to the directory, ordered within each folder."""
    try:
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        refused.append(RefusedFile(prefix.rstrip("/") or ".", f"cannot be read: {error.strerror}"))
        return
    for entry in entries:
        # Hidden: states of logins, drafts of atomic writes, and the real folders of mounted Secrets.
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth < MAX_DEPTH:
                yield from _sources(path / entry.name, refused, f"{prefix}{entry.name}/", depth + 1)
        elif entry.name.lower().endswith(".json"):
            # A link that leads nowhere is read, so that it is told; a pipe would be waited for.
            if entry.is_file() or entry.is_symlink():
                yield f"{prefix}{entry.name}"
            else:
                refused.append(RefusedFile(f"{prefix}{entry.name}", "is no regular file"))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise Refused("is no regular file, or a link that leads nowhere")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Torn(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise Refused(f"is larger than {MAX_BYTES} bytes")
    if not data.strip():
        raise Torn("is empty")
    return data
