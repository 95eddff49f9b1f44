"""A usage service as a process has it, on a real Valkey and a database of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.postgres import running_postgres

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import Config, ProcessSettings, UsageConfig
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
from patchbay_gateway.usage.main import running_usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.usage.service import UsageServicer

PRICES = (PriceEntry("*", "*", {"input_tokens": 10**6}),)


async def eventually(condition: Callable[[], Awaitable[bool]], *, within: float = 90.0) -> None:
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
    lease: float = 600.0
    """Seconds of life and of grace; what is sent here is months old and must not be swept meanwhile."""

    def __post_init__(self) -> None:
        self.holder.set(Snapshot(version=1, prices=PRICES))

    def settings(self, **more: Any) -> ProcessSettings:
        """Return a process's settings."""
        leases = {"lease_ttl": self.lease, "lease_grace": self.lease, "renew_interval": 0.1}
        return ProcessSettings.load("usage", {}, {"data_dir": self.directory, **leases, **more})

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

    async def reaches(self, sequence: int, writer: str = "w1", *, within: float = 90.0) -> None:
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
    with running_postgres() as url:
        yield url
