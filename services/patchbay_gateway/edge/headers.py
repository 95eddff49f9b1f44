"""
Which headers pass the gateway: a client's to plugins, a provider's to clients.

Not here: which headers an executor sends upstream (the executors' own allow-lists).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from patchbay.upstream_headers import HOP_BY_HOP

if TYPE_CHECKING:
    from patchbay.errors import Headers

_REQUEST_STRIP: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"content-encoding",
    b"accept-encoding",
    b"cookie",
    b"authorization",
    b"x-api-key",
    b"x-goog-api-key",
}
_RESPONSE_STRIP: Final = HOP_BY_HOP | {
    b"set-cookie",
    b"content-length",
    b"content-encoding",
    b"content-type",
    # A provider's own id stays readable as the dialect's (`request-id`), ours is this.
    b"x-request-id",
    b"date",
    b"server",
    b"alt-svc",
    b"strict-transport-security",
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-expose-headers",
    b"access-control-max-age",
}
# What other gateways sign their answers with: a client's tools would take us for them.
_RESPONSE_PREFIXES: Final = (
    b"x-litellm-",
    b"helicone-",
    b"x-portkey-",
    b"cf-aig-",
    b"x-kong-",
    b"x-bt-",
    b"x-patchbay-",
)
_QUERY_CREDENTIALS: Final = frozenset({b"key", b"auth_token", b"access_token"})


def _named_in_connection(headers: Headers) -> set[bytes]:
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    return named


def for_plugins(headers: Headers) -> Headers:
    """Return a client's headers without those of the connection, of the body's form, and its credentials."""
    kept = [pair for pair in headers if pair[0] not in _REQUEST_STRIP]
    named = _named_in_connection(headers)
    # Nearly every client names only `keep-alive` or `close`.
    if named and not named <= {b"keep-alive", b"close"}:
        kept = [pair for pair in kept if pair[0] not in named]
    return kept


def from_upstream(headers: Headers) -> Headers:
    """Return what of a provider's headers may reach a client where passthrough is switched on."""
    named = _named_in_connection(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in _RESPONSE_STRIP
        and name not in named
        and not name.startswith(_RESPONSE_PREFIXES)
    ]


def query_for_plugins(query: bytes) -> bytes:
    """Return a raw query string without credentials, all else as it was."""
    if not query or not any(word in query.lower() for word in (b"key", b"token", b"%")):
        return query
    return b"&".join(
        part
        for part in query.split(b"&")
        if _unquoted(part.partition(b"=")[0]) not in _QUERY_CREDENTIALS
    )


def _unquoted(name: bytes) -> bytes:

    return unquote_to_bytes(name).lower() if b"%" in name else name.lower()


def answer_headers(
    request_id: str,
    *,
    patchbay: bool,
    model: str = "",
    provider: str = "",
    attempts: int | None = None,
    overhead_ms: float | None = None,
) -> Headers:
    """
    Return `x-request-id` and, with *patchbay*, what is known of `x-patchbay-*`.

    Empty and None values are left out: under early headers they are not known yet.
    """
    headers: Headers = [(b"x-request-id", request_id.encode("latin-1"))]
    if patchbay:
        if model and (value := header_value(model)):
            headers.append((b"x-patchbay-model", value))
        if provider and (value := header_value(provider)):
            headers.append((b"x-patchbay-provider", value))
        if attempts is not None:
            headers.append((b"x-patchbay-attempts", b"%d" % attempts))
        if overhead_ms is not None:
            headers.append((b"x-patchbay-overhead-ms", b"%.2f" % overhead_ms))
    return headers


@functools.lru_cache(maxsize=1024)
def header_value(text: str) -> bytes:
    """Return *text* as a header value: printable ASCII, anything else as `?`."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text).encode("ascii")


SSE_HEADERS: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx buffers answers unless told not to.
    (b"x-accel-buffering", b"no"),
]
"""Head of an SSE answer; copy before adding."""
