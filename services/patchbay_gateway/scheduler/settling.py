"""
Renew and Report: signs of life and ends, to the journal, to leases, to marks, sessions and counters.

Not here: what an end means for marks (reports.py), the calls (booking.py), limits of messages (service.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.plugins.snapshot import CoolingEntry
from patchbay_gateway.scheduler.grants import lease_value
from patchbay_gateway.scheduler.journal import Draft
from patchbay_gateway.scheduler.leases import Sign
from patchbay_gateway.scheduler.reports import (
    RENEWABLE_AFTER,
    Reports,
    counts_as_failure,
    error_of,
    kind_name,
    limits_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.affinity import Affinity
    from patchbay_gateway.scheduler.booking import LeaseBook
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.marks import End
    from patchbay_gateway.scheduler.tally import Tally

_RENEWED: Final = journal_pb2.EVENT_KIND_RENEWED
_SETTLED: Final = journal_pb2.EVENT_KIND_SETTLED
_REFUSED: Final = journal_pb2.EVENT_KIND_REFUSED
_SUCCEEDED: Final = journal_pb2.OUTCOME_SUCCEEDED
_NO_POLICY: Final = CoolingEntry()


class Settling:
    """
    Settles attempts.

    Args:
        holder: The newest snapshot says caps and policies.
        journal: Where events go.
        book: Where leases are kept.
        view: What is held against credentials.
        tally: Counters.
        credentials: Versions.
        affinity: Sessions.
        clock: Time.
        metrics: Where ends and failures are counted.
    """

    def __init__(
        self,
        *,
        holder: SnapshotHolder,
        journal: Journal,
        book: LeaseBook,
        view: HealthView,
        tally: Tally,
        credentials: Credentials,
        affinity: Affinity,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._holder = holder
        self._journal = journal
        self._book = book
        self._view = view
        self._tally = tally
        self._credentials = credentials
        self._affinity = affinity
        self._clock = clock
        self._reports = Reports(view)
        self._index: tuple[Snapshot | None, dict[str, tuple[ProviderEntry, CredentialEntry]]]
        self._index = (None, {})
        self._reported = metrics.counter("scheduler_reports_total", "Ends of attempts.")
        self._faults = metrics.counter(
            "scheduler_faults_total", "Failures of providers, by what they mean.", ["kind"]
        )

    def _known(self) -> dict[str, tuple[ProviderEntry, CredentialEntry]]:
        """Return credential id → entries of the newest snapshot."""
        snapshot = self._holder.current
        if self._index[0] is not snapshot:
            found = {
                credential.id: (provider, credential)
                for provider in (snapshot.providers if snapshot is not None else ())
                for credential in provider.credentials
            }
            self._index = (snapshot, found)
        return self._index[1]

    async def renew(self, items: Sequence[scheduler_pb2.RenewItem]) -> list[bool]:
        """
        Extend leases and journal consumption so far; return which were alive.

        A lease that is gone is made again if its attempt is old enough to have lost it by an outage, or was
        opened before the last one: of a young one the end may just have overtaken this renewal.

        Raises:
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed.
        """
        self._journal.record(
            [
                Draft(_RENEWED, item.attempt, n=item.n, usage=item.usage)
                for item in items
                if item.HasField("usage") and item.n > 0
            ]
        )
        known, now = self._known(), self._clock.now()
        leases: list[tuple[str, str]] = []
        signs: dict[int, Sign] = {}
        for index, item in enumerate(items):
            attempt = item.attempt
            uid, id_ = attempt.attempt_uid, attempt.credential_id
            opened = attempt.opened_at.seconds
            again = opened <= max(now - RENEWABLE_AFTER, self._view.lost_at)
            value = lease_value(attempt.provider, id_, attempt.upstream_model) if again else ""
            leases.append((uid, value))
            entry = known.get(id_)
            cap = entry[1].max_in_flight if entry is not None else 0
            if cap:
                self._view.hold(id_, uid)
            if cap or self._view.touches(id_):
                output = bool(item.usage.items)
                signs[index] = Sign(uid, id_, attempt.upstream_model, cap, int(output))
        return await self._book.renew(leases, signs)

    async def report(self, items: Sequence[scheduler_pb2.ReportItem]) -> None:
        """
        Journal ends and refusals, end leases, and apply what failures mean.

        Raises:
            ResourceExhausted: The write-ahead file is full.
            Unavailable: The disk failed.
        """
        drafts: list[Draft] = []
        plain: list[str] = []
        special: list[End] = []
        well: list[str] = []
        noted: list[scheduler_pb2.ReportItem] = []
        known, now = self._known(), self._clock.now()
        is_plain = self._reports.plain
        for item in items:
            attempt = item.attempt
            settlement = item.settlement
            # Nested model calls carry the tokens of an attempt that made them.
            usage = item.usage if item.HasField("usage") and not settlement.nested else None
            if attempt.number == 0:
                drafts.append(Draft(_REFUSED, attempt, 0, usage, settlement))
                continue
            drafts.append(Draft(_SETTLED, attempt, 0, usage, settlement))
            id_ = attempt.credential_id
            age = now - attempt.opened_at.seconds
            entry = known.get(id_)
            cap = entry[1].max_in_flight if entry is not None else 0
            if is_plain(id_, item, age, cap):
                plain.append(attempt.attempt_uid)
            else:
                special.append(self._end(item, entry, age, cap))
                noted.append(item)
            if settlement.outcome == _SUCCEEDED and id_:
                well.append(id_)
        # The file first: without it nothing has happened, and the edge reports again.
        self._journal.record(drafts)
        self._reported.inc(len(plain) + len(special))
        for end in special:
            if end.capped:
                self._view.release(end.credential_id, end.uid)
        self._book.end(plain, special)
        for id_ in well:
            self._tally.succeeded(id_)
        if noted:
            self._note(noted, now)
        snapshot = self._holder.current
        if snapshot is not None and snapshot.settings.affinity.enabled:
            self._sessions(items)
        if not self._journal.live:
            await self._journal.durable()

    def _end(
        self,
        item: scheduler_pb2.ReportItem,
        entry: tuple[ProviderEntry, CredentialEntry] | None,
        age: float,
        cap: int,
    ) -> End:
        return self._reports.end(
            item,
            succeeded=item.settlement.outcome == _SUCCEEDED,
            age=age,
            cap=cap,
            cooling=entry[0].cooldown if entry is not None else _NO_POLICY,
            version=self._credentials.version(entry[1]) if entry is not None else 0,
        )

    def _note(self, items: Sequence[scheduler_pb2.ReportItem], now: float) -> None:
        """Keep what failures and limits say, for people."""
        for item in items:
            id_ = item.attempt.credential_id
            if item.HasField("fault") and item.settlement.outcome != _SUCCEEDED:
                self._faults.labels(kind_name(item.fault)).inc()
                if id_ and counts_as_failure(item.fault):
                    self._tally.failed(id_, error_of(item.fault))
            if id_ and item.rate_limits:
                self._tally.limited(id_, limits_of(item, now))

    def _sessions(self, items: Sequence[scheduler_pb2.ReportItem]) -> None:
        """Tell sessions how their attempts ended."""
        for item in items:
            uid = item.attempt.attempt_uid
            if item.settlement.outcome == _SUCCEEDED:
                self._affinity.succeeded(uid)
            elif item.HasField("fault") and counts_as_failure(item.fault):
                self._affinity.failed(uid)
            else:
                self._affinity.ended(uid)
