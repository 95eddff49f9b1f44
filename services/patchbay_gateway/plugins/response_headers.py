"""
Which headers of a plugin's page or route reach whoever asked.

Not here: headers of models' answers (edge/headers.py, header_merge.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.upstream_headers import HOP_BY_HOP
from patchbay_gateway.plugins.header_merge import told

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
        (name, value)
        for name, value in told(headers)
        if name not in _KEPT_BACK and not name.startswith((b"access-control-", b"x-patchbay-"))
    ]
