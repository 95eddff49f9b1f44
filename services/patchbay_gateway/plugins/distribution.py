"""
How snapshots travel: from one publisher through Redis to every process, and over restarts on disk.

A snapshot is a manifest and sections (sections.py). A process fetches the sections that changed, puts the
whole together and only then shows it (`SnapshotHolder.set`).

- Publishing is a compare-and-set on the version: the new one is max(current + 1, Unix milliseconds). What is
  there already is not published again.
- Watching is pub/sub for speed and a look at the version each second for certainty.
- The last one is kept on disk. With Redis away a process starts from there; when Redis was emptied, a
  process that has a publisher puts its own one back under its old version.

Keys: `snapshot:version`, `snapshot:manifest`, `snapshot:section:{hash}`; the channel is `snapshot`.

Not here: what is in a snapshot (snapshot.py), how it is made from a configuration (building.py),
heartbeats (instances.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import Aborted, FailedPrecondition, PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.plugins.sections import (
    READER,
    Manifest,
    decode_sections,
    encode_sections,
    hash_section,
    read_file,
    write_file,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.snapshot import Snapshot

KEPT: Final = 3
"""Versions that a process still knows, for requests that began with an older one."""

POLL_EVERY: Final = 1.0
_RETRIES: Final = 5
_REFRESH_EVERY: Final = 0.1

_log = logs.get_logger("plugins.distribution")

# KEYS: version, manifest, new sections, stale sections. ARGV: expected version ("" for none), new version,
# manifest, number of new sections, their contents, the channel. Returns 1 if set.
_SWAP: Final = Script("""
local current = redis.call('GET', KEYS[1]) or ''
if current ~= ARGV[1] then return 0 end
local count = tonumber(ARGV[4])
for i = 1, count do redis.call('SET', KEYS[2 + i], ARGV[4 + i]) end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], ARGV[2])
for i = 3 + count, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('PUBLISH', ARGV[5 + count], ARGV[2])
return 1
""")


class SnapshotHolder:
    """The snapshots of this process: the current one and the two before it."""

    def __init__(self) -> None:
        self._versions: dict[int, Snapshot] = {}
        self._current: Snapshot | None = None
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._first = asyncio.Event()

    @property
    def current(self) -> Snapshot | None:
        """The newest; None before the first."""
        return self._current

    def get(self, version: int) -> Snapshot | None:
        """Return *version* if it is one of the last three."""
        return self._versions.get(version)

    def set(self, snapshot: Snapshot) -> None:
        """Make *snapshot* the current one. An older version than the current one is not taken."""
        current = self._current
        if current is not None and snapshot.version <= current.version:
            return
        self._versions[snapshot.version] = snapshot
        while len(self._versions) > KEPT:
            del self._versions[min(self._versions)]
        self._current = snapshot
        self._first.set()
        for callback in list(self._callbacks):
            callback(snapshot)

    def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call *callback* with each new snapshot, in `set`; the returned function ends that."""
        self._callbacks.append(callback)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return forget

    async def first(self) -> Snapshot:
        """Wait until there is one and return it."""
        await self._first.wait()
        assert self._current is not None
        return self._current

    async def follow(self, apply: Callable[[Snapshot], Awaitable[None]]) -> None:
        """
        Call *apply* with the current snapshot and with newer ones, one at a time, until cancelled.

        Of those that come while it runs it gets the newest.
        """
        changed = asyncio.Event()
        changed.set()
        forget = self.on_change(lambda _: changed.set())
        try:
            while True:
                await changed.wait()
                changed.clear()
                if self._current is not None:
                    await apply(self._current)
        finally:
            forget()


class SnapshotPublisher:
    """
    Puts snapshots into Redis.

    Args:
        store: Redis.
        clock: Versions are its Unix milliseconds.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def read(self) -> Snapshot | None:
        """
        Return what is published now; None when nothing is.

        Raises:
            Unavailable: Redis is away.
            FailedPrecondition: A newer release published it.
        """
        manifest = await _read_manifest(self._store)
        if manifest is None:
            return None
        return decode_sections(manifest.version, await _fetch(self._store, manifest, {}))

    async def publish(self, draft: Snapshot) -> Snapshot:
        """
        Publish *draft*, whose own version does not matter, unless just that is published already.

        Returns:
            The published snapshot with its version.

        Raises:
            Unavailable: Redis is away.
            Aborted: Others published again and again meanwhile.
        """
        sections = encode_sections(draft)
        hashes = {name: hash_section(content) for name, content in sections.items()}
        for _ in range(_RETRIES):
            manifest = await _read_manifest(self._store)
            if manifest is not None and manifest.hashes == hashes:
                return msgspec.structs.replace(draft, version=manifest.version)
            current = manifest.version if manifest is not None else 0
            version = max(current + 1, int(self._clock.now() * 1000))
            if await self._swap(manifest, Manifest(version, hashes), sections):
                return msgspec.structs.replace(draft, version=version)
        raise Aborted("others publish snapshots at the same time", reason="SNAPSHOT_RACE")

    async def restore(self, snapshot: Snapshot) -> bool:
        """
        Put *snapshot* back under its own version, if Redis has none or an older one.

        Raises:
            Unavailable: Redis is away.
        """
        sections = encode_sections(snapshot)
        hashes = {name: hash_section(content) for name, content in sections.items()}
        manifest = await _read_manifest(self._store)
        if manifest is not None and manifest.version >= snapshot.version:
            return False
        return await self._swap(manifest, Manifest(snapshot.version, hashes), sections)

    async def _swap(
        self, old: Manifest | None, new: Manifest, sections: Mapping[str, bytes]
    ) -> bool:
        key = self._store.key
        known = set(old.hashes.values()) if old is not None else set()
        content = {new.hashes[name]: data for name, data in sections.items()}
        fresh = [h for h in content if h not in known]
        stale = sorted(known - set(content))
        done = await self._store.script(
            _SWAP,
            [
                key("snapshot", "version"),
                key("snapshot", "manifest"),
                *[key("snapshot", "section", h) for h in (*fresh, *stale)],
            ],
            [
                str(old.version) if old is not None else "",
                str(new.version),
                msgspec.json.encode(new),
                len(fresh),
                *[content[h] for h in fresh],
                key("snapshot"),
            ],
        )
        return bool(done)


async def _read_manifest(store: Store) -> Manifest | None:
    found = await store.call("GET", store.key("snapshot", "manifest"))
    if found is None:
        return None
    try:
        manifest = msgspec.json.decode(found, type=Manifest)
    except msgspec.DecodeError as error:
        raise FailedPrecondition(
            f"the snapshot's manifest cannot be read: {error}", reason="SNAPSHOT_UNREADABLE"
        ) from error
    if manifest.min_reader > READER:
        raise FailedPrecondition(
            f"snapshot {manifest.version} was published by a newer release; update this process",
            reason="SNAPSHOT_TOO_NEW",
        )
    return manifest


async def _fetch(store: Store, manifest: Manifest, known: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return section → content, asking only for hashes that are not *known*."""
    contents = {h: known[h] for h in manifest.hashes.values() if h in known}
    missing = [h for h in dict.fromkeys(manifest.hashes.values()) if h not in contents]
    if missing:
        keys = [store.key("snapshot", "section", h) for h in missing]
        for name, content in zip(missing, await store.call("MGET", *keys), strict=True):
            if content is None:
                raise Aborted("the snapshot changed meanwhile", reason="SNAPSHOT_RACE")
            contents[name] = content
    return {name: contents[h] for name, h in manifest.hashes.items()}


