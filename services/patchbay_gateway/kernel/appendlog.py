"""
An append-only file of records that must reach somebody else before they may be forgotten.

The scheduler's journal and the edge's outbox are such logs. A record that `append` has returned for survives
a kill -9 of this process; after `sync` it survives the machine. The owner sends the records on and calls
`truncate` with the sequence up to which they have arrived.

Form on disk: a directory with `writer` (an id of its own, and the boot it was last opened in), `lock`, and
segments named after their first sequence. A record is length (u32), CRC-32 (u32, begun with the sequence),
payload, in little-endian order.

States of a segment: active (the last one, grows), closed (never changes), gone. At open the active one is
scanned and cut at the first record that is not whole: that is where a kill hit a write. Sequences grow over
restarts and have no holes but one kind: after a reboot they jump by `REBOOT_GAP`, because records that the
page cache lost may already have been sent on under their numbers, and a number must never mean two records.

Cost: `append` is one system call for a list of records, about 10 µs; it is called once a turn of the loop.
Not here: what is in a record, and whom it is sent to.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import secrets
import struct
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from patchbay.errors import ResourceExhausted, Unavailable
from patchbay_gateway.kernel.directory_lock import lock_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""An active segment is read at open, so its size is part of the start-up time: about 50 ms."""
TRIM_BYTES: Final = 64 * 1024
"""An active segment below this is not dropped: a new file costs about 50 µs."""
MAX_BYTES: Final = 1024 * 1024 * 1024
REBOOT_GAP: Final = 1 << 20
"""More than what can be appended within the 30 s in which a kernel writes its cache to disk."""

_HEADER: Final = struct.Struct("<II")
_SUFFIX: Final = ".log"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_BYTES: Final = 1024 * 1024


