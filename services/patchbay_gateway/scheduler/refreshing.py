"""
Puts together what keeps tokens fresh: durable records, auth providers, timers.

Not here: what the parts do, where plugins are (hosted.py), and the rest of the scheduler (main.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchbay.errors import Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.scheduler.auth_calls import PluginAuthProviders
from patchbay_gateway.scheduler.durable.directory import DirectoryStore
from patchbay_gateway.scheduler.durable.secret_store import SecretStore
from patchbay_gateway.scheduler.records import Records
from patchbay_gateway.scheduler.refresh import Refresher
from patchbay_gateway.scheduler.refresh_loop import RefreshLoop
from patchbay_gateway.scheduler.timers import RedisTimers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import ProcessSettings
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.lifecycle import Tasks
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.calls import Scope
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.hosted import HostedPlugins
    from patchbay_gateway.scheduler.seeds import Seeds

_log = logs.get_logger("scheduler.refresh")


@dataclass(frozen=True, slots=True)
class Refreshing:
    """What others need of it."""

    records: Records
    refresher: Refresher

    async def sow(self, seeds: Seeds) -> None:
        """
        Take the seeds of the configuration.

        Raises:
            Unavailable: The durable store does not answer; call again.
        """
        await self.refresher.sow(seeds.of, seeds.broken)


def _declared(holder: SnapshotHolder) -> set[str]:
    """Return the credentials that custom resources declare: those have Secrets for their records."""
    current = holder.current
    providers = current.providers if current is not None else ()
    return {c.id for p in providers for c in p.credentials if c.secrets}


def claim_lease(settings: ProcessSettings) -> float:
    """Return how long a timer's claim lasts, seconds: a call takes less than half of it."""
    return 2 * settings.refresh_timeout + 5.0


@contextlib.asynccontextmanager
async def running_refresh(
    settings: ProcessSettings,
    *,
    name: str,
    store: Store,
    holder: SnapshotHolder,
    roots: Roots,
    clock: Clock,
    tasks: Tasks,
    credentials: Credentials,
    metrics: Metrics,
    plugins: HostedPlugins,
    secrets: SecretsApi | None = None,
) -> AsyncIterator[Refreshing]:
    """
    Read the durable records and keep their tokens fresh.

    Args:
        settings: Of this process.
        name: Of this process, for plugins and intents.
        store: Redis.
        holder: Tells which credentials there are.
        roots: Store and plugins.
        clock: Time.
        tasks: Owns the loops.
        credentials: Told of every change of a record.
        metrics: Counts refreshes.
        plugins: Those that this process talks to; told of each new snapshot.
        secrets: The Secrets that hold the records in Kubernetes; None: a directory does.

    Raises:
        FailedPrecondition: The directory of records cannot be used.
    """
    durable: DirectoryStore | SecretStore
    if secrets is not None:
        durable = SecretStore(secrets, roots.store, ids=lambda: _declared(holder))
    else:
        directory = settings.credentials_dir or settings.data_dir / "credentials"
        durable = await asyncio.to_thread(DirectoryStore, directory, roots.store)
    records = Records(durable, store=store, clock=clock)
    records.on_change(credentials.take)
    try:
        if isinstance(durable, SecretStore):
            await durable.reseal()
        else:
            await asyncio.to_thread(durable.reseal)
        await records.load()
    except Unavailable as error:
        _log.warning("starting without the records of credentials", why=error.message)

    def scope(plugin_id: str) -> Scope | None:
        entry = holder.current.plugin_by_id.get(plugin_id) if holder.current is not None else None
        if entry is None:
            return None
        hook = Hook(plugin_id, "auth_provider", entry, policy("auth_provider"))
        return plugins.calls.scopes.open(hook, None)

    refresher = Refresher(
        records,
        PluginAuthProviders(
            plugins.registry, plugins_roots=roots.plugins, clock=clock, scope=scope
        ),
        clock=clock,
        timeout=settings.refresh_timeout,
        name=name,
        metrics=metrics,
    )
    loop = RefreshLoop(refresher, RedisTimers(store, lease=claim_lease(settings)), clock=clock)
    records.on_change(lambda id_, _: loop.changed(id_))
    try:
        tasks.start("scheduler-auth-providers", _follow(holder, plugins, refresher, loop))
        tasks.start("scheduler-records", records.watch())
        tasks.start("scheduler-refresh", loop.run())
        yield Refreshing(records, refresher)
    finally:
        await refresher.aclose()
        await records.aclose()


async def _follow(
    holder: SnapshotHolder, plugins: HostedPlugins, refresher: Refresher, loop: RefreshLoop
) -> None:
    """Refresh the credentials of each new snapshot, with the auth providers that they need."""

    async def apply(snapshot: Snapshot) -> None:
        refresher.apply(snapshot)
        needed = {known.plugin_id for known in refresher.known.values()}
        await plugins.apply(snapshot, needed)
        loop.changed_all()

    await holder.follow(apply)
