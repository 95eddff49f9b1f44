"""
The configuration file, followed: what changes in it reaches credentials and snapshot within a second or two.

Looked at each second by what `stat` says of the file behind all links (a mounted ConfigMap is a link that is
swapped), of every file it names, and of the files in `auth_dir`; SIGHUP looks at once. A file that cannot be
used keeps what there is, and says so in the log and in `problems`; one in `auth_dir` is left out. Schedulers
that share a Redis publish one after the other, under a lock, each building on what the others published, so
that equal files lead to one snapshot.

Not here: reading YAML (kernel/config), what a snapshot is made of (publish.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import Aborted, PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.kernel.file_signature import file_signature
from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.plugins.prices import load_prices
from patchbay_gateway.scheduler.credentials import read_material
from patchbay_gateway.scheduler.durable.auth_files import (
    AuthFiles,
    RefusedFile,
    read_auth_dir,
    signature_of,
)
from patchbay_gateway.scheduler.durable.auth_seeds import Planted, plant
from patchbay_gateway.scheduler.grown import Grown, add_entries, grow, read_by_plugins
from patchbay_gateway.scheduler.publish import build_snapshot, digest_keys
from patchbay_gateway.scheduler.seeds import Seeds, read_seeds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.distribution import SnapshotHolder, SnapshotPublisher
    from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials, Material
    from patchbay_gateway.scheduler.durable.auth_files import AuthFile, OfferedFile
    from patchbay_gateway.scheduler.parsed_files import Parsed
    from patchbay_gateway.scheduler.refresh_rules import Seed

_log = logs.get_logger("scheduler.configuration")

LOOK_EVERY: Final = 1.0
_LOCK_MS: Final = 10_000

_UNLOCK: Final = Script(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


@dataclass(frozen=True, slots=True)
class _Read:
    """A configuration with all that it names."""

    plain: Config
    """As it was loaded."""
    config: Config
    """With the credentials of auth files that are read here."""
    planted: Planted
    grown: Grown
    """Credentials of auth files that plugins read."""
    auth_files: AuthFiles
    material: dict[str, Material]
    seeds: Seeds
    digests: dict[str, str]
    prices: tuple[PriceEntry, ...]
    published: frozenset[str]
    """What a follower saw of auth files in the snapshot when this was read."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration comes from."""

    load: Callable[[], Config]
    """Reads it anew; raises ConfigError. Blocking."""
    path: Path | None
    """The file; None when there is none to watch."""
    environ: Mapping[str, str]
    roots: Roots
    open_access: Callable[[Config], bool]
    """Whether clients without key are answered under a configuration."""


