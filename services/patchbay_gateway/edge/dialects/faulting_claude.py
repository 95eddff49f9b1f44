"""
What only Anthropic says of failures.

Billing, spent usage limits and disabled organizations come as 400 `invalid_request_error`; subscriptions tell
by `anthropic-ratelimit-unified-*` whose limit was met. Not here: the shared rules (faulting.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from patchbay.errors import FaultScope
from patchbay_gateway.edge.dialects.faulting import Peculiar
from patchbay_gateway.kernel.outcomes import FaultKind

if TYPE_CHECKING:
    from patchbay.errors import Headers
    from patchbay_gateway.edge.dialects.said import Said

_ONE_MODEL: Final = ("opus", "sonnet", "haiku")


def quota_scope(_: Said, headers: Headers) -> FaultScope:
    """Return CREDENTIAL when a subscription's limit over all models was met, else nothing said."""
    by_name = dict(headers)
    if by_name.get(b"anthropic-ratelimit-unified-status") != b"rejected":
        return FaultScope.UNSPECIFIED
    claim = by_name.get(b"anthropic-ratelimit-unified-representative-claim", b"").decode("latin-1")
    if any(model in claim for model in _ONE_MODEL):
        return FaultScope.MODEL
    return FaultScope.CREDENTIAL


PECULIAR: Final = Peculiar(
    sentences=(
        (
            re.compile(r"(?i)reached your specified (?:\w+ )?API usage limits"),
            (FaultKind.QUOTA, FaultScope.CREDENTIAL),
        ),
        (
            re.compile(r"(?i)\borganization has been disabled\b"),
            (FaultKind.FORBIDDEN, FaultScope.CREDENTIAL),
        ),
        (
            re.compile(r"(?i)\bOAuth token (?:has |is )?(?:been )?(?:expired|revoked)\b"),
            (FaultKind.UNAUTHORIZED, FaultScope.CREDENTIAL),
        ),
    ),
    scope=quota_scope,
)
