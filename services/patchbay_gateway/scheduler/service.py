"""
SchedulerService: the wire side of the scheduler.

Translates messages into calls of selection, leases and journal, and back; decides nothing itself. What goes
wrong with one item is that item's refusal; what goes wrong with the call is an error of `patchbay.errors`.
Requests are read and never changed, for they may be the caller's own objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import Aborted, InvalidRequest, PatchbayError, Unavailable
from patchbay.keys import channel_key
from patchbay.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.scheduler.grants import fill, lease_value, split_value
from patchbay_gateway.scheduler.journal import Draft
from patchbay_gateway.scheduler.selection import Candidate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.booking import LeaseBook
    from patchbay_gateway.scheduler.catalogue import Catalogue
    from patchbay_gateway.scheduler.grants import Grants
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.selection import Selector

# Limits of scheduler.proto.
_ACQUIRES: Final = 256
_RENEWALS: Final = 4096
_REPORTS: Final = 1024

_OPENED: Final = journal_pb2.EVENT_KIND_OPENED
_RENEWED: Final = journal_pb2.EVENT_KIND_RENEWED
_SETTLED: Final = journal_pb2.EVENT_KIND_SETTLED
_REFUSED: Final = journal_pb2.EVENT_KIND_REFUSED


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The servicer of one scheduler."""

    def __init__(
        self,
        *,
        holder: SnapshotHolder,
        selector: Selector,
        catalogue: Catalogue,
        journal: Journal,
        book: LeaseBook,
        plugins_roots: tuple[bytes, ...],
        grants: Grants,
        clock: Clock,
        refresh: Callable[[], Awaitable[None]],
        metrics: Metrics,
        problems: Callable[[], list[str]] = list,
    ) -> None:
        self._leased = metrics.counter("scheduler_leases_total", "Attempts that got a lease.")
        self._refused = metrics.counter(
            "scheduler_refusals_total", "Attempts that got none.", ["reason"]
        )
        self._reported = metrics.counter("scheduler_reports_total", "Ends of attempts.")
        self.problems = problems
        """What keeps this scheduler from serving as configured; empty when nothing does."""
        self._holder = holder
        self._refresh = refresh
        self._selector = selector
        self._grants = grants
        self._catalogue = catalogue
        self._journal = journal
        self._book = book
        self._plugins_roots = plugins_roots
        self._clock = clock
        self._channel_keys: dict[str, list[bytes]] = {}

    # -- Acquire ----------------------------------------------------------------------------------

    async def Acquire(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.AcquireRequest, context: Any = None
    ) -> scheduler_pb2.AcquireResponse:
        """
        Lease a credential for each item.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed.
        """
        _limit(request.items, _ACQUIRES)
        if any(self._holder.get(v) is None for v in _versions(request)):
            # The edge may have been told of a new one a moment before this scheduler.
            await self._refresh()
        now = self._clock.now()
        response = scheduler_pb2.AcquireResponse()
        leased: list[tuple[scheduler_pb2.AcquireItem, scheduler_pb2.AcquireResult, Snapshot]] = []
        take: list[tuple[str, str]] = []
        drafts: list[Draft] = []
        for item in request.items:
            attempt = item.attempt
            result = response.results.add()
            try:
                snapshot = self._snapshot(attempt.snapshot_version)
                candidate = self._selector.pick(
                    snapshot,
                    attempt.model,
                    tuple(item.providers),
                    exclude=item.exclude_credential_ids,
                    pinned=item.pinned_credential_id,
                )
            except PatchbayError as error:
                _refuse(result, error)
                self._refused.labels(error.reason).inc()
                continue
            grant = self._grants.of(snapshot, candidate, now)
            lease = result.lease
            fill(lease, grant, attempt, now)
            leased.append((item, result, snapshot))
            take.append((attempt.attempt_uid, grant.value))
            drafts.append(Draft(_OPENED, lease.attempt))
        if take:
            self._book.admit()
            self._leased.inc(len(take))
            self._journal.record(drafts)
            for index, standing in enumerate(await self._book.take(take)):
                if standing is not None and standing != take[index][1]:
                    self._repeat(*leased[index], standing, now)
        return response

    def _snapshot(self, version: int) -> Snapshot:
        snapshot = self._holder.get(version)
        if snapshot is None:
            raise Aborted(
                f"snapshot {version} is not known here; pin the current one and try again",
                reason="SNAPSHOT_UNKNOWN",
            )
        return snapshot

    def _repeat(
        self,
        item: scheduler_pb2.AcquireItem,
        result: scheduler_pb2.AcquireResult,
        snapshot: Snapshot,
        standing: str,
        now: float,
    ) -> None:
        """Answer an attempt that has a lease already with what was chosen then."""
        provider_name, credential_id, upstream_model = split_value(standing)
        provider = snapshot.provider_by_name.get(provider_name)
        credentials = provider.credentials if provider is not None else ()
        credential = next((c for c in credentials if c.id == credential_id), None)
        if provider is None or credential is None:
            _refuse(
                result,
                Unavailable(
                    "the credential of this attempt's lease is gone", reason="NO_CREDENTIAL"
                ),
            )
            return
        candidate = Candidate(provider, credential, upstream_model)
        fill(result.lease, self._grants.of(snapshot, candidate, now), item.attempt, now)

    # -- Renew and Report -------------------------------------------------------------------------

    async def Renew(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.RenewRequest, context: Any = None
    ) -> scheduler_pb2.RenewResponse:
        """
        Extend leases and journal consumption so far.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed.
        """
        _limit(request.items, _RENEWALS)
        self._journal.record(
            [
                Draft(_RENEWED, item.attempt, n=item.n, usage=item.usage)
                for item in request.items
                if item.HasField("usage") and item.n > 0
            ]
        )
        alive = await self._book.renew(
            [
                (a.attempt_uid, lease_value(a.provider, a.credential_id, a.upstream_model))
                for a in (item.attempt for item in request.items)
            ]
        )
        return scheduler_pb2.RenewResponse(alive=alive)

    async def Report(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ReportRequest, context: Any = None
    ) -> scheduler_pb2.ReportResponse:
        """
        Journal ends and refusals and end their leases.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full.
            Unavailable: The disk failed.
        """
        _limit(request.items, _REPORTS)
        drafts = []
        ends = []
        for item in request.items:
            attempt = item.attempt
            refused = attempt.number == 0
            # Nested model calls carry the tokens of an attempt that made them.
            usage = item.usage if item.HasField("usage") and not item.settlement.nested else None
            drafts.append(
                Draft(
                    _REFUSED if refused else _SETTLED,
                    attempt,
                    usage=usage,
                    settlement=item.settlement,
                )
            )
            if not refused:
                ends.append(attempt.attempt_uid)
        self._reported.inc(len(ends))
        self._journal.record(drafts)
        self._book.end(ends)
        await self._journal.durable()
        return scheduler_pb2.ReportResponse()

    # -- lists ------------------------------------------------------------------------------------

    async def ListModels(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ListModelsRequest, context: Any = None
    ) -> scheduler_pb2.ListModelsResponse:
        """
        List the models that can be served now.

        Raises:
            Aborted: The snapshot asked for is not known here.
            Unavailable: There is no snapshot yet.
        """
        version = request.snapshot_version
        snapshot = self._snapshot(version) if version else self._current()
        response = scheduler_pb2.ListModelsResponse()
        for name, providers in self._catalogue.models(snapshot):
            response.models.add(id=name, providers=providers, owned_by=providers[0])
        return response

    async def ListChannelKeys(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ListChannelKeysRequest, context: Any = None
    ) -> scheduler_pb2.ListChannelKeysResponse:
        """
        Hand out the channel keys of plugins.

        Raises:
            Unavailable: There is no snapshot yet.
        """
        known = self._current().plugin_by_id
        response = scheduler_pb2.ListChannelKeysResponse()
        for plugin_id in request.plugin_ids or known:
            if plugin_id in known:
                for key in self._keys_of(plugin_id):
                    response.keys.add(plugin_id=plugin_id, key=key)
        return response

    def _current(self) -> Snapshot:
        snapshot = self._holder.current
        if snapshot is None:
            raise Unavailable("no snapshot yet", reason="NO_SNAPSHOT", retry_after=1.0)
        return snapshot

    def _keys_of(self, plugin_id: str) -> list[bytes]:
        found = self._channel_keys.get(plugin_id)
        if found is None:
            found = [channel_key(plugin_key(root, plugin_id)) for root in self._plugins_roots]
            self._channel_keys[plugin_id] = found
        return found


def _limit(items: Any, most: int) -> None:
    if len(items) > most:
        raise InvalidRequest(f"{len(items)} items; at most {most} fit", reason="TOO_MANY_ITEMS")


def _versions(request: scheduler_pb2.AcquireRequest) -> set[int]:
    return {item.attempt.snapshot_version for item in request.items}


def _refuse(result: scheduler_pb2.AcquireResult, error: PatchbayError) -> None:
    refusal = result.refusal
    code: Any = error.code.value
    refusal.code = code[0]
    refusal.reason = error.reason
    refusal.message = error.message
    if error.retry_after is not None:
        refusal.retry_after.FromMilliseconds(int(error.retry_after * 1000))
