"""
What only Google says of failures: reasons of ErrorInfo, and QuotaFailure, which tells whose quota was met.

A bad API key is a 400 there. A quota with a model among its dimensions is that model's; without one it is
the project's. Not here: the shared rules (faulting.py), RetryInfo (waits.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import FaultScope
from patchbay_gateway.edge.dialects.faulting import Peculiar
from patchbay_gateway.kernel.outcomes import FaultKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.errors import Headers
    from patchbay_gateway.edge.dialects.faulting import Verdict
    from patchbay_gateway.edge.dialects.said import Said

_REFUSED: Final = (FaultKind.UNAUTHORIZED, FaultScope.CREDENTIAL)
_FORBIDDEN: Final = (FaultKind.FORBIDDEN, FaultScope.CREDENTIAL)

WORDS: Final[Mapping[str, Verdict]] = {
    "api_key_invalid": _REFUSED,
    "api_key_expired": _REFUSED,
    "access_token_expired": _REFUSED,
    "access_token_scope_insufficient": _FORBIDDEN,
    "api_key_service_blocked": _FORBIDDEN,
    "service_disabled": _FORBIDDEN,
    "consumer_suspended": _FORBIDDEN,
    "consumer_invalid": _FORBIDDEN,
    "resource_exhausted": (FaultKind.QUOTA, FaultScope.UNSPECIFIED),
}


def quota_scope(said: Said, _: Headers) -> FaultScope:
    """Return MODEL or CREDENTIAL as the violated quotas say, else nothing said."""
    violations: list[dict[str, Any]] = [
        violation
        for detail in said.details
        if isinstance(detail.get("violations"), list)
        for violation in detail["violations"]
        if isinstance(violation, dict)
    ]
    if not violations:
        return FaultScope.UNSPECIFIED
    # A project whose own quota is spent has none for any model.
    return FaultScope.MODEL if all(map(_of_a_model, violations)) else FaultScope.CREDENTIAL


def _of_a_model(violation: dict[str, Any]) -> bool:
    dimensions = violation.get("quotaDimensions")
    if isinstance(dimensions, dict) and dimensions.get("model"):
        return True
    return "permodel" in str(violation.get("quotaId", "")).lower()


PECULIAR: Final = Peculiar(
    words=WORDS,
    sentences=(
        (re.compile(r"(?i)\buser location is not supported\b"), _FORBIDDEN),
        (
            re.compile(r"(?i)\bfree tier is not available\b"),
            (FaultKind.PAYMENT, FaultScope.CREDENTIAL),
        ),
    ),
    scope=quota_scope,
)
