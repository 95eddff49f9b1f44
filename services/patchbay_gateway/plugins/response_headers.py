"""
Which headers of a plugin's page or route reach whoever asked.

Not here: headers of models' answers (edge/headers.py, header_merge.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.upstream_headers import HOP_BY_HOP

if TYPE_CHECKING:
    from patchbay.errors import Headers

# The gateway's own, or a key to its origin.
_KEPT_BACK: Final = HOP_BY_HOP | {
    b"content-length",
    b"date",
    b"server",
    b"set-cookie",
    b"strict-transport-security",
}
SANDBOX: Final = (
    b"content-security-policy",
    b"sandbox allow-scripts allow-forms allow-popups; frame-ancestors 'none'",
)
"""A page is an origin of its own: its scripts read nothing of the gateway's."""


def for_pages(headers: Headers) -> Headers:
    """Return a plugin's headers without those of the connection, and cookies."""
    return [
        (name.lower(), value)
        for name, value in headers
        if name.lower() not in _KEPT_BACK
        and not name.lower().startswith((b"access-control-", b"x-patchbay-"))
        and b"\n" not in value
        and b"\r" not in value
    ]
