"""
Acquire: from a batch of attempts that want a credential to their leases, sessions and queues included.

Each attempt's session says whom to ask first (affinity.py); an attempt that finds every ready credential full
gets a place in the queue (capacity.py). Opened attempts are journaled when their lease is taken and before
anybody is told of it, so that what the pool refuses leaves no trace in the ledger.

Not here: choosing and leasing (placing.py), limits of the message (service.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.errors import Aborted, NotFound, PatchbayError, ResourceExhausted, Unavailable
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.scheduler.affinity import Wanted
from patchbay_gateway.scheduler.capacity import BUSY, QUEUED
from patchbay_gateway.scheduler.grants import fill, split_value
from patchbay_gateway.scheduler.journal import Draft
from patchbay_gateway.scheduler.messages import fill_refusal
from patchbay_gateway.scheduler.placing import Placed, Standing, Wish
from patchbay_gateway.scheduler.selection import Candidate

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.affinity import Affinity, Session
    from patchbay_gateway.scheduler.booking import LeaseBook
    from patchbay_gateway.scheduler.capacity import Capacity
    from patchbay_gateway.scheduler.grants import Grants
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.picking import Picking
    from patchbay_gateway.scheduler.placing import Placing

    _Owner = tuple[scheduler_pb2.AcquireItem, scheduler_pb2.AcquireResult]

_OPENED: Final = journal_pb2.EVENT_KIND_OPENED


class Acquiring:
    """
    Leases credentials for batches of attempts.

    Args:
        holder: The snapshots that attempts are pinned to.
        placing: Chooses and leases.
        book: Journals what was opened.
        grants: Makes leases again that stand already.
        view: What is known of the pool.
        affinity: Sessions.
        capacity: Queues.
        clock: Time.
        metrics: Where leases and refusals are counted.
        picking: Has plugins choose; None: there are none.
    """

    def __init__(
        self,
        *,
        holder: SnapshotHolder,
        placing: Placing,
        book: LeaseBook,
        grants: Grants,
        view: HealthView,
        affinity: Affinity,
        capacity: Capacity,
        clock: Clock,
        metrics: Metrics,
        picking: Picking | None = None,
    ) -> None:
        self._picking = picking
        self._holder = holder
        self._placing = placing
        self._book = book
        self._grants = grants
        self._view = view
        self._affinity = affinity
        self._capacity = capacity
        self._clock = clock
        self._leased = metrics.counter("scheduler_leases_total", "Attempts that got a lease.")
        self._probes = metrics.counter(
            "scheduler_probes_total", "Leases that probe a credential after its cooldown."
        )
        self._refused = metrics.counter(
            "scheduler_refusals_total", "Attempts that got none.", ["reason"]
        )

    async def acquire(
        self,
        items: Sequence[scheduler_pb2.AcquireItem],
        results: Sequence[scheduler_pb2.AcquireResult],
    ) -> None:
        """
        Fill the result of each item.

        Raises:
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed, or this scheduler is shutting down.
        """
        capacity = self._capacity
        if len(capacity) and len(items) == 1:
            # On a call of its own an attempt waits for its turn; it has none unless it was queued before.
            await capacity.turn(items[0].attempt.attempt_uid)
        wishes: list[Wish] = []
        owners: list[_Owner] = []
        drafts: list[Draft] = []
        picks: list[Hook] = []
        with_session = False
        picking = self._picking
        for item, result in zip(items, results, strict=True):
            try:
                if item.direct_plugin_id:
                    drafts.append(self._direct(item, result))
                    continue
                wish = self._wish(item)
            except PatchbayError as error:
                self._refuse(result, error)
                continue
            hook = picking.who(wish.snapshot, item) if picking is not None else None
            if hook is not None:
                if len(items) > 1:
                    # A plugin's time must not hold back the others of the batch.
                    self._refuse(result, _alone())
                    continue
                picks.append(hook)
            wishes.append(wish)
            owners.append((item, result))
            if wish.snapshot.settings.affinity.enabled and item.session_ids:
                with_session = True
        if wishes:
            drafts += await self._pooled(wishes, owners, picks, with_session=with_session)
        if drafts:
            await self._journal(drafts)

    def _direct(
        self, item: scheduler_pb2.AcquireItem, result: scheduler_pb2.AcquireResult
    ) -> Draft:
        """
        Lease a plugin's executor without a credential: nothing of the pool is taken.

        Raises:
            Aborted: SNAPSHOT_UNKNOWN.
            NotFound: PLUGIN_UNKNOWN.
        """
        snapshot = self.snapshot(item.attempt.snapshot_version)
        if item.direct_plugin_id not in snapshot.plugin_by_id:
            raise NotFound(
                f"no plugin {item.direct_plugin_id!r} in the configuration", reason="PLUGIN_UNKNOWN"
            )
        self._grants.fill_direct(
            result.lease, item.attempt, item.direct_plugin_id, self._clock.now()
        )
        return Draft(_OPENED, result.lease.attempt)

    async def _pooled(
        self,
        wishes: Sequence[Wish],
        owners: Sequence[_Owner],
        picks: Sequence[Hook],
        *,
        with_session: bool,
    ) -> list[Draft]:
        """Choose and lease credentials; return the attempts that were opened."""
        sessions = await self._sessions(wishes, owners) if with_session else None
        if picks and self._picking is not None:
            answers = await self._picking.place(
                wishes, [(hook, item) for hook, (item, _) in zip(picks, owners, strict=True)]
            )
        else:
            answers = await self._placing.place(wishes)
        drafts: list[Draft] = []
        now = self._clock.now()
        for index, answer in enumerate(answers):
            item, result = owners[index]
            if not self._answer(wishes[index], answer, item, result, now):
                continue
            attempt = result.lease.attempt
            drafts.append(Draft(_OPENED, attempt))
            if sessions is not None and index in sessions:
                self._bind(wishes[index], attempt.credential_id, sessions[index])
        return drafts

    async def _journal(self, drafts: Sequence[Draft]) -> None:
        """Journal what was opened; where that fails nothing was."""
        try:
            self._book.opened(drafts)
        except PatchbayError:
            self._book.end([draft.attempt.attempt_uid for draft in drafts])
            raise
        self._leased.inc(len(drafts))
        if not self._book.safe:
            await self._book.durable()

    def snapshot(self, version: int) -> Snapshot:
        """
        Return a snapshot that attempts may be pinned to.

        Raises:
            Aborted: SNAPSHOT_UNKNOWN.
        """
        snapshot = self._holder.get(version)
        if snapshot is None:
            raise Aborted(
                f"snapshot {version} is not known here; pin the current one and try again",
                reason="SNAPSHOT_UNKNOWN",
            )
        return snapshot

    def _wish(self, item: scheduler_pb2.AcquireItem) -> Wish:
        attempt = item.attempt
        wish = Wish(
            attempt.attempt_uid,
            self.snapshot(attempt.snapshot_version),
            item.target_model or attempt.model,
            tuple(item.providers),
            item.exclude_credential_ids,
            (),
            item.prefer_credential_id,
            item.pinned_credential_id,
            item.round,
        )
        if item.tried:
            wish.tried = [(t.credential_id, t.upstream_model) for t in item.tried]
        if not self._capacity.may_try(key := _queue(wish), wish.uid):
            raise self._capacity.refusal(key, wish.uid, wish.snapshot.settings.queue)
        return wish

    async def _sessions(
        self, wishes: Sequence[Wish], owners: Sequence[_Owner]
    ) -> dict[int, Session]:
        """Ask for the sessions of those that have one; return index of the wish → session."""
        asking: list[int] = []
        wanted: list[Wanted] = []
        for index, (wish, (item, _)) in enumerate(zip(wishes, owners, strict=True)):
            affinity = wish.snapshot.settings.affinity
            if affinity.enabled and item.session_ids:
                tenant = item.attempt.tenant or "default"
                wanted.append(Wanted(tenant, wish.model, list(item.session_ids), affinity.ttl))
                asking.append(index)
        found = dict(zip(asking, await self._affinity.sessions(wanted), strict=True))
        for index, session in found.items():
            wishes[index].sticky = session.bound or None
        return found

    def _bind(self, wish: Wish, chosen: str, session: Session) -> None:
        keep = bool(session.bound) and session.bound != chosen and self._full(wish, session.bound)
        self._affinity.leased(wish.uid, session, chosen, keep=keep)

    def _full(self, wish: Wish, credential_id: str) -> bool:
        credential = wish.snapshot.credential_by_id.get(credential_id)
        cap = credential.max_in_flight if credential is not None else 0
        return bool(cap) and self._view.in_flight(credential_id) >= cap

    def _queued(self, wish: Wish, error: PatchbayError) -> PatchbayError:
        """Return what to answer instead of *error*: those that find everybody full may wait."""
        if error.reason == BUSY:
            return self._capacity.refusal(_queue(wish), wish.uid, wish.snapshot.settings.queue)
        if len(self._capacity):
            self._capacity.leave(wish.uid)
        return error

    def _answer(
        self,
        wish: Wish,
        answer: Placed | Standing | PatchbayError,
        item: scheduler_pb2.AcquireItem,
        result: scheduler_pb2.AcquireResult,
        now: float,
    ) -> bool:
        """Fill in the lease or the refusal; return whether it is a lease."""
        if isinstance(answer, Standing):
            again = self._again(wish, answer, now)
            if again is None:
                gone = "the credential of this attempt's lease is gone"
                self._refuse(result, Unavailable(gone, reason="NO_CREDENTIAL"))
                return False
            answer = again
        if not isinstance(answer, Placed):
            self._refuse(result, self._queued(wish, answer))
            return False
        fill(result.lease, answer.grant, item.attempt, now)
        if answer.probe:
            result.lease.probe = True
            self._probes.inc()
        if len(self._capacity):
            self._capacity.leave(wish.uid)
        return True

    def _again(self, wish: Wish, standing: Standing, now: float) -> Placed | None:
        """Return the lease that the attempt has already; None if what was chosen then is gone."""
        provider_name, credential_id, upstream_model = split_value(standing.value)
        provider = wish.snapshot.provider_by_name.get(provider_name)
        credentials = provider.credentials if provider is not None else ()
        credential = next((c for c in credentials if c.id == credential_id), None)
        if provider is None or credential is None:
            return None
        candidate = Candidate(provider, credential, upstream_model)
        return Placed(self._grants.of(wish.snapshot, candidate, now))

    def _refuse(self, result: scheduler_pb2.AcquireResult, error: PatchbayError) -> None:
        fill_refusal(result, error)
        self._refused.labels(error.reason).inc()


def _alone() -> PatchbayError:
    """Return what tells an edge to ask again for the attempt on a call of its own."""
    return ResourceExhausted(
        "a plugin chooses this attempt's credential; ask for it alone", reason=QUEUED, retry_after=0
    )


def _queue(wish: Wish) -> Hashable:
    """Return what names the credentials that an attempt can wait for: it must not hold back others."""
    if not (wish.pinned or wish.exclude or wish.tried):
        return wish.model, wish.providers
    return (
        *(wish.model, wish.providers, wish.pinned),
        *(frozenset(wish.exclude), frozenset(wish.tried)),
    )