class SnapshotWatcher:
    """
    Keeps a holder up to date.

    Args:
        store: Redis.
        holder: What is kept up to date.
        disk_path: File of the last snapshot; None keeps none.
        clock: Paces the looks.
        publisher: Given to processes that put the snapshot back when Redis was emptied: schedulers.
    """

    def __init__(
        self,
        store: Store,
        holder: SnapshotHolder,
        disk_path: Path | None,
        clock: Clock,
        *,
        publisher: SnapshotPublisher | None = None,
    ) -> None:
        self._store = store
        self._holder = holder
        self._path = disk_path
        self._clock = clock
        self._publisher = publisher
        self._contents: dict[str, bytes] = {}
        self._nudged = asyncio.Event()
        self._complaint = ""
        self._kept = 0
        """Version that is on disk."""
        self._looking = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._refreshed = float("-inf")

    async def boot(self) -> None:
        """Look once; with Redis away or empty, begin with the file on disk, if there is one."""
        await self._look()
        if self._holder.current is None and self._path is not None:
            stored = await asyncio.to_thread(read_file, self._path)
            if stored is not None:
                self._holder.set(stored)
                self._kept = stored.version
                _log.info("snapshot from disk", version=stored.version)
                await self._look()

    async def run(self) -> None:
        """Follow what is published until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="snapshot-listen")
            while True:
                self._nudged.clear()
                await self._look()
                await pause(self._clock, POLL_EVERY, self._nudged)

    async def refresh(self) -> None:
        """
        Look, for somebody who knows of a newer version; returns after a look that began since.

        At most ten times a second, so it may take a tenth of one longer.
        """
        asked = self._clock.monotonic()
        async with self._looking:
            if self._refreshed > asked:
                return
            # What the last one found may be older than what is asked for.
            pause = self._refreshed + _REFRESH_EVERY - self._clock.monotonic()
            if pause > 0:
                await self._clock.sleep(pause)
            self._refreshed = self._clock.monotonic()
            await self._look()

    async def _listen(self) -> None:
        async for _ in self._store.subscribe(self._store.key("snapshot")):
            self._nudged.set()

    async def _look(self) -> None:
        """Fetch and show what is newer; keep what there is when that is impossible."""
        try:
            await self._follow()
            self._complaint = ""
        except (Unavailable, Aborted):
            pass  # the next look is a second away
        except PatchbayError as error:
            if error.message != self._complaint:
                self._complaint = error.message
                _log.error("the published snapshot is not taken", why=error.message)
        await self._keep()

    async def _follow(self) -> None:
        current = self._holder.current
        found = await self._store.call("GET", self._store.key("snapshot", "version"))
        version = int(found) if found is not None else 0
        if current is not None and version == current.version:
            return
        if current is not None and version < current.version:
            if self._publisher is not None and await self._publisher.restore(current):
                _log.warning("Redis had lost the snapshot; put back", version=current.version)
            return
        if not version:
            return
        manifest = await _read_manifest(self._store)
        if manifest is None:
            return
        sections = await _fetch(self._store, manifest, self._contents)
        snapshot = decode_sections(manifest.version, sections)
        self._contents = {manifest.hashes[name]: content for name, content in sections.items()}
        self._holder.set(snapshot)
        _log.info("snapshot", version=snapshot.version)

    async def _keep(self) -> None:
        """Write the current snapshot to disk, wherever it came from; one at a time, for it is one file."""
        if self._path is None:
            return
        async with self._keeping:
            current = self._holder.current
            if current is None or current.version == self._kept:
                return
            try:
                await asyncio.to_thread(write_file, self._path, current)
            except OSError as error:
                _log.warning("the snapshot cannot be kept on disk", why=str(error))
            # A disk that is full now is tried again with the next snapshot.
            self._kept = current.version
