"""
What the end of an attempt means for marks and places: from what the edge reports to what scripts settle.

Most ends mean nothing: the attempt succeeded, nothing is held against its credential and it holds no place.
Those are told apart by a few look-ups and cost Redis no more than the end of their lease. Pure but for the
view. Not here: what a kind of failure means (kernel/outcomes.py), how marks change (marks.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import FaultScope
from patchbay_gateway.kernel.outcomes import CoolingPolicy, FaultKind, consequence
from patchbay_gateway.scheduler.marks import WHOLE, End, MarkError

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import CoolingEntry
    from patchbay_gateway.scheduler.health import HealthView

RENEWABLE_AFTER: Final = 20.0
"""Seconds after its opening from which a lost lease is made again by a renewal; before it is not worth it."""
_OLD_AFTER: Final = 10.0
# A reset sooner than this is over before anybody could be kept waiting.
_SHORTEST_LIMIT: Final = 0.05
_TEXT: Final = 2048
# Kinds whose windows providers may end early: a quota renewed, a bill paid.
_EARLY: Final = frozenset({FaultKind.QUOTA, FaultKind.PAYMENT})
_RATE_LIMIT: Final = "RATE_LIMIT"


class Reports:
    """
    Reads ends of attempts.

    Args:
        view: What is held against credentials.
    """

    def __init__(self, view: HealthView) -> None:
        self._view = view
        self._policies: dict[int, tuple[CoolingEntry, CoolingPolicy]] = {}

    def plain(self, credential_id: str, item: Any, age: float, cap: int) -> bool:
        """Whether the report *item* of an attempt of *age* seconds concerns nothing but its lease. Hot."""
        return not (
            cap
            or age > _OLD_AFTER
            or self._view.touches(credential_id)
            or item.HasField("fault")
            or item.rate_limits
        )

    def end(
        self,
        item: Any,
        *,
        succeeded: bool,
        age: float,
        cap: int,
        cooling: CoolingEntry,
        version: int,
    ) -> End:
        """
        Return the end that a ReportItem tells of.

        Args:
            item: The message; read only.
            succeeded: The answer was complete.
            age: Seconds since the attempt was opened.
            cap: The credential's `max_in_flight`.
            cooling: The provider's policy.
            version: Of the credential as known here.
        """
        attempt = item.attempt
        opened = attempt.opened_at
        end = End(
            attempt.attempt_uid,
            attempt.credential_id,
            attempt.upstream_model,
            opened=opened.seconds * 1000 + opened.nanos // 1_000_000,
            capped=cap,
            old=int(age > _OLD_AFTER),
            version=version,
        )
        policy = self._policy(cooling)
        if succeeded:
            end.kind = "ok"
        elif item.HasField("fault"):
            self._fault(end, item.fault, policy, early=cooling.probe)
        if not end.cools:
            self._limits(end, item.rate_limits, policy, early=cooling.probe)
        return end

    @staticmethod
    def _fault(end: End, fault: Any, policy: CoolingPolicy, *, early: bool) -> None:
        kind = _kind(fault.kind)
        found = consequence(kind, FaultScope(fault.scope), policy, forced=fault.force_cooldown)
        if not found.cools:
            return
        end.kind = "cool"
        end.reason = kind.name
        end.scope = WHOLE if found.scope is FaultScope.CREDENTIAL else end.model
        end.at_least = int(found.at_least * 1000)
        end.lifted = int(found.lifted_by_refresh)
        end.needs_login = int(found.needs_login)
        end.error = error_of(fault)
        end.early = int(early and kind in _EARLY)
        asked = _seconds(fault.retry_after) if fault.HasField("retry_after") else None
        if found.retry_after_cap and asked is not None and asked > 0:
            end.fixed, end.asked = _ms(found.window(0, asked)), 1
        elif found.grows:
            end.first, end.cap = _ms(found.first), _ms(found.cap)
        else:
            end.fixed = _ms(found.window())

    @staticmethod
    def _limits(end: End, limits: Any, policy: CoolingPolicy, *, early: bool) -> None:
        """An answer that says that nothing is left keeps the model waiting before it fails."""
        if not policy.enabled:
            return
        waits = [
            _seconds(limit.reset)
            for limit in limits
            if limit.remaining == 0 and limit.HasField("reset")
        ]
        longest = min(max(waits, default=0.0), policy.max_retry_after)
        if longest < _SHORTEST_LIMIT:
            return
        whole = policy.scope is FaultScope.CREDENTIAL
        end.scope = WHOLE if whole else end.model
        end.reason, end.fixed, end.asked, end.early = _RATE_LIMIT, _ms(longest), 1, int(early)
        if end.kind == "free":
            end.kind = "cool"

    def _policy(self, entry: CoolingEntry) -> CoolingPolicy:
        kept = self._policies.get(id(entry))
        if kept is not None and kept[0] is entry:
            return kept[1]
        if len(self._policies) > 1024:
            self._policies.clear()
        made = policy_of(entry)
        self._policies[id(entry)] = entry, made
        return made


def policy_of(entry: CoolingEntry) -> CoolingPolicy:
    """Return the policy that a snapshot's entry says."""
    return CoolingPolicy(
        scope={"model": FaultScope.MODEL, "credential": FaultScope.CREDENTIAL}.get(entry.scope),
        enabled=entry.enabled,
        backoff=entry.backoff,
        max=entry.max,
        max_retry_after=entry.max_retry_after,
        transient=entry.transient,
    )


def counts_as_failure(fault: Any) -> bool:
    """Whether a fault is one of the provider or the credential, not of the request."""
    return _kind(fault.kind) not in {FaultKind.UNSPECIFIED, FaultKind.REQUEST}


def kind_name(fault: Any) -> str:
    """Return the fault's kind, for metrics."""
    return _kind(fault.kind).name


def error_of(fault: Any) -> MarkError | None:
    """Return what the provider said."""
    if not fault.HasField("error"):
        return None
    error = fault.error
    at = error.at.seconds * 1000 + error.at.nanos // 1_000_000
    return MarkError(error.http_status, error.code[:128], error.message[:_TEXT], at)


def limits_of(item: Any, now: float) -> list[tuple[str, int, int, int]]:
    """Return what the provider's answer said of its limits: (unit, limit, remaining, reset at in Unix ms)."""
    return [
        (
            limit.unit[:64],
            limit.limit,
            limit.remaining,
            int((now + _seconds(limit.reset)) * 1000) if limit.HasField("reset") else 0,
        )
        for limit in list(item.rate_limits)[:16]
    ]


def _kind(number: int) -> FaultKind:
    try:
        return FaultKind(number)
    except ValueError:
        return FaultKind.UNSPECIFIED  # of a newer edge


def _seconds(duration: Any) -> float:
    seconds: float = duration.seconds + duration.nanos / 1e9
    return seconds if math.isfinite(seconds) else 0.0


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
