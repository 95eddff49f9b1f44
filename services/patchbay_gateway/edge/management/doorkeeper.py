"""
Who may use the management API, kept in step with the configuration file and the files of its keys.

Looked at each second by what `stat` says of them, as the scheduler looks at the rest of the configuration;
so a rotated key opens, and the former one no longer does, without a restart. What cannot be read changes
nothing, and is named in the log. Not here: what a key opens (access.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.file_signature import file_signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from patchbay.errors import Headers
    from patchbay_gateway.edge.management.access import Access
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config

LOOK_EVERY: Final = 1.0

_log = logs.get_logger("management")


class Doorkeeper:
    """
    The access that holds now.

    Args:
        config: What to begin with.
        load: Reads the configuration anew; raises ConfigError. Blocking.
        make: Returns the access of a configuration; raises PatchbayError. Blocking.
        path: The configuration file; None when there is none to watch.
        environ: Where keys may name files.
        clock: Paces looks.

    Raises:
        PatchbayError: A key of *config* cannot be read.
    """

    def __init__(
        self,
        config: Config,
        *,
        load: Callable[[], Config],
        make: Callable[[Config], Access],
        path: Path | None,
        environ: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._load = load
        self._make = make
        self._path = path
        self._environ = environ
        self._clock = clock
        self._loaded = config
        """The newest that could be read: its files are looked at."""
        # Before they are read. The first look loads the file in any case: *config* was read before.
        self._seen: tuple[tuple[str, object], ...] = self._signature()[1:] if path else ()
        self._problem = ""
        self._access = make(config)

    def admit(self, method: str, headers: Headers) -> str:
        """See `Access`."""
        return self._access.admit(method, headers)

    def refuse_foreign(self, headers: Headers) -> None:
        """See `Access`."""
        self._access.refuse_foreign(headers)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Take what the files say, if they changed."""
        seen = self._signature()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            access = await asyncio.to_thread(self._read)
        except PatchbayError as error:
            if error.message != self._problem:
                _log.error("management keys are not taken; the former ones hold", why=error.message)
            self._problem = error.message
            return
        if access != self._access:
            _log.info("management keys taken", keys=sorted(access.keys.values()))
        self._access, self._problem = access, ""

    def _read(self) -> Access:
        config = self._load()
        self._loaded = config
        return self._make(config)

    def _signature(self) -> tuple[tuple[str, object], ...]:
        return tuple(file_signature(path) for path in self._files())

    def _files(self) -> Iterator[Path]:
        if self._path is not None:
            yield self._path
        for key in self._loaded.management_keys:
            if key.key_file is not None:
                yield key.key_file
            if key.key_env is not None and (named := self._environ.get(f"{key.key_env}_FILE")):
                yield Path(named)
