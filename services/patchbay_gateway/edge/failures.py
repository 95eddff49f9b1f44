"""
Which of several failures of one request its client is told.

The last upstream error wins over what the gateway says of itself: that a pool is cooling down is only the
consequence of a provider's failure. Pure. Not here: how an error looks (dialects), what is retried
(kernel/outcomes.py).
"""

from __future__ import annotations

from patchbay import errors
from patchbay_gateway.edge.dialects import faults


def graver(
    earlier: errors.PatchbayError | None, error: errors.PatchbayError
) -> errors.PatchbayError:
    """Return which of two failed attempts to tell: the later, unless the earlier tells more."""
    if earlier is None or _tells(error) >= _tells(earlier):
        return error
    return earlier


def at_the_end(
    failure: errors.PatchbayError | None, refusal: errors.PatchbayError
) -> errors.PatchbayError:
    """
    Return what to tell when there is no lease for another attempt.

    A limit that was met upstream is told with the pool's earliest recovery, which is when to come back.
    """
    if failure is None:
        return refusal
    if (
        refusal.retry_after is not None
        and isinstance(failure, errors.UpstreamError)
        and failure.http_status == 429
    ):
        failure.retry_after = refusal.retry_after
    return failure


def _tells(error: errors.PatchbayError) -> int:
    """Return how much an error tells a client."""
    if error.reason == "NO_EXECUTOR":
        return 0
    if not isinstance(error, errors.UpstreamError):
        return 1
    # A refused credential is the gateway's, and a connection without an answer says little.
    if faults.refuses_credential(error) or error.sent is not errors.Sent.YES:
        return 2
    return 3
