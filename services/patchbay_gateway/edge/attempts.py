"""
One attempt from the edge's side: what is asked for, how it ended, and its one report.

`Attempt` collects what the ledger needs and settles exactly once, whatever ends it. Not here: the loop
over attempts (pipeline.py), what an error means (kernel/outcomes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel import outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.duration_pb2 import Duration

    from patchbay.type.v1 import usage_pb2
    from patchbay_gateway.edge.counting import EdgeCounts
    from patchbay_gateway.edge.dialects.limits import Limit
    from patchbay_gateway.edge.judging import Judgement
    from patchbay_gateway.edge.leases import Leases, LiveLease
    from patchbay_gateway.edge.outbox import Outbox
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.calls import Scope
    from patchbay_gateway.plugins.request_interceptors import Terminated

_NANO = 1_000_000_000
# A year: longer waits are as good as this, and Duration has an end.
_FAR = 366 * 86400.0


class Attempt:
    """An attempt that holds a lease until `settle`."""

    __slots__ = (
        "_clock",
        "_counts",
        "_ended",
        "_first_byte",
        "_leases",
        "_outbox",
        "_settled",
        "_started",
        "head_arrived",
        "lease",
        "limits",
        "live",
        "scope",
    )

    def __init__(
        self,
        live: LiveLease,
        *,
        leases: Leases,
        outbox: Outbox,
        clock: Clock,
        counts: EdgeCounts,
    ) -> None:
        self.live = live
        self.lease = live.lease
        self.limits: Sequence[Limit] = ()
        """What the provider's answer said of its limits."""
        self.head_arrived = False
        """Whether the provider's answer head was seen."""
        self.scope: Scope | None = None
        """What the executor may call back in; a model call in it carries the tokens itself."""
        self._leases = leases
        self._outbox = outbox
        self._clock = clock
        self._started = clock.monotonic()
        self._counts = counts
        self._ended: float | None = None
        self._first_byte: float | None = None
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether its one report was made."""
        return self._settled

    def used(self, usage: usage_pb2.Usage) -> None:
        """Note what was consumed so far, unless model calls within carry it."""
        if self.scope is None or not self.scope.nested:
            self.live.usage = usage

    def mark_first_byte(self) -> None:
        """Note that the answer's first chunk is here."""
        if self._first_byte is None:
            self._first_byte = self._clock.monotonic()

    def mark_end(self) -> None:
        """Note that the call is over, though it is settled later."""
        self._ended = self._clock.monotonic()

    def succeed(self, client_status: int) -> None:
        """Settle as a complete answer."""
        self._settle(
            journal_pb2.OUTCOME_SUCCEEDED, errors.Sent.YES, client_status, 200, "", "succeeded"
        )

    def fail(
        self, error: errors.PatchbayError, client_status: int, judgement: Judgement | None = None
    ) -> None:
        """
        Settle as failed.

        Args:
            error: What ended it.
            client_status: What the client got, 0 when another attempt follows.
            judgement: What it is for the credential; None where no provider failed.
        """
        fault = judgement.fault if judgement is not None else None
        kind = fault.kind.name.lower() if fault is not None else "gateway"
        sent = errors.Sent.YES if self.head_arrived else outcomes.reached(error)
        http_status = error.http_status if isinstance(error, errors.UpstreamError) else 0
        self._settle(
            journal_pb2.OUTCOME_FAILED,
            sent,
            client_status,
            http_status if sent is errors.Sent.YES else 0,
            error.reason,
            kind,
            judgement.held if judgement is not None else None,
        )

    def cancel(self, reason: str, client_status: int = 0) -> None:
        """Settle as given up by the client (CLIENT_GONE) or by us (SHUTDOWN)."""
        sent = errors.Sent.YES if self.head_arrived else errors.Sent.UNKNOWN
        self._settle(journal_pb2.OUTCOME_CANCELLED, sent, client_status, 0, reason, "cancelled")

    def _settle(
        self,
        outcome: journal_pb2.Outcome.ValueType,
        sent: errors.Sent,
        client_status: int,
        http_status: int,
        reason: str,
        kind: str,
        held: outcomes.Fault | None = None,
    ) -> None:
        if self._settled:
            return
        self._settled = True
        self._leases.release(self.live)
        nested = self.scope is not None and self.scope.nested
        info, usage = self.lease.attempt, None if nested else self.live.usage
        item = scheduler_pb2.ReportItem()
        item.attempt.CopyFrom(info)
        if usage is not None:
            item.usage.CopyFrom(usage)
        settlement = item.settlement
        if nested:
            settlement.nested = True
        settlement.outcome = outcome
        settlement.http_status = http_status
        settlement.client_status = client_status
        if reason:
            settlement.reason = reason
        settlement.reached = sent.value  # type: ignore[assignment]
        ended = self._clock.monotonic() if self._ended is None else self._ended
        seconds, first = ended - self._started, None
        _last(settlement.latency, seconds)
        if self._first_byte is not None:
            first = self._first_byte - self._started
            _last(settlement.first_byte, first)
        self._counts.attempt(
            info.provider,
            info.upstream_model,
            kind,
            seconds=seconds,
            first_byte=first,
            usage=usage,
        )
        if held is not None:
            self._hold(item.fault, held)
        for limit in self.limits:
            told = item.rate_limits.add(
                unit=limit.unit, limit=limit.limit, remaining=limit.remaining
            )
            if limit.reset is not None:
                told.reset.FromMilliseconds(int(min(limit.reset, _FAR) * 1000))
        self._outbox.report(item)

    def _hold(self, fault: scheduler_pb2.Fault, held: outcomes.Fault) -> None:
        """Write what is held against the credential."""
        fault.kind = held.kind.value  # type: ignore[assignment]
        fault.scope = held.scope.value  # type: ignore[assignment]
        fault.force_cooldown = held.force_cooldown
        if held.retry_after is not None:
            fault.retry_after.FromMilliseconds(int(min(held.retry_after, _FAR) * 1000))
        fault.error.http_status = held.http_status
        fault.error.code = held.code
        fault.error.message = held.message
        fault.error.at.FromMilliseconds(int(self._clock.now() * 1000))


def _last(duration: Duration, seconds: float) -> None:
    duration.seconds = int(seconds)
    duration.nanos = int(seconds % 1 * _NANO)


def orphaned(lease: scheduler_pb2.Lease) -> scheduler_pb2.ReportItem:
    """Return the report of a lease that nobody waited for any more: nothing was sent."""
    return scheduler_pb2.ReportItem(
        attempt=lease.attempt,
        settlement=journal_pb2.Settlement(
            outcome=journal_pb2.OUTCOME_CANCELLED,
            reason="CLIENT_GONE",
            reached=errors.Sent.NO.value,  # type: ignore[arg-type]
        ),
    )


def terminated(answer: Terminated) -> errors.PermissionDenied:
    """Return the end of an attempt or request that a plugin answered itself, for the ledger."""
    return errors.PermissionDenied(str(answer), reason="TERMINATED_BY_PLUGIN", sent=errors.Sent.NO)


def refused(
    attempt: journal_pb2.AttemptInfo, error: errors.PatchbayError, client_status: int
) -> scheduler_pb2.ReportItem:
    """Return the report of a request that was refused before any attempt (number 0)."""
    return scheduler_pb2.ReportItem(
        attempt=attempt,
        settlement=journal_pb2.Settlement(
            outcome=journal_pb2.OUTCOME_FAILED,
            client_status=client_status,
            reason=error.reason,
            reached=errors.Sent.NO.value,  # type: ignore[arg-type]
        ),
    )
