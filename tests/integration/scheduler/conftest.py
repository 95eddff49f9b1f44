"""Schedulers as a process has them, on a real Valkey; what an edge sends; what the ledger would read."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import ProcessSettings, parse
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.scheduler.main import running_scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.scheduler.service import SchedulerServicer

FILE = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m]
    credentials:
      - {id: one, api_key: test-key-one}
      - {id: two, api_key: test-key-two}
      - {id: three, api_key: test-key-three}
"""

ROOTS = Roots(store=(b"s" * 32,), plugins=(b"p" * 32,), cluster=(b"c" * 32,))


USUAL = 0.25
"""What a Store gives a call unless told otherwise, seconds."""


@dataclass
class Gateway:
    """Makes schedulers of one installation."""

    url: str
    directory: Path
    installation: str = field(default_factory=lambda: f"t-{secrets.token_hex(6)}")
    timeout: float = 20.0
    """Seconds that schedulers give Redis: many, where it does not hang; USUAL where it does."""
    stores: list[Store] = field(default_factory=list)

    def settings(self, name: str, **more: Any) -> ProcessSettings:
        """Return the settings of a process of its own."""
        directory = self.directory / name
        flags = {
            "installation": self.installation,
            "data_dir": directory,
            "redis_url": self.url,
            **more,
        }
        return ProcessSettings.load("scheduler", {}, flags)

    def store(self, timeout: float = 30.0) -> Store:
        """Return a connection of its own, closed with the test."""
        made = Store(self.url, installation=self.installation, clock=SystemClock(), timeout=timeout)
        self.stores.append(made)
        return made

    async def aclose(self) -> None:
        """Close all connections."""
        for store in self.stores:
            await store.aclose()

    @contextlib.asynccontextmanager
    async def scheduler(
        self, name: str = "a", config: Config | str = FILE, **more: Any
    ) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder]]:
        """Run one."""
        holder = SnapshotHolder()
        store = self.store(self.timeout)
        settings = self.settings(name, **more.pop("settings", {}))
        try:
            async with running_scheduler(
                parse(config, env={}) if isinstance(config, str) else config,
                settings,
                store=store,
                holder=holder,
                roots=ROOTS,
                clock=more.pop("clock", None) or SystemClock(),
                environ={},
                **more,
            ) as servicer:
                yield servicer, holder
        finally:
            await store.aclose()


@pytest.fixture
async def gateway(valkey: Any, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Schedulers on the session's server."""
    made = Gateway(valkey.url, tmp_path)
    yield made
    await made.aclose()


@pytest.fixture
async def own_gateway(own_valkey: Any, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Schedulers on a server that the test may hurt; before one that hangs they need `USUAL`."""
    made = Gateway(own_valkey.url, tmp_path)
    yield made
    await made.aclose()


def acquire(
    version: int, *uids: str, model: str = "m", **more: Any
) -> scheduler_pb2.AcquireRequest:
    """Return a request of one attempt per uid."""
    request = scheduler_pb2.AcquireRequest(edge_id="edge")
    for uid in uids:
        request.items.add(
            attempt=journal_pb2.AttemptInfo(
                attempt_uid=uid,
                request_uid=uid.rpartition("-")[0],
                number=1,
                model=model,
                format="openai",
                operation="chat",
                snapshot_version=version,
            ),
            providers=["fake"],
            **more,
        )
    return request


def report(*leases: scheduler_pb2.Lease, usage: int = 7) -> scheduler_pb2.ReportRequest:
    """Return the report of attempts that succeeded."""
    request = scheduler_pb2.ReportRequest(edge_id="edge")
    for lease in leases:
        item = request.items.add(attempt=lease.attempt)
        item.settlement.outcome = journal_pb2.OUTCOME_SUCCEEDED
        item.usage.items.add(unit="output_tokens", quantity=usage)
    return request


async def events(store: Store) -> list[journal_pb2.JournalEvent]:
    """Return all that is in the journal."""
    entries = await store.call("XRANGE", store.key("journal"), "-", "+")
    return [journal_pb2.JournalEvent.FromString(fields[1]) for _, fields in entries]


async def eventually(check: Callable[[], Awaitable[bool]], limit: float = 60.0) -> None:
    """Wait until *check* holds; for what another process or server does in its own time."""
    async with asyncio.timeout(limit):
        while not await check():  # noqa: ASYNC110 - the other side has no event for us
            await asyncio.sleep(0.01)
