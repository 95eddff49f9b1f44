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
from patchbay_gateway.scheduler.journal import Draft
from patchbay_gateway.scheduler.selection import Candidate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay.type.v1 import secret_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.catalogue import Catalogue
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.journal import Journal
    from patchbay_gateway.scheduler.leases import LeaseBook
    from patchbay_gateway.scheduler.selection import Selector

# Limits of scheduler.proto.
_ACQUIRES: Final = 256
_RENEWALS: Final = 4096
_REPORTS: Final = 1024
# Kept leases to copy; about 1 KB each.
_TEMPLATES: Final = 4096
# Between the parts of a lease's value; no name has it.
_SEPARATOR: Final = "\x1f"

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
        credentials: Credentials,
        catalogue: Catalogue,
        journal: Journal,
        book: LeaseBook,
        plugins_roots: tuple[bytes, ...],
        clock: Clock,
        installation: str,
        lease_ttl: float,
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
        self._credentials = credentials
        self._catalogue = catalogue
        self._journal = journal
        self._book = book
        self._plugins_roots = plugins_roots
        self._clock = clock
        self._installation = installation
        self._ttl_seconds = int(lease_ttl)
        self._ttl_nanos = int(lease_ttl % 1 * 1_000_000_000)
        self._channel_keys: dict[str, list[bytes]] = {}
        self._templates: dict[
            tuple[int, str, str, str], tuple[secret_pb2.SealedSecret | None, scheduler_pb2.Lease]
        ] = {}

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
        if any(self._holder.get(i.attempt.snapshot_version) is None for i in request.items):
            # The edge may have been told of a new one a moment before this scheduler.
            await self._refresh()
        now = self._clock.now()
        seconds = int(now)
        nanos = int((now - seconds) * 1_000_000_000)
        response = scheduler_pb2.AcquireResponse()
        leased: list[tuple[scheduler_pb2.AcquireItem, scheduler_pb2.AcquireResult]] = []
        take: list[tuple[str, str]] = []
        drafts: list[Draft] = []
        for item in request.items:
            result = response.results.add()
            try:
                snapshot = self._snapshot(item.attempt.snapshot_version)
                candidate = self._selector.pick(
                    snapshot,
                    item.attempt.model,
                    tuple(item.providers),
                    exclude=item.exclude_credential_ids,
                    pinned=item.pinned_credential_id,
                )
            except PatchbayError as error:
                _refuse(result, error)
                self._refused.labels(error.reason).inc()
                continue
            lease = result.lease
            self._fill(lease, item.attempt, snapshot, candidate)
            opened = lease.attempt.opened_at
            opened.seconds = seconds
            opened.nanos = nanos
            leased.append((item, result))
            take.append((item.attempt.attempt_uid, _value(candidate)))
            drafts.append(Draft(_OPENED, lease.attempt))
        if take:
            self._leased.inc(len(take))
            self._journal.record(drafts)
            for index, standing in enumerate(await self._book.take(take)):
                if standing is not None and standing != take[index][1]:
                    self._repeat(*leased[index], standing)
        return response

    def _snapshot(self, version: int) -> Snapshot:
        snapshot = self._holder.get(version)
        if snapshot is None:
            raise Aborted(
                f"snapshot {version} is not known here; pin the current one and try again",
                reason="SNAPSHOT_UNKNOWN",
            )
        return snapshot

    def _fill(
        self,
        lease: scheduler_pb2.Lease,
        attempt: journal_pb2.AttemptInfo,
        snapshot: Snapshot,
        candidate: Candidate,
    ) -> None:
        """Make *lease* of *attempt* and what was chosen for it."""
        lease.CopyFrom(self._template(snapshot, candidate))
        lease.attempt.MergeFrom(attempt)
        if not lease.attempt.tenant:
            lease.attempt.tenant = "default"

    def _template(self, snapshot: Snapshot, candidate: Candidate) -> scheduler_pb2.Lease:
        """Return what all leases of *candidate* have in common."""
        provider, credential = candidate.provider, candidate.credential
        key = (snapshot.version, provider.name, credential.id, candidate.upstream_model)
        secret = self._credentials.sealed(provider, credential)
        kept = self._templates.get(key)
        if kept is not None and kept[0] is secret:
            return kept[1]
        template = scheduler_pb2.Lease(
            auth_index=credential.auth_index, proxy_url=credential.proxy_url, secret=secret
        )
        template.ttl.seconds = self._ttl_seconds
        template.ttl.nanos = self._ttl_nanos
        attempt = template.attempt
        attempt.installation = self._installation
        attempt.provider = provider.name
        attempt.plugin_id = provider.plugin
        attempt.credential_id = credential.id
        attempt.upstream_model = candidate.upstream_model
        plugin = snapshot.plugin_by_id.get(provider.plugin)
        if plugin is not None and len(plugin.addresses) == 1:
            attempt.plugin_revision = plugin.addresses[0].revision
        if len(self._templates) >= _TEMPLATES:
            self._templates.clear()
        self._templates[key] = (secret, template)
        return template

    def _repeat(
        self,
        item: scheduler_pb2.AcquireItem,
        result: scheduler_pb2.AcquireResult,
        standing: str,
    ) -> None:
        """Answer an attempt that has a lease already with what was chosen then."""
        provider_name, credential_id, upstream_model = standing.split(_SEPARATOR)
        snapshot = self._snapshot(item.attempt.snapshot_version)
        provider = snapshot.provider_by_name.get(provider_name)
        credential = next(
            (c for c in provider.credentials if c.id == credential_id) if provider else iter(()),
            None,
        )
        if provider is None or credential is None:
            _refuse(
                result,
                Unavailable(
                    "the credential of this attempt's lease is gone", reason="NO_CREDENTIAL"
                ),
            )
            return
        former = result.lease.attempt.opened_at
        seconds, nanos = former.seconds, former.nanos
        candidate = Candidate(provider, credential, upstream_model)
        self._fill(result.lease, item.attempt, snapshot, candidate)
        opened = result.lease.attempt.opened_at
        opened.seconds, opened.nanos = seconds, nanos

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
            [(item.attempt.attempt_uid, _renewed_value(item.attempt)) for item in request.items]
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
            usage = item.usage if item.HasField("usage") and not item.nested else None
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


def _value(candidate: Candidate) -> str:
    return _SEPARATOR.join(
        (candidate.provider.name, candidate.credential.id, candidate.upstream_model)
    )


def _renewed_value(attempt: journal_pb2.AttemptInfo) -> str:
    return _SEPARATOR.join((attempt.provider, attempt.credential_id, attempt.upstream_model))


def _refuse(result: scheduler_pb2.AcquireResult, error: PatchbayError) -> None:
    refusal = result.refusal
    code: Any = error.code.value
    refusal.code = code[0]
    refusal.reason = error.reason
    refusal.message = error.message
    if error.retry_after is not None:
        refusal.retry_after.FromMilliseconds(int(error.retry_after * 1000))
