"""
The path of a request through the edge, top to bottom. The numbers are those of docs/architecture.md,
"The path of a request".

    1 pin a snapshot   2 who the client is   3 body   4 who can serve it: model routers, catalogue
    5 interceptors before   6 lease   7-11 execute, answer (execution.py)   12 after a failure: decide,
    report   13 tell lifecycle plugins

Everything that goes wrong before the answer is committed ends as an error in the client's dialect; after
it, as the dialect's terminal event. Whatever ends an attempt, it is reported exactly once. Not here: HTTP
(asgi.py), formats (dialects/), one attempt's call (execution.py), what a failure means (deciding.py,
kernel/outcomes.py), what may still be tried (tries.py), when headers are committed (stream.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.alarms import Alarms
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge import attempts, body, failures, knowing, sessions, targets, telling
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.execution import Execution
from patchbay_gateway.edge.owner import Owner
from patchbay_gateway.edge.request import Request
from patchbay_gateway.edge.sampling import LimitSampler
from patchbay_gateway.edge.stream import Answer
from patchbay_gateway.edge.tries import Tries
from patchbay_gateway.kernel import outcomes
from patchbay_gateway.plugins.request_interceptors import Terminated

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.edge.auth import Authenticator
    from patchbay_gateway.edge.budget import ByteBudget
    from patchbay_gateway.edge.counting import EdgeCounts
    from patchbay_gateway.edge.deciding import Decider
    from patchbay_gateway.edge.leases import Leases, LiveLease
    from patchbay_gateway.edge.outbox import Outbox
    from patchbay_gateway.edge.routes.request import RoutedRequest
    from patchbay_gateway.edge.steps import PluginSteps
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.uid import UidSource
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.registry import PluginRegistry

# A client gets this many seconds to send its whole body (docs/architecture.md, limits).
_BODY_DEADLINE: Final = 60.0
# Most seconds by which waits for a recovery are spread.
_MOST_SPREAD: Final = 2.0
# How often a request is pinned anew because a scheduler does not know its snapshot, and how long a newer one
# is waited for; schedulers and edges look for one each second where they are not told.
_PINS: Final = 4
_NEWER: Final = 0.5


class Pipeline:
    """Runs requests; one per edge process."""

    def __init__(
        self,
        *,
        snapshots: SnapshotHolder,
        registry: PluginRegistry,
        authenticator: Authenticator,
        budget: ByteBudget,
        leases: Leases,
        outbox: Outbox,
        uids: UidSource,
        clock: Clock,
        installation: str,
        decider: Decider,
        counts: EdgeCounts,
        plugins: PluginSteps,
        random: Callable[[], float] = random.random,
    ) -> None:
        """*random* spreads waits: a number from 0 to 1."""
        self._snapshots = snapshots
        self._registry = registry
        self._authenticator = authenticator
        self._budget = budget
        self._leases = leases
        self._outbox = outbox
        self._uids = uids
        self._clock = clock
        self._installation = installation
        self._decider = decider
        self._counts = counts
        self._plugins = plugins
        self._random = random
        self._sampler = LimitSampler()
        self._alarms = Alarms()

    async def run(self, routed: RoutedRequest) -> None:
        """Answer *routed*, whatever happens. Returns when the exchange is over."""
        owner = Owner(routed.exchange.gone)
        try:
            await self._run(routed, owner)
        except ClientGone:
            return
        except asyncio.CancelledError:
            if not owner.left:
                raise
        finally:
            owner.close()

    async def _run(self, routed: RoutedRequest, owner: Owner) -> None:
        snapshot = self._snapshots.current  # 1
        if snapshot is None:
            error = errors.Unavailable(
                "the gateway has no configuration yet", reason="NOT_READY", retry_after=2
            )
            await telling.send_error(routed, error, [(b"x-request-id", routed.request_id.encode())])
            return
        # Without an id of the client's own, the one that it is told is the request's.
        request_uid = self._uids.mint() if routed.client_request_id else routed.request_id
        request = Request(routed, request_uid, snapshot, self._clock, self._clock.monotonic())
        try:
            await self._serve(request, owner)
        finally:
            self._counts.over(request, gone=owner.left)
            if request.steps is not None:
                request.steps.complete(gone=owner.left)  # 13

    async def _serve(self, request: Request, owner: Owner) -> None:
        routed, snapshot = request.routed, request.snapshot
        with self._budget.charge() as charge:
            try:
                known = knowing.client(routed, snapshot, self._authenticator, self._plugins)  # 2
                request.client = known
                request.document = await body.read(  # 3
                    routed.exchange,
                    limit=snapshot.settings.body_limit,
                    deadline=_BODY_DEADLINE,
                    charge=charge,
                )
                if known is None:
                    request.client = await knowing.by_plugins(request, self._plugins)  # 2
                request.model, request.stream = body.asked(request.document, routed)
                self._counts.begun(request)
                request.steps = self._plugins.of(request)
                candidates = await self._candidates(request)  # 4
                if request.steps is not None and await request.steps.before():  # 5
                    request.document = await request.steps.scanned(request.steps.current.body)
                if snapshot.settings.affinity.enabled:
                    request.session_ids = await sessions.find(request)
                await self._attempts(request, candidates, owner)
            except Terminated as answer:
                if not request.number:
                    self._refused(request, attempts.terminated(answer), answer.status)
                await telling.terminate(request, answer)
            except errors.PatchbayError as error:
                self._refused(request, error, telling.status_of(request, error))
                await telling.send_error(routed, error, request.answer_headers([]))

    async def _candidates(self, request: Request) -> targets.Candidates:
        assert request.client is not None
        named = request.model
        targets.split_thinking(request)
        # Allow-lists speak of models; how much one is to think is no part of its name.
        if not request.client.allows(request.model):
            raise targets.unknown_model(named)
        route = await request.steps.route() if request.steps is not None else None
        if route is not None and route.executor:
            request.direct = route.executor
            return targets.DIRECT
        if route is not None:
            model = request.model if route.model == named else route.model
            return targets.routed(request.snapshot, route.provider, model)
        return self._plugins.candidates(request)

    async def _attempts(
        self, request: Request, candidates: targets.Candidates, owner: Owner
    ) -> None:
        """
        The attempt loop: lease, execute, and again while that can help and nothing is committed.

        Raises:
            PatchbayError: No attempt was made.
        """
        answer = self._answer(request)
        tries = Tries(candidates)
        failure: errors.PatchbayError | None = None
        attempt: attempts.Attempt | None = None
        try:
            while True:
                try:
                    live = await self._lease(request, candidates, tries, answer)  # 6
                except errors.PatchbayError as refusal:
                    if failure is None and not answer.headers_committed:
                        # Set before any await: the answer's alarm must not commit headers now.
                        answer.headers_committed = True
                        raise
                    if failure is None:
                        self._refused(request, refusal, telling.status_of(request, refusal))
                    failure = failures.at_the_end(failure, refusal)
                    break
                request.number = tries.number = tries.number + 1
                attempt = self._attempt(request, live)
                execution = Execution(
                    request,
                    attempt,
                    answer,
                    owner,
                    judge=self._decider.judge,
                    sampler=self._sampler,
                    plugins=self._plugins,
                )
                try:
                    await execution.run(self._registry, tries.addresses)  # 7-11
                except Terminated as terminated:
                    attempt.fail(attempts.terminated(terminated), terminated.status)  # 12
                    if not await telling.terminated_late(request, answer, terminated):
                        raise
                    return
                except errors.PatchbayError as error:
                    answer.pause()
                    judgement, following = await self._decider.decide(  # 12
                        request, attempt, tries, error, committed=answer.answer_committed
                    )
                    again = tries.failed(
                        attempt.lease, following, error, judgement.fault, execution.address
                    )
                    failure = failures.graver(failure, error)
                    status = 0 if again else telling.status_of(request, failure)
                    attempt.fail(error, status, judgement)  # 12
                    if owner.left:
                        raise ClientGone from error
                    owner.drain = 0.0
                    if not again:
                        break
                except (ClientGone, asyncio.CancelledError):
                    attempt.cancel("CLIENT_GONE" if owner.left else "SHUTDOWN")  # 12
                    raise
                else:
                    return
            await telling.give_up(request, answer, failure)
        finally:
            if attempt is not None and not attempt.settled:
                # A bug of ours, here or below; the router tells the client and the log. Unsettled its lease
                # would be renewed for ever.
                attempt.fail(errors.Internal("a bug"), 500)  # 12
            await answer.aclose()

    async def _lease(
        self, request: Request, candidates: targets.Candidates, tries: Tries, answer: Answer
    ) -> LiveLease:
        """
        Return the lease of the next attempt, after a wait where another round begins.

        Raises:
            PatchbayError: The refusal.
        """
        unknown = 0
        while True:
            try:
                item, alone = self._item(request, candidates, tries)
                return await self._leases.acquire(
                    item, request.snapshot.settings.queue.wait, alone=alone
                )
            except errors.PatchbayError as refusal:
                if refusal.reason == "SNAPSHOT_UNKNOWN" and unknown < _PINS:
                    unknown += 1
                    await self._pin_anew(request)
                    continue
                wait = tries.refused(refusal)
                if wait is None:
                    raise
            await self._wait(answer, wait, candidates.retry.max_wait)

    async def _wait(self, answer: Answer, seconds: float, most: float) -> None:
        """Wait for the earliest recovery, and a little more, so that not all who wait come at once."""
        answer.pause()
        if seconds > 0:
            spread = min(seconds / 4, _MOST_SPREAD) * self._random()
            await self._clock.sleep(min(seconds + spread, max(most, seconds)))

    def _answer(self, request: Request) -> Answer:
        limits = request.snapshot.settings.streaming
        grace = limits.first_byte_grace if request.stream else limits.nonstream_keepalive
        # White space before a JSON document means nothing (RFC 8259, section 2).
        keepalive = request.routed.dialect.keepalive() if request.stream else b"\n"
        if request.routed.source:
            # Who asks from within waits for the head, and takes every byte for an answer.
            grace, keepalive = 0.0, b""
        return Answer(
            request.routed.exchange,
            self._alarms,
            limits,
            grace=grace,
            keepalive=keepalive,
            early_head=request.early_headers,
            whole=not request.stream,
        )

    def _attempt(self, request: Request, live: LiveLease) -> attempts.Attempt:
        if request.routed.on_credential is not None:
            request.routed.on_credential(live.lease.attempt.credential_id)
        return attempts.Attempt(
            live,
            leases=self._leases,
            outbox=self._outbox,
            clock=self._clock,
            counts=self._counts,
        )

    def _item(
        self, request: Request, candidates: targets.Candidates, tries: Tries
    ) -> tuple[scheduler_pb2.AcquireItem, bool]:
        """Return what is asked for, and whether on a call of its own."""
        assert request.document is not None
        routed = request.routed
        item = scheduler_pb2.AcquireItem()
        request.describe(item.attempt, tries.number + 1, self._installation)
        item.providers.extend(candidates.providers)
        # The rule of thumb for reservations; billing never uses it.
        item.estimated_input_tokens = len(request.document.data) // 4
        if routed.pinned_credential_id:
            item.pinned_credential_id = routed.pinned_credential_id
        if routed.execution_session_id:
            item.execution_session_id = routed.execution_session_id
        if request.session_ids:
            item.session_ids.extend(request.session_ids)
        if request.direct:
            item.direct_plugin_id = request.direct
        if candidates.target_model:
            item.target_model = candidates.target_model
        tries.fill(item)
        return item, self._plugins.tell_scheduler(request, item)

    async def _pin_anew(self, request: Request) -> None:
        """
        Pin the newest snapshot, for a scheduler does not know the request's; it may have forgotten it.

        Where there is no newer one here, wait a little: of two that were published in a row the scheduler
        may have missed the first, and the second is on its way here; or the request's is on its way there.
        """
        newest = self._snapshots.current
        if newest is None or newest.version == request.snapshot.version:
            news = asyncio.Event()
            forget = self._snapshots.on_change(lambda _: news.set())
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_NEWER):
                        await news.wait()
            finally:
                forget()
        request.snapshot = self._snapshots.current or request.snapshot

    def _refused(self, request: Request, error: errors.PatchbayError, status: int) -> None:
        if request.client is None:
            # A row for each would let strangers fill the ledger (docs/adr/0024-strangers-are-counted.md).
            self._counts.refused(error)
            return
        # Without an answer to Acquire nobody knows whether the attempt was opened; then it is the attempt
        # that is settled, so that the request is not counted twice.
        number = 1 if error.reason == outcomes.NO_SCHEDULER else 0
        info = request.info(number, self._installation)
        self._outbox.report(attempts.refused(info, error, status))
