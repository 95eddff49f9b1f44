"""A usage service as a process has it, on a real Valkey and a database of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.requirements import lack, need

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import Config, ProcessSettings, UsageConfig
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
from patchbay_gateway.usage.main import running_usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.usage.service import UsageServicer

PRICES = (PriceEntry("*", "*", {"input_tokens": 10**6}),)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within: float = 10.0) -> None:
    """Return when *condition* holds; fail when it does not in time."""
    try:
        async with asyncio.timeout(within):
            # What is waited for happens in a server or another process: nothing here announces it.
            while not await condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {condition.__name__}") from None


@dataclass
class Bench:
    """The journal's writing end, and services that read it."""

    store: Store
    directory: Path
    database_url: str | None = None
    holder: SnapshotHolder = field(default_factory=SnapshotHolder)

    def __post_init__(self) -> None:
        self.holder.set(Snapshot(version=1, prices=PRICES))

    def settings(self, **more: Any) -> ProcessSettings:
        """Return settings with leases that tests can outlive."""
        flags = {"data_dir": self.directory, "lease_ttl": 0.4, "lease_grace": 0.4, **more}
        return ProcessSettings.load("usage", {}, {**flags, "renew_interval": 0.1})

    @contextlib.asynccontextmanager
    async def service(self, **more: Any) -> AsyncIterator[UsageServicer]:
        """Run a usage service."""
        config = Config(usage=UsageConfig(database_url=self.database_url))
        async with running_usage(
            config,
            self.settings(),
            store=self.store,
            holder=self.holder,
            clock=SystemClock(),
            linger=more.pop("linger", 0.01),
            **more,
        ) as servicer:
            yield servicer

    async def send(self, events: Sequence[bytes]) -> None:
        """Append *events* to the journal, as a scheduler does."""
        await self.store.pipeline(
            [["XADD", self.store.key("journal"), "*", b"e", event] for event in events]
        )

    async def watermark(self, writer: str = "w1") -> int:
        """Return what the ledger has published for *writer*."""
        found = await self.store.call("HGET", self.store.key("journal", "watermark"), writer)
        return int(found or 0)

    async def reaches(self, sequence: int, writer: str = "w1", *, within: float = 10.0) -> None:
        """Return when the watermark is *sequence*."""

        async def reached() -> bool:
            with contextlib.suppress(PatchbayError):
                return await self.watermark(writer) >= sequence
            return False

        await eventually(reached, within=within)


@pytest.fixture
async def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server on a socket of its own, where one is installed."""
    initdb, pg_ctl = _postgres_program("initdb"), _postgres_program("pg_ctl")
    need("postgres")
    assert initdb is not None
    assert pg_ctl is not None
    # Not in pytest's folder: a socket's path may have 100 characters, and the server refuses to be root.
    home = Path(tempfile.mkdtemp(prefix="pbpg-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(home, "nobody")
        owner = {"user": "nobody", "cwd": home}
    data = home / "data"
    made = subprocess.run(
        [initdb, "-D", data, "-A", "trust", "-U", "ledger", "-N"],
        capture_output=True,
        text=True,
        check=False,
        **owner,
    )
    if made.returncode:
        shutil.rmtree(home, ignore_errors=True)
        lack("postgres", f"it cannot make a database here: {made.stderr.strip()[-200:]}")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    start = [pg_ctl, "-D", str(data), "-o", options, "-l", str(home / "log"), "-w", "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, **owner)
    yield f"postgresql://ledger@/postgres?host={home}"
    stop = [pg_ctl, "-D", str(data), "-m", "immediate", "stop"]
    subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, **owner)
    shutil.rmtree(home, ignore_errors=True)


def _postgres_program(name: str) -> str | None:
    # Debian keeps them off PATH.
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)