class Configuration:
    """
    Keeps credentials, and if it publishes the snapshot, in step with the file.

    Args:
        source: The file and what is needed to understand it.
        credentials: Told of new material.
        sow: Told of seeds; may raise Unavailable, and is told again then.
        holder: Shows the snapshot at once, without the way through Redis.
        publisher: None in a process that only follows what others publish.
        store: For the lock between publishers.
        clock: Paces looks and stamps versions.
        extend: Adds what the file does not know to a draft, given the snapshot before it.
        parsed: What plugins made of auth files so far.
        away: Plugins that may know a type of file and are not registered.
        grown: Told, before the first draft is made, whom to call when what extends drafts has changed.
    """

    def __init__(
        self,
        source: Source,
        *,
        credentials: Credentials,
        sow: Callable[[Seeds], Awaitable[None]],
        holder: SnapshotHolder,
        publisher: SnapshotPublisher | None,
        store: Store,
        clock: Clock,
        extend: Callable[[Snapshot, Snapshot | None], Snapshot] = lambda draft, _: draft,
        parsed: Callable[[], Mapping[str, Parsed]] = dict,
        away: Callable[[], Sequence[str]] = tuple,
        grown: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> None:
        self._grown = grown
        self._extend = extend
        self._parsed = parsed
        self._away = away
        self._reparsed = False
        self._source = source
        self._credentials = credentials
        self._sow = sow
        self._unsown = False
        self._holder = holder
        self._publisher = publisher
        self._store = store
        self._clock = clock
        self._read: _Read | None = None
        self._loaded: Config | None = None
        """The newest that could be read, used or not: its files are looked at."""
        self._seen: tuple[tuple[str, object], ...] = ()
        """What they were like before they were read."""
        self._auth_files: tuple[object, ...] = ()
        self._asked = False
        self._unpublished = False
        self._looked_for = asyncio.Event()
        self._unused = self._unsent = ""

    @property
    def problems(self) -> list[str]:
        """Why what is in the file is not what is served; empty when it is."""
        return [problem for problem in (self._unused, self._unsent) if problem]

    @property
    def auth_dir(self) -> Path | None:
        """The directory of auth files; None where none is configured."""
        return self._read.config.auth_dir if self._read is not None else None

    def auth_file(self, credential_id: str) -> AuthFile | OfferedFile | None:
        """Return the auth file that a credential comes from; None for one of the configuration."""
        if (read := self._read) is None:
            return None
        for _, entry in read.grown.entries:
            if entry.id == credential_id:
                offered = read.auth_files.offered
                return next((file for file in offered if file.source == entry.file), None)
        files = read.auth_files.without(read.grown.readers.keys()).files
        return next((file for file in files if file.id == credential_id), None)

    @property
    def offered(self) -> tuple[OfferedFile, ...]:
        """The auth files that plugins may read."""
        return self._read.auth_files.offered if self._read is not None else ()

    def reparsed(self) -> None:
        """What plugins make of auth files has changed: take it soon."""
        self._reparsed = True
        self._looked_for.set()

    def told(self) -> list[tuple[RefusedFile, str, bool]]:
        """Return auth files of which not all is used: why, who reads them, whether anything is used."""
        if (read := self._read) is None:
            return []
        readers, parsed = read.grown.readers, self._parsed()
        found = []
        for file in (*read.planted.refused, *read.grown.refused):
            problem = parsed[file.source].problem if file.source in parsed else ""
            if not problem and (away := self._away()):
                problem = f"plugins that may know it are not registered: {', '.join(away)}"
            if problem and file.source not in readers:
                file = RefusedFile(file.source, f"{file.reason}; {problem}")  # noqa: PLW2901
            found.append((file, readers.get(file.source, ""), False))
        found.extend(
            (file, readers.get(file.source, ""), True)
            for file in (*read.planted.warnings, *read.grown.warnings)
        )
        return sorted(found, key=lambda each: each[0].source)

    async def start(self, config: Config) -> None:
        """
        Take *config*, and publish it if Redis is there.

        Raises:
            ConfigError: A secret or prices file that it names cannot be used.
        """
        self._grown(self.extended)
        self._note(config)
        if self._source.path is not None:
            # It was read before the process had anything else.
            self._asked = await asyncio.to_thread(self._another, config)
        await self._take(config)
        if self._publisher is not None and self._holder.current is None:
            # Redis is away and nothing is on disk: serve from the file alone until it is back.
            draft = self._build(None)
            version = int(self._clock.now() * 1000)
            self._holder.set(msgspec.structs.replace(draft, version=version))

    def look(self) -> None:
        """Look at the file now (SIGHUP)."""
        self._asked = True
        self._looked_for.set()

    def glance(self) -> None:
        """Look soon whether the file changed."""
        self._looked_for.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await self._pause()
            await self._follow()

    async def _follow(self) -> None:
        assert self._read is not None
        assert self._loaded is not None
        # Before the files are read: what is written or asked for meanwhile is seen at the next look.
        asked, self._asked = self._asked, False
        seen = self._signature(self._loaded)
        auth_dir = self._read.config.auth_dir
        auth_files = await asyncio.to_thread(signature_of, auth_dir) if auth_dir else ()
        if asked or seen != self._seen or auth_files != self._auth_files:
            self._seen, self._auth_files = seen, auth_files
            if await self._use():
                _log.info("configuration taken")
            return
        if self._reparsed or self._read.published != self._published(
            self._read.planted, self._holder.current
        ):
            if not await self._use(self._read.plain):
                self._reparsed = True
            return
        if self._unsown:
            await self._sow_seeds()
        if self._unpublished:
            await self._publish()

    async def _use(self, known: Config | None = None) -> bool:
        """Take *known*, else what the file says; what cannot be used is told, and the former stays."""
        try:
            await self._take(known if known is not None else await self._load())
        except PatchbayError as error:
            problem = f"the configuration is not used: {error.message}"
            if known is None or problem != self._unused:
                _log.error("the configuration is not used; the former stays", why=error.message)
            self._unused = problem
            return False
        self._unused = ""
        return True

    async def _load(self) -> Config:
        config = await asyncio.to_thread(self._source.load)
        self._note(config)
        return config

    def _another(self, config: Config) -> bool:
        """Whether the file says something else than *config* now. Blocking."""
        try:
            return self._source.load() != config
        except PatchbayError:
            return True

    def _note(self, config: Config) -> None:
        """Look at the files of *config* from now on, for changes since before they are read."""
        before = dict(self._seen)
        self._loaded = config
        self._seen = tuple((p, before.get(p, stat)) for p, stat in self._signature(config))

    async def _take(self, config: Config) -> None:
        # Before they are asked for: what changes meanwhile is taken next. Not in the thread: they would
        # change while it looks.
        self._reparsed = False
        parsed, snapshot = self._parsed(), self._holder.current
        read = await asyncio.to_thread(self._complete, config, parsed, snapshot)
        before, self._read = self._read, read
        # As it was when they were read: what is written since then is seen at the next look.
        self._auth_files = read.auth_files.signature
        _tell(read, before)
        self._credentials.replace(read.material)
        await self._sow_seeds()
        self._unpublished = self._publisher is not None
        await self._publish()

    async def _sow_seeds(self) -> None:
        assert self._read is not None
        try:
            await self._sow(self._read.seeds)
        except Unavailable as error:
            self._unsown = True
            _log.warning("seeds of credentials are not sown yet", why=error.message)
        else:
            self._unsown = False

    def _complete(
        self, config: Config, parsed: Mapping[str, Parsed], snapshot: Snapshot | None
    ) -> _Read:
        source = self._source
        found, former = AuthFiles(), self._read
        if config.auth_dir is not None:
            same = former is not None and former.config.auth_dir == config.auth_dir
            found = read_auth_dir(config.auth_dir, former.auth_files if former and same else None)
        by_plugins = read_by_plugins(config, found, parsed, snapshot)
        planted = plant(config, found.without(by_plugins.keys()), source.environ)
        taken = (c.id for provider in planted.config.providers for c in provider.credentials)
        grown = grow(config, found, by_plugins, parsed, taken)
        seeds = read_seeds(config, source.environ)
        published = self._published(planted, snapshot)
        # Who only follows does not know what plugins make of files: publishers say which are read here.
        of_files = planted.seeds if self._publisher is not None else _those(planted, published)
        return _Read(
            plain=config,
            config=planted.config,
            planted=planted,
            grown=grown,
            auth_files=found,
            material=read_material(planted.config, source.environ, source.roots.store[0]),
            seeds=Seeds({**seeds.of, **of_files, **grown.seeds}, seeds.broken),
            digests=digest_keys(config, source.environ, source.roots.cluster[0]),
            prices=load_prices(config.usage.prices) if config.usage.prices else (),
            published=published,
        )

    def _published(self, planted: Planted, snapshot: Snapshot | None) -> frozenset[str]:
        """Return what *snapshot* has of auth files, for a follower; nothing for a publisher."""
        if self._publisher is not None or snapshot is None or not self._has_files():
            return frozenset()
        known = snapshot.credential_by_id
        mine = {id_ for id_ in planted.seeds if id_ in known and not known[id_].brought_by}
        return frozenset(mine | {f"{c.file}/{c.id}" for c in known.values() if c.file})

    def _has_files(self) -> bool:
        return self._read is None or self._read.plain.auth_dir is not None

    def _build(self, previous: Snapshot | None) -> Snapshot:
        read = self._read
        assert read is not None
        draft = build_snapshot(
            read.config,
            material=read.material,
            digests=read.digests,
            prices=read.prices,
            previous=previous,
            now=self._clock.now(),
            open_access=self._source.open_access(read.config),
        )
        return self._extend(add_entries(draft, read.grown.entries), previous)

    def extended(self) -> None:
        """What extends drafts has changed: publish soon."""
        self._unpublished = self._publisher is not None
        self._looked_for.set()

    async def _publish(self) -> None:
        """Publish what was read; what cannot be done now is done at one of the next looks."""
        publisher = self._publisher
        if publisher is None:
            return
        lock, token = self._store.key("snapshot", "lock"), secrets.token_hex(8)
        try:
            if not await self._store.call("SET", lock, token, "NX", "PX", _LOCK_MS):
                return
            try:
                previous = await publisher.read() or self._holder.current
                # Before it is built: what changes meanwhile is published next.
                self._unpublished = False
                published = await publisher.publish(self._build(previous))
            finally:
                # One that stays ends by itself; a failure must not hide that we are cancelled.
                with contextlib.suppress(Unavailable):
                    await self._store.script(_UNLOCK, [lock], [token])
        except PatchbayError as error:
            self._unpublished = True
            if not isinstance(error, (Unavailable, Aborted)):
                problem = f"the snapshot is not published: {error.message}"
                if problem != self._unsent:
                    _log.error("the snapshot is not published", why=error.message)
                self._unsent = problem
            return
        self._unsent = ""
        self._holder.set(published)

    async def _pause(self) -> None:
        await pause(self._clock, LOOK_EVERY, self._looked_for)
        self._looked_for.clear()

    def _signature(self, config: Config) -> tuple[tuple[str, object], ...]:
        """Return what tells a changed file from an unchanged one, for all files concerned."""
        paths = [self._source.path, *_named(config)]
        return tuple(file_signature(path) for path in paths if path is not None)


def _tell(read: _Read, before: _Read | None) -> None:
    """Log what is not used of the auth files, once."""
    known = set[RefusedFile]()
    if before is not None:
        for parts in (before.planted, before.grown):
            known |= {*parts.refused, *parts.warnings}
    for parts in (read.planted, read.grown):
        for refused in parts.refused:
            if refused not in known:
                _log.warning("an auth file is not used", file=refused.source, why=refused.reason)
        for warned in parts.warnings:
            if warned not in known:
                _log.warning(
                    "an auth file is not used in full", file=warned.source, why=warned.reason
                )


def _those(planted: Planted, ids: frozenset[str]) -> dict[str, Seed]:
    return {id_: seed for id_, seed in planted.seeds.items() if id_ in ids}


def _named(config: Config) -> Iterator[Path | None]:
    """Yield the files that *config* names and that are read with it."""
    for provider in config.providers:
        for credential in provider.credentials:
            yield credential.api_key_file
            if (oauth2 := credential.oauth2) is not None:
                yield oauth2.refresh_token_file
                yield oauth2.client_secret_file
                yield oauth2.access_token_file
    for key in config.client_keys:
        yield key.key_file
    yield config.usage.prices
