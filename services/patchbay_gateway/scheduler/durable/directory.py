"""
The durable store as a directory: one file of mode 0600 per credential, shared by processes of one machine.

A write holds an exclusive flock on `.lock`, compares the revision, writes a draft, syncs it, renames it over
the old file and syncs the directory: a kill at any instant leaves the old record or the new one, whole. Reads
take no lock. A file is one JSON object: what is needed to find and check the record in the clear, the record
encrypted.

The directory must be on a file system with working flock; network file systems often have none.
Not here: what is in a record (port.py), its encryption (sealing.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import msgspec

from patchbay.errors import FailedPrecondition, Unavailable
from patchbay_gateway.scheduler.durable.port import (
    RecordChanged,
    RecordUnreadable,
    Stored,
    decode,
    encode,
)
from patchbay_gateway.scheduler.durable.sealing import RecordCipher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from patchbay_gateway.scheduler.durable.port import CredentialRecord

_FORM: Final = 1
_SUFFIX: Final = ".json"
_DRAFT: Final = ".draft-"
# Below the 255 bytes that file names may have, with room for suffixes.
_LONGEST_NAME: Final = 160

_Seen = tuple[int, int, int, int]


class _File(msgspec.Struct, frozen=True):
    """What is in a file."""

    form: int
    id: str
    revision: str
    version: int
    key_id: str
    sealed: str


@dataclass(slots=True)
class _Known:
    """A file that was read, and what `stat` said of it."""

    seen: _Seen
    id: str
    revision: str


class DirectoryStore:
    """
    The records below one directory.

    Args:
        directory: Made if missing, mode 0700.
        store_roots: Newest first.

    Raises:
        FailedPrecondition: The directory cannot be made or written.
    """

    def __init__(self, directory: Path, store_roots: Sequence[bytes]) -> None:
        self._dir = directory
        self._cipher = RecordCipher(store_roots)
        self._known: dict[str, _Known] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self._sweep()
        except OSError as error:
            raise FailedPrecondition(
                f"{directory} cannot hold credentials: {error.strerror}; "
                "choose another place with PATCHBAY_CREDENTIALS_DIR",
                reason="CREDENTIALS_DIRECTORY",
            ) from error

    @property
    def open(self) -> bool:
        """Yes."""
        return True

    async def revisions(self) -> Mapping[str, str]:
        """Return id → revision; files that did not change are not read again."""
        return await asyncio.to_thread(self._revisions)

    async def read(self, credential_id: str) -> Stored | None:
        """Return the record."""
        return await asyncio.to_thread(self._read, credential_id)

    async def write(self, record: CredentialRecord, *, expected: str | None) -> str:
        """Replace the record."""
        return await asyncio.to_thread(self._write, record, expected)

    async def delete(self, credential_id: str, *, expected: str) -> None:
        """Remove the record."""
        await asyncio.to_thread(self._delete, credential_id, expected)

    def reseal(self) -> None:
        """
        Encrypt records anew that a former root sealed, so that it can be given up. Blocking.

        What cannot be opened, or is written by others meanwhile, is left alone.

        Raises:
            Unavailable: The directory cannot be read or written.
        """
        with _told("list"):
            paths = [p for p in self._dir.glob(f"*{_SUFFIX}") if not p.name.startswith(".")]
        for path in paths:
            with contextlib.suppress(RecordUnreadable, RecordChanged):
                file = _file(path)
                if file is None or file.key_id == self._cipher.key_id:
                    continue
                stored = self._read(file.id)
                if stored is not None:
                    self._write(stored.record, stored.revision)

    # -- in a thread ------------------------------------------------------------------------------

    def _revisions(self) -> dict[str, str]:
        found: dict[str, _Known] = {}
        with _told("list"):
            for entry in os.scandir(self._dir):
                if entry.name.startswith(".") or not entry.name.endswith(_SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    seen = (stat.st_ino, stat.st_dev, stat.st_mtime_ns, stat.st_size)
                    known = self._known.get(entry.name)
                    if known is None or known.seen != seen:
                        known = _look(Path(entry.path), seen)
                    found[entry.name] = known
        self._known = found
        return {known.id: known.revision for known in found.values()}

    def _read(self, credential_id: str) -> Stored | None:
        with _told(f"read the record of credential {credential_id} from"):
            file = _file(self._path(credential_id))
        if file is None:
            return None
        if file.id != credential_id or file.form > _FORM:
            raise RecordUnreadable(
                f"the file of credential {credential_id} is another one's, or of a newer release"
            )
        try:
            sealed = base64.b64decode(file.sealed, validate=True)
        except ValueError as error:
            raise RecordUnreadable(
                f"the record of credential {credential_id} is damaged"
            ) from error
        plain = self._cipher.open(credential_id, file.version, file.key_id, sealed)
        return Stored(decode(plain), file.revision)

    def _write(self, record: CredentialRecord, expected: str | None) -> str:
        path = self._path(record.id)
        with _told(f"write the record of credential {record.id} to"), self._locked():
            count = self._compare(path, record.id, expected)
            # The random part: a count alone would begin again after a removal.
            revision = f"{count + 1}-{secrets.token_hex(4)}"
            file = _File(
                form=_FORM,
                id=record.id,
                revision=revision,
                version=record.version,
                key_id=self._cipher.key_id,
                sealed=base64.b64encode(
                    self._cipher.seal(record.id, record.version, encode(record))
                ).decode(),
            )
            self._replace(path, msgspec.json.encode(file) + b"\n")
        return revision

    def _delete(self, credential_id: str, expected: str) -> None:
        path = self._path(credential_id)
        with _told(f"remove the record of credential {credential_id} from"), self._locked():
            self._compare(path, credential_id, expected)
            path.unlink()
            self._sync_directory()

    def _compare(self, path: Path, credential_id: str, expected: str | None) -> int:
        """Return the count of the revision that is there, 0 if none, if it is *expected*."""
        try:
            file = _file(path)
        except RecordUnreadable:
            # Nobody can have read its revision; who writes anew says so with None.
            file = None
        if (file.revision if file is not None else None) != expected:
            raise RecordChanged(f"the record of credential {credential_id} was changed meanwhile")
        return int(expected.partition("-")[0]) if expected else 0

    def _replace(self, path: Path, data: bytes) -> None:
        draft = self._dir / f"{_DRAFT}{os.getpid()}-{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Closing unlocks: each lock has a descriptor of its own.
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove drafts of processes that were killed; under the lock nobody has a living one."""
        for draft in self._dir.glob(f"{_DRAFT}*"):
            draft.unlink(missing_ok=True)

    def _path(self, credential_id: str) -> Path:
        name = quote(credential_id, safe="@")
        if name.startswith("."):
            name = "%2E" + name[1:]
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(credential_id.encode()).hexdigest()
            name = f"{name[:64]}~{digest}"
        return self._dir / f"{name}{_SUFFIX}"


def _file(path: Path) -> _File | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=_File)
    except msgspec.MsgspecError as error:
        raise RecordUnreadable(f"{path.name} in the credentials directory is damaged") from error


def _look(path: Path, seen: _Seen) -> _Known:
    try:
        file = _file(path)
    except RecordUnreadable:
        file = None
    if file is None:
        # Shown under the name of its file, so that whoever reads it learns what is wrong.
        return _Known(seen, unquote(path.name.removesuffix(_SUFFIX)), "unreadable")
    return _Known(seen, file.id, file.revision)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what the system refuses into an error that says what was tried."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot {what} the credentials directory: {error.strerror or error}",
            reason="CREDENTIALS_DIRECTORY",
            retry_after=1.0,
        ) from error
