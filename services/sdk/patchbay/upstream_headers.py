"""
Headers between an executor and its provider: what may go up, what comes down, how long to wait.

Not here: which names a provider's allow-list has (each executor) and what a client gets to see of a
provider's headers (the edge).
"""

from __future__ import annotations

import email.utils
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from patchbay.errors import Headers
    from patchbay.type.v1 import headers_pb2

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that speak of one connection (RFC 9110 §7.6.1)."""

# Lengths and codings are the connection's too: bodies are passed on decoded.
_DROPPED = HOP_BY_HOP | {b"content-length", b"content-encoding"}

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds; a provider that asks for more is asked again after this."""


def forwarded(
    headers: Mapping[str, headers_pb2.StringList],
    *,
    names: Collection[str] = (),
    prefixes: tuple[str, ...] = (),
) -> Headers:
    """
    Return the client's headers that a provider's allow-list lets through.

    Args:
        headers: The map of an executor request.
        names: Allowed names, lower case.
        prefixes: Allowed beginnings of names, lower case.
    """
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name in headers
        if name in names or name.startswith(prefixes)
        for value in headers[name].values
    ]


def answer_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return a provider's headers, names in lower case, without those of the connection."""
    dropped = _DROPPED
    found = []
    for name, value in raw:
        lower = name.lower()
        if lower not in dropped:
            found.append((lower, value))
        elif lower == b"connection" and value.lower() not in {b"keep-alive", b"close"}:
            dropped = dropped | {part.strip().lower() for part in value.split(b",")}
    if dropped is not _DROPPED:
        found = [pair for pair in found if pair[0] not in dropped]
    return found


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return the first value of *name* (lower case), or nothing."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def parse_retry_after(value: bytes, now: float) -> float | None:
    """
    Return the seconds that a Retry-After asks for, between 0 and an hour.

    Args:
        value: Seconds (fractions too) or an HTTP date; garbage gives None.
        now: Unix seconds.
    """
    text = value.decode("latin-1").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
        seconds = max(seconds, 0.0)
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, MAX_RETRY_AFTER)
