"""
An error of `patchbay.errors` as the management API answers it.

Not here: errors on the client port, which speak the dialect of their route (edge/dialects).
"""

from __future__ import annotations

from typing import Any, Final

from patchbay import errors

STATUS: Final = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.FailedPrecondition: 409,
    errors.Aborted: 409,
    errors.ResourceExhausted: 429,
    errors.UpstreamError: 502,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""HTTP status of an error; others are 500."""


def error_body(error: errors.PatchbayError) -> dict[str, Any]:
    """Return the JSON of an error."""
    return {"error": {"code": error.reason, "message": error.message}}
