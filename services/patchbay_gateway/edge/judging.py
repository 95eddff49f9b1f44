"""
What a failed attempt is: the dialect's fault, and the rules of the configuration over it.

`providers[].errors` are tried in order; the first with the answer's status and a hit in its body (or without
patterns) decides whether the request goes on and whether the credential cools down. Patterns are compiled
once per snapshot, when the first failure of the provider asks for them. Not here: what follows
(kernel/outcomes.py), what the scheduler does with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.errors import FaultScope
from patchbay_gateway.edge.dialects import limits
from patchbay_gateway.kernel.outcomes import Action, Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.edge.dialects.limits import Limit
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import ErrorRuleEntry, ProviderEntry, Snapshot

# Bytes of a body in which rules look; what names an error stands at its beginning.
_LOOKED_AT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one failure is."""

    fault: Fault | None = None
    """What the loop decides by; None where no provider failed."""
    action: Action | None = None
    """The order of the first rule that fits."""
    held: Fault | None = None
    """What is held against the credential; None: nothing."""
    limits: Sequence[Limit] = ()
    """What the provider's answer said of its limits."""


@dataclass(frozen=True, slots=True)
class _Rule:
    status: int
    action: Action
    match: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    def fits(self, error: errors.UpstreamError) -> bool:
        if self.status != error.http_status:
            return False
        if not self.match and not self.patterns:
            return True
        body = error.body[:_LOOKED_AT].decode("utf-8", "replace")
        return any(text in body for text in self.match) or any(
            pattern.search(body) for pattern in self.patterns
        )


class Judge:
    """Judges failures; one per edge."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._rules: dict[str, tuple[_Rule, ...]] = {}

    def judge(self, request: Request, error: errors.PatchbayError) -> Judgement:
        """Return what *error*, the end of *request*'s current attempt, is."""
        if not isinstance(error, errors.UpstreamError):
            return Judgement()
        dialect = request.answered_in or request.routed.dialect
        fault = dialect.fault(error, self._clock.now())
        if error.retry_after is None and fault.retry_after is not None:
            # What the dialect found in body or headers helps the client, too.
            error.retry_after = fault.retry_after
        provider = request.provider
        action = self._action(request.snapshot, provider, error) if provider is not None else None
        return Judgement(
            fault, action, _held(request, fault, action), _limits(error, self._clock.now())
        )

    def _action(
        self, snapshot: Snapshot, provider: ProviderEntry, error: errors.UpstreamError
    ) -> Action | None:
        if not provider.errors:
            return None
        if snapshot is not self._snapshot:
            self._snapshot, self._rules = snapshot, {}
        rules = self._rules.get(provider.name)
        if rules is None:
            rules = self._rules[provider.name] = tuple(map(_compiled, provider.errors))
        return next((rule.action for rule in rules if rule.fits(error)), None)


def _limits(error: errors.UpstreamError, now: float) -> Sequence[Limit]:
    if not error.headers:
        return ()
    return limits.parse(
        ((name.decode("latin-1"), value.decode("latin-1")) for name, value in error.headers), now
    )


def _compiled(entry: ErrorRuleEntry) -> _Rule:
    return _Rule(
        entry.status,
        Action(entry.action),
        entry.match,
        tuple(re.compile(pattern) for pattern in entry.match_regex),
    )


def _held(request: Request, fault: Fault, action: Action | None) -> Fault | None:
    if action is not None:
        if not action.cools:
            return None
        said = fault.scope is not FaultScope.REQUEST
        return replace(
            fault,
            force_cooldown=True,
            scope=fault.scope if said else FaultScope.MODEL,
        )
    if fault.kind in {FaultKind.REQUEST, FaultKind.UNSPECIFIED}:
        return None
    # A provider without this path still serves the model on the others.
    if fault.kind is FaultKind.NOT_FOUND and request.routed.operation == "count_tokens":
        return None
    return fault
