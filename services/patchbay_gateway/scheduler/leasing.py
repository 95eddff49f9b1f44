"""
Puts together what leases and settles attempts: view, pool, book, choice, sessions, queues.

Not here: what the parts do, and the rest of the scheduler (main.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from patchbay_gateway.scheduler.acquiring import Acquiring
from patchbay_gateway.scheduler.affinity import Affinity
from patchbay_gateway.scheduler.alone import Local
from patchbay_gateway.scheduler.booking import LeaseBook
from patchbay_gateway.scheduler.capacity import Capacity
from patchbay_gateway.scheduler.grants import Grants
from patchbay_gateway.scheduler.health import HealthView
from patchbay_gateway.scheduler.inventory import Inventory
from patchbay_gateway.scheduler.leases import RedisLeases
from patchbay_gateway.scheduler.picking import Picking
from patchbay_gateway.scheduler.placing import Placing
from patchbay_gateway.scheduler.pool import Pool
from patchbay_gateway.scheduler.selection import Selector
from patchbay_gateway.scheduler.settling import Settling

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.lifecycle import Tasks
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.scheduler_plugin import SchedulerPlugins
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.durable.port import CredentialRecord
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.records import Records


class LeaseCore:
    """
    The parts that talk to Redis about leases and the pool.

    Args:
        store: Redis.
        journal: Where opened attempts go.
        clock: Time.
        lease_ttl: Seconds.
        metrics: Where the pool shows.
    """

    def __init__(
        self, store: Store, journal: Journal, *, clock: Clock, lease_ttl: float, metrics: Metrics
    ) -> None:
        self.behind = asyncio.Event()
        """Set when the journal falls behind."""
        self.leases = RedisLeases(store, ttl=lease_ttl, clock=clock)
        self.view = HealthView(clock=clock, lease_ttl=lease_ttl)
        self.pool = Pool(store, self.view, self.leases, clock=clock, metrics=metrics)
        self.book = LeaseBook(
            self.leases,
            journal,
            Local(clock=clock, ttl=lease_ttl),
            on_behind=self.behind,
            view=self.view,
            on_alone=self.pool.alone,
        )


@dataclass(slots=True)
class Leasing:
    """What serves attempts and tells how the pool stands."""

    acquiring: Acquiring
    settling: Settling
    inventory: Inventory
    affinity: Affinity
    follow: _Follower = field(repr=False)

    def start(self, core: LeaseCore, tasks: Tasks) -> None:
        """Start the workers; *tasks* owns them."""
        tasks.start("scheduler-leases", core.book.run())
        tasks.start("scheduler-pool", core.pool.run())
        tasks.start("scheduler-affinity", self.affinity.run())

    def close(self) -> None:
        """Follow the configuration no longer."""
        self.follow.close()


def build_leasing(
    core: LeaseCore,
    *,
    store: Store,
    holder: SnapshotHolder,
    journal: Journal,
    credentials: Credentials,
    records: Records,
    clock: Clock,
    installation: str,
    lease_ttl: float,
    metrics: Metrics,
    plugins: SchedulerPlugins,
) -> Leasing:
    """
    Return the parts that serve attempts.

    Args:
        core: Leases and pool.
        store: Redis.
        holder: Snapshots.
        journal: Events.
        credentials: Material.
        records: Durable records: what management disabled, and versions.
        clock: Time.
        installation: Filled into attempts.
        lease_ttl: Seconds.
        metrics: Counters.
        plugins: Those that choose credentials.
    """
    view, pool, book = core.view, core.pool, core.book
    grants = Grants(credentials, clock=clock, installation=installation, lease_ttl=lease_ttl)
    affinity = Affinity(store, clock=clock)
    capacity = Capacity(clock=clock)
    view.on_change(capacity.wake)
    selector = Selector(credentials.usable, view, now=clock.now, unusable=credentials.obstacle)
    placing = Placing(
        selector=selector, grants=grants, book=book, view=view, clock=clock, read=records.read
    )
    acquiring = Acquiring(
        holder=holder,
        placing=placing,
        book=book,
        grants=grants,
        view=view,
        affinity=affinity,
        capacity=capacity,
        clock=clock,
        metrics=metrics,
        picking=Picking(
            plugins, placing, selector=selector, credentials=credentials, view=view, clock=clock
        ),
    )
    settling = Settling(
        holder=holder,
        journal=journal,
        book=book,
        view=view,
        tally=pool.tally,
        credentials=credentials,
        affinity=affinity,
        clock=clock,
        metrics=metrics,
    )
    inventory = Inventory(credentials, view, pool.tally, store)
    follow = _Follower(holder, records, pool)
    return Leasing(acquiring, settling, inventory, affinity, follow)


class _Follower:
    """Tells the pool what changes in the configuration and in the durable records."""

    def __init__(self, holder: SnapshotHolder, records: Records, pool: Pool) -> None:
        self._holder = holder
        self._records = records
        self._pool = pool
        self._versions: dict[str, int] = {}
        self._grown: dict[str, str] = {}
        """Credential id → hash of the seed that its tokens descend from."""
        if holder.current is not None:
            self._snapshot(holder.current)
        self._forget = holder.on_change(self._snapshot)
        records.on_change(self._record)
        pool.disabled = self._disabled

    def close(self) -> None:
        self._forget()

    def _snapshot(self, snapshot: Snapshot) -> None:
        versions = {
            credential.id: credential.version
            for provider in snapshot.providers
            for credential in provider.credentials
            if credential.oauth2 is None
        }
        for id_, version in versions.items():
            if self._versions.get(id_, version) < version:
                # Another key, perhaps of another account.
                self._pool.want_renewed(id_, version, replaced=True)
        self._versions = versions
        for provider in snapshot.providers:
            for credential in provider.credentials:
                if (record := self._records.get(credential.id)) is not None and record.version:
                    self._grown.setdefault(credential.id, record.lineage)

    def _record(self, credential_id: str, record: CredentialRecord | None) -> None:
        self._pool.want_switched(credential_id, off=record is not None and record.disabled)
        if record is None or not record.version:
            return
        before = self._grown.get(credential_id, record.lineage)
        self._grown[credential_id] = record.lineage
        # Grown from another seed, or by a login: perhaps of another account.
        replaced = before != record.lineage
        self._pool.want_renewed(credential_id, record.version, replaced=replaced)

    def _disabled(self) -> list[str]:
        snapshot = self._holder.current
        return [
            credential.id
            for provider in (snapshot.providers if snapshot is not None else ())
            for credential in provider.credentials
            if (record := self._records.get(credential.id)) is not None and record.disabled
        ]