class AppendLog:
    """
    One directory, one process, one event loop.

    Args:
        directory: Made if missing; must not be on a file system without flock.
        segment_bytes: A segment that has grown to this is closed.
        max_bytes: What all segments together may hold.
        lock: Of who holds the directory already (directory_lock.py); it is this log's from now on.

    Raises:
        FailedPrecondition: Another process uses the directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
        lock: int | None = None,
    ) -> None:
        self._dir = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._lock = lock_directory(directory) if lock is None else lock
        self.writer_id, rebooted = _identify(directory)
        """Names this log for as long as its directory lives."""
        self._segments: dict[int, int] = {}
        """First sequence of each closed segment and its size, oldest first."""
        self._dirty: dict[int, int] = {}
        """First sequence and descriptor of closed segments that were not synced yet."""
        self._closed_bytes = 0
        self._active = -1
        self._active_first = 1
        self._active_size = 0
        self._next = 1
        self._torn = False
        self._directory_dirty = True
        self._syncing: asyncio.Task[OSError | None] | None = None
        self._open_last(rebooted=rebooted)
        self._synced = self._next - 1

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._dir

    @property
    def last_sequence(self) -> int:
        """The newest record's sequence, or the number before the first that will be given."""
        return self._next - 1

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._closed_bytes + self._active_size

    def append(self, payloads: Sequence[bytes]) -> int:
        """
        Write *payloads* and return the sequence of the first; the others follow it one by one.

        All or nothing. Safe from now on against the end of this process, not against that of the machine.

        Raises:
            ResourceExhausted: The bound or the disk is reached.
            Unavailable: The disk failed.
        """
        first = sequence = self._next
        parts: list[bytes] = []
        for payload in payloads:
            parts.append(_HEADER.pack(len(payload), zlib.crc32(payload, sequence & 0xFFFFFFFF)))
            parts.append(payload)
            sequence += 1
        data = b"".join(parts)
        if self._closed_bytes + self._active_size + len(data) > self._max_bytes:
            raise ResourceExhausted(
                f"{self._dir} holds {self.size} bytes that nobody has taken; its bound is {self._max_bytes}",
                reason="APPEND_LOG_FULL",
            )
        try:
            if self._active_size >= self._segment_bytes:
                self._rotate(self._next)
            self._write(data)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise ResourceExhausted(
                    f"{self._dir}: {error}", reason="APPEND_LOG_FULL"
                ) from error
            raise Unavailable(f"{self._dir}: {error}", reason="APPEND_LOG_IO") from error
        self._next = sequence
        return first

    async def sync(self) -> None:
        """
        Return when everything appended before this call is on disk. Callers share the work.

        Raises:
            Unavailable: The disk failed; what is on it is unknown.
        """
        wanted = self._next - 1
        while self._synced < wanted:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync_once(), name="append-log-sync")
            error = await asyncio.shield(self._syncing)
            if error is not None:
                raise Unavailable(f"{self._dir}: {error}", reason="APPEND_LOG_IO") from error

    def truncate(self, up_to: int) -> None:
        """
        Drop the segments that hold nothing above sequence *up_to*.

        An active one that has been taken whole is dropped once it has some size, so that a new life of the
        owner meets little that it has sent already.
        """
        if up_to >= self._next - 1 and self._active_size >= TRIM_BYTES:
            with contextlib.suppress(OSError):
                self._rotate(self._next)
        firsts = [*self._segments, self._active_first]
        for first, following in itertools.pairwise(firsts):
            if following - 1 > up_to:
                break
            self._path(first).unlink(missing_ok=True)
            self._closed_bytes -= self._segments.pop(first)
            if first in self._dirty:
                os.close(self._dirty.pop(first))

    def read(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """
        Yield (sequence, payload) of every record above *after*, oldest first.

        May be mixed with `append` and `truncate`; what is appended meanwhile may come or not. A closed
        segment that a power failure damaged is left at its first bad record.
        """
        firsts = [*self._segments, self._active_first]
        for index, first in enumerate(firsts):
            if index + 1 < len(firsts) and firsts[index + 1] - 1 <= after:
                continue
            with contextlib.suppress(FileNotFoundError):
                for sequence, payload in _records(self._path(first), first):
                    if sequence > after:
                        yield sequence, payload

    def newest(self) -> int:
        """Return the sequence of the newest record that is still there; 0: none. Reads a segment."""
        for first in (self._active_first, *reversed(self._segments)):
            newest = deque(_records(self._path(first), first), maxlen=1)
            if newest:
                return newest[0][0]
        return 0

    def remove(self) -> None:
        """
        Remove the directory with all that is in it, and close. What a kill leaves of it holds no records.

        Raises:
            OSError: Something in it cannot be removed.
        """
        try:
            for path in sorted(self._dir.glob(f"*{_SUFFIX}")):
                path.unlink()
            # What survives of it must not find itself without its writer's name.
            _fsync([], self._dir)
            for name in ("writer", ".writer", "lock"):
                (self._dir / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a file that is not ours, or a mount
                self._dir.rmdir()
        finally:
            self.close()

    def close(self) -> None:
        """Give the directory free. Nothing is synced. Idempotent."""
        for descriptor in (*self._dirty.values(), self._active):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._dirty.clear()
        self._active = -1
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self._lock = -1

    # -- segments ---------------------------------------------------------------------------------

    def _path(self, first: int) -> Path:
        return self._dir / f"{first:020d}{_SUFFIX}"

    def _open_last(self, *, rebooted: bool) -> None:
        firsts = sorted(
            int(path.stem) for path in self._dir.glob(f"*{_SUFFIX}") if path.stem.isdecimal()
        )
        self._active_first = firsts.pop() if firsts else 1
        self._segments = {first: self._path(first).stat().st_size for first in firsts}
        self._closed_bytes = sum(self._segments.values())
        path = self._path(self._active_first)
        self._active = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._next = self._active_first
        for sequence, payload in _records(path, self._active_first):
            self._next = sequence + 1
            self._active_size += _HEADER.size + len(payload)
        os.ftruncate(self._active, self._active_size)
        if rebooted and (firsts or self._next > 1):
            self._rotate(self._next + REBOOT_GAP)

    def _rotate(self, first: int) -> None:
        active = os.open(
            self._path(first), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._dirty[self._active_first] = self._active
        self._segments[self._active_first] = self._active_size
        self._closed_bytes += self._active_size
        self._active, self._active_first, self._active_size = active, first, 0
        self._next = first
        self._directory_dirty = True

    def _write(self, data: bytes) -> None:
        try:
            if self._torn:
                os.ftruncate(self._active, self._active_size)
                self._torn = False
            written = os.write(self._active, data)
            while written < len(data):
                self._torn = True
                written += os.write(self._active, data[written:])
            self._torn = False
        except OSError:
            # Half a record would hide all that follow it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._active, self._active_size)
                self._torn = False
            raise
        self._active_size += len(data)

    async def _sync_once(self) -> OSError | None:
        upto = self._next - 1
        directory, self._directory_dirty = self._directory_dirty, False
        try:
            # A copy of the active one, which may be rotated or closed while the thread works.
            descriptors = [os.dup(self._active), *self._dirty.values()]
            self._dirty.clear()
            await asyncio.to_thread(_fsync, descriptors, self._dir if directory else None)
        except OSError as error:
            self._directory_dirty = True
            return error
        else:
            self._synced = upto
            return None
        finally:
            self._syncing = None


def _fsync(descriptors: list[int], directory: Path | None) -> None:
    """Sync and close *descriptors*, and *directory*'s list of names."""
    if directory is not None:
        descriptors.append(os.open(directory, os.O_RDONLY))
    failed: OSError | None = None
    for descriptor in descriptors:
        try:
            os.fsync(descriptor)
        except OSError as error:
            failed = error
        finally:
            os.close(descriptor)
    if failed is not None:
        raise failed


def _records(path: Path, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield the whole records of one segment, up to the first that is not."""
    sequence = first
    with path.open("rb", buffering=_READ_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, crc = _HEADER.unpack(header)
            # Garbage as a length must not become an allocation.
            if length > size:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload, sequence & 0xFFFFFFFF) != crc:
                return
            yield sequence, payload
            sequence += 1


def _identify(directory: Path) -> tuple[str, bool]:
    """Return the directory's writer id, and whether the machine may have restarted since the last open."""
    path = directory / "writer"
    # Where there is no boot id every open counts as a reboot; a gap costs nothing.
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else secrets.token_hex(8)
    known = path.read_text().split() if path.exists() else []
    if known == [*known[:1], boot]:
        return known[0], False
    writer = known[0] if known else secrets.token_hex(8)
    draft = directory / ".writer"
    with draft.open("w") as file:
        file.write(f"{writer} {boot}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return writer, True
