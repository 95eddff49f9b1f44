"""
The path of a request through the edge, top to bottom. The numbers are those of docs/architecture.md,
"The path of a request".

    1 pin a snapshot   2 client key   3 body   4 who can serve it   5 lease   6 execute, answer
    7 after a failure: decide   8 report

Everything that goes wrong before the answer is committed ends as an error in the client's dialect; after
it, as the dialect's terminal event. Whatever ends an attempt, it is reported exactly once. Not here: HTTP
(asgi.py), formats (dialects/), one attempt's call (execution.py), what a failure means
(kernel/outcomes.py), when headers are committed (stream.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge import attempts, body, targets
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.execution import Execution
from patchbay_gateway.edge.owner import Owner
from patchbay_gateway.edge.request import Request
from patchbay_gateway.edge.stream import Answer
from patchbay_gateway.kernel import outcomes

if TYPE_CHECKING:
    from patchbay_gateway.edge.auth import Authenticator
    from patchbay_gateway.edge.budget import ByteBudget
    from patchbay_gateway.edge.leases import Leases
    from patchbay_gateway.edge.outbox import Outbox
    from patchbay_gateway.edge.routes.request import RoutedRequest
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.uid import UidSource
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.registry import PluginRegistry

# However many credentials a pool has, a request that failed so often gives up.
_MAX_ATTEMPTS: Final = 10
# A client gets this many seconds to send its whole body (docs/architecture.md, limits).
_BODY_DEADLINE: Final = 60.0

_OF_THE_CREDENTIAL: Final = frozenset({outcomes.Next.CREDENTIAL, outcomes.Next.MODEL})


def _fault(error: errors.PatchbayError) -> outcomes.Fault | None:
    if not isinstance(error, errors.UpstreamError):
        return None
    broke = error.sent is errors.Sent.NO or error.reason == outcomes.CONNECTION_FAILED
    kind = outcomes.FaultKind.CONNECTION if broke else outcomes.FaultKind.UNSPECIFIED
    return outcomes.Fault(kind)


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
    ) -> None:
        self._snapshots = snapshots
        self._registry = registry
        self._authenticator = authenticator
        self._budget = budget
        self._leases = leases
        self._outbox = outbox
        self._uids = uids
        self._clock = clock
        self._installation = installation

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
            await self._send_error(routed, error, [(b"x-request-id", routed.request_id.encode())])
            return
        # Without an id of the client's own, the one that it is told is the request's.
        request_uid = self._uids.mint() if routed.client_request_id else routed.request_id
        request = Request(routed, request_uid, snapshot, self._clock, self._clock.monotonic())
        with self._budget.charge() as charge:
            try:
                head = routed.exchange.head
                request.client = self._authenticator.authenticate(head, snapshot)  # 2
                request.document = await body.read(  # 3
                    routed.exchange,
                    limit=snapshot.settings.body_limit,
                    deadline=_BODY_DEADLINE,
                    charge=charge,
                )
                request.model, request.stream = body.asked(request.document, routed)
                await self._attempts(request, self._candidates(request), owner)
            except errors.PatchbayError as error:
                self._refused(request, error)
                await self._send_error(routed, error, request.answer_headers([]))

    def _candidates(self, request: Request) -> targets.Candidates:  # 4
        assert request.client is not None
        if not request.client.allows(request.model):
            raise targets.unknown_model(request.model)
        return targets.resolve(
            request.snapshot,
            self._registry,
            model=request.model,
            dialect=request.routed.dialect.name,
            operation=request.routed.operation,
        )

    async def _attempts(  # noqa: PLR0915 - one loop, read from top to bottom
        self, request: Request, candidates: targets.Candidates, owner: Owner
    ) -> None:
        """
        The attempt loop: lease, execute, and again while that can help and nothing is committed.

        Raises:
            PatchbayError: No attempt was made.
        """
        limits = request.snapshot.settings.streaming
        answer = Answer(
            request.routed.exchange,
            limits,
            grace=limits.first_byte_grace if request.stream else limits.nonstream_keepalive,
            # White space before a JSON document means nothing (RFC 8259, section 2).
            keepalive=request.routed.dialect.keepalive() if request.stream else b"\n",
            early_head=request.early_headers,
            whole=not request.stream,
        )
        avoid_credentials: list[str] = []
        avoid_addresses: list[str] = []
        failure: errors.PatchbayError | None = None
        try:
            while True:
                try:
                    live = await self._leases.acquire(  # 5
                        self._item(request, candidates, avoid_credentials)
                    )
                except errors.PatchbayError as refusal:
                    if refusal.reason == "SNAPSHOT_UNKNOWN" and self._pin_anew(request):
                        continue
                    if failure is None and not answer.headers_committed:
                        # Set before any await: the answer's timer must not commit headers now.
                        answer.headers_committed = True
                        raise
                    if failure is None:
                        self._refused(request, refusal)
                    failure = failure or refusal
                    break
                request.number += 1
                attempt = attempts.Attempt(
                    live, leases=self._leases, outbox=self._outbox, clock=self._clock
                )
                execution = Execution(request, attempt, answer, owner)
                try:
                    await execution.run(self._registry, avoid_addresses)  # 6
                except errors.PatchbayError as error:
                    decision = outcomes.decide(error, _fault(error))  # 7
                    again = decision.again and not answer.answer_committed
                    attempt.fail(error, 0 if again else self._status(request, error))  # 8
                    failure = self._graver(failure, error)
                    avoid_credential = decision.next in _OF_THE_CREDENTIAL
                    only = avoid_credential and candidates.credentials <= 1
                    # The same credential once more, and only if nothing can have reached the provider.
                    spent = only and (request.number > 1 or error.sent is not errors.Sent.NO)
                    if not again or request.number >= _MAX_ATTEMPTS or spent:
                        break
                    if decision.next is outcomes.Next.ADDRESS:
                        avoid_addresses.append(execution.address)
                    if avoid_credential and not only:
                        avoid_credentials.append(attempt.lease.attempt.credential_id)
                except (ClientGone, asyncio.CancelledError):
                    attempt.cancel("CLIENT_GONE" if owner.left else "SHUTDOWN")  # 8
                    raise
                except Exception:
                    # A bug of ours; the router tells the client and the log.
                    attempt.fail(errors.Internal("a bug"), 500)  # 8
                    raise
                else:
                    return
            await self._give_up(request, answer, failure)
        finally:
            await answer.aclose()

    def _item(
        self, request: Request, candidates: targets.Candidates, avoid: list[str]
    ) -> scheduler_pb2.AcquireItem:
        assert request.document is not None
        return scheduler_pb2.AcquireItem(
            attempt=request.info(request.number + 1, self._installation),
            providers=candidates.providers,
            exclude_credential_ids=avoid,
            # The rule of thumb for reservations; billing never uses it.
            estimated_input_tokens=len(request.document.data) // 4,
        )

    def _pin_anew(self, request: Request) -> bool:
        """Pin the newest snapshot after a scheduler forgot the request's; False if it is that one."""
        newest = self._snapshots.current
        if newest is None or newest.version == request.snapshot.version:
            return False
        request.snapshot = newest
        return True

    @staticmethod
    def _graver(
        earlier: errors.PatchbayError | None, error: errors.PatchbayError
    ) -> errors.PatchbayError:
        """Return what tells the client more: that no address is left says less than why one failed."""
        if earlier is not None and error.reason == "NO_EXECUTOR":
            return earlier
        return error

    async def _give_up(self, request: Request, answer: Answer, error: errors.PatchbayError) -> None:
        """Tell the client the last failure in the form that fits what is committed."""
        routed = request.routed
        if not answer.headers_committed:
            # Set before any await: the answer's timer must not commit headers in between.
            answer.headers_committed = True
            await self._send_error(routed, error, request.answer_headers([]))
        elif not request.stream:
            await answer.write(routed.dialect.error(error, routed.request_id).body)
            await routed.exchange.finish()
        else:
            event = routed.dialect.stream_error(error, request.state, routed.request_id)
            if event:
                await answer.write(event)
                await routed.exchange.finish()
            else:
                await routed.exchange.abort()

    def _refused(self, request: Request, error: errors.PatchbayError) -> None:
        # Without an answer to Acquire nobody knows whether the attempt was opened; then it is the attempt
        # that is settled, so that the request is not counted twice.
        number = 1 if error.reason == outcomes.NO_SCHEDULER else 0
        info = request.info(number, self._installation)
        self._outbox.report(attempts.refused(info, error, self._status(request, error)))

    @staticmethod
    def _status(request: Request, error: errors.PatchbayError) -> int:
        return request.routed.dialect.error(error, "").status

    @staticmethod
    async def _send_error(
        routed: RoutedRequest, error: errors.PatchbayError, head: errors.Headers
    ) -> None:
        answer = routed.dialect.error(error, routed.request_id)
        length = (b"content-length", b"%d" % len(answer.body))
        await routed.exchange.send_head(answer.status, [*answer.headers, length, *head])
        await routed.exchange.send(answer.body)
        await routed.exchange.finish()
