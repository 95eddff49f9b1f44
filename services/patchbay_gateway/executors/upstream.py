"""
The narrow port to a provider: one HTTP call, its head, then its bytes as they come.

`Upstream` is what executors know; which HTTP client stands behind it is a decision of `main`. Failures
are UpstreamError with what is known of how far the call came. One call is one request on the wire: no
redirect is followed, nothing is sent twice. Not here: what the bytes mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from patchbay import errors, upstream_headers

if TYPE_CHECKING:
    from patchbay.errors import Headers

MAX_ERROR_BODY: Final = 1 << 20
"""Bytes kept of a provider's error; the rest is not read."""
MAX_ANSWER: Final = 32 << 20
"""Bytes that a non-streamed answer may have: what fits a message."""

CONNECTION: Final = "UPSTREAM_CONNECTION"
"""Reason: the connection failed, or broke before the head of an answer."""
TRUNCATED: Final = "UPSTREAM_TRUNCATED"
"""Reason: the answer broke off."""
TIMEOUT: Final = "UPSTREAM_TIMEOUT"
"""Reason: no first byte, or too long a silence."""


class Call(msgspec.Struct, frozen=True):
    """One request to a provider."""

    method: str
    url: str
    headers: Headers
    body: bytes = b""
    first_byte_timeout: float = 120.0
    """Seconds until the first byte of the body; 0: no limit."""
    idle_timeout: float = 300.0
    """Seconds between two bytes of the body; 0: no limit."""
    proxy_url: str = ""
    """Proxy; empty: the environment decides; `direct`: none."""
    fresh: bool = False
    """Over a connection of its own, where no proxy is on the way: one that was kept may be dead, and nobody
    knows then whether the request was seen."""


class Reply(Protocol):
    """
    A provider's answer whose head has arrived. Close it in every case.

    Bytes that nobody reads stay in the socket: the provider is slowed down, not buffered.
    """

    status: int
    headers: Headers
    """Lower-case names, none of the connection's."""

    async def read(self) -> bytes:
        """
        Return the bytes that are there, or the next ones; empty at the regular end.

        Raises:
            UpstreamError: 504 when silent too long, 502 when the connection broke.
        """
        ...

    def close(self) -> None:
        """Release the connection; cut it unless the answer was read to its end. Idempotent."""


class Upstream(Protocol):
    """Calls to providers, over pooled connections."""

    async def send(self, call: Call) -> Reply:
        """
        Send the request and wait for the head of the answer.

        Cancelling cuts the connection.

        Raises:
            UpstreamError: 502 (UPSTREAM_CONNECTION) or 504; `sent` says how far it came.
            InvalidRequest: The URL or the proxy's URL cannot be used.
        """
        ...

    async def aclose(self) -> None:
        """Cut every connection."""


async def read_all(reply: Reply, limit: int = MAX_ANSWER) -> bytes:
    """
    Return the whole body.

    Raises:
        UpstreamError: 502 UPSTREAM_TOO_LARGE over *limit*; what `read` raises.
    """
    first = await reply.read()
    pieces, size = [first], len(first)
    while pieces[-1]:
        if size > limit:
            raise errors.UpstreamError(
                502,
                f"the provider's answer is larger than {limit} bytes",
                reason="UPSTREAM_TOO_LARGE",
                sent=errors.Sent.YES,
            )
        data = await reply.read()
        pieces.append(data)
        size += len(data)
    return b"".join(pieces)


Explain = Callable[[errors.UpstreamError, float], None]
"""
Adds to an error what its provider says of it beyond HTTP: `retry_after`, `scope`, a better `message`.

Called with the error, its headers and body in place, and Unix seconds.
"""


async def failure(
    reply: Reply, now: Callable[[], float] = time.time, explain: Explain | None = None
) -> errors.UpstreamError:
    """
    Return the error that *reply*, of status 300 or more, is, with its body as far as it comes.

    A redirect becomes 502: following it could hand the credential to somebody else.
    """
    pieces, size = [], 0
    try:
        while size < MAX_ERROR_BODY and (data := await reply.read()):
            pieces.append(data)
            size += len(data)
    except errors.UpstreamError:
        # The status is the news; half of its explanation is better than another error.
        pass
    body = b"".join(pieces)[:MAX_ERROR_BODY]
    headers = reply.headers
    redirect = reply.status < 400
    at = now()
    error = errors.UpstreamError(
        502 if redirect else min(reply.status, 599),
        f"the provider answered with a redirect ({reply.status}), which is not followed"
        if redirect
        else None,
        headers=headers,
        body=b"" if redirect else body,
        content_type=upstream_headers.header(headers, b"content-type").decode("latin-1"),
        retry_after=_retry_after(headers, at),
        scope=scope_of(reply.status),
        sent=errors.Sent.YES,
        reason="UPSTREAM_REDIRECT" if redirect else None,
    )
    if explain is not None and not redirect:
        explain(error, at)
    return error


def scope_of(status: int) -> errors.FaultScope:
    """Return what an HTTP status by itself speaks of."""
    return _SCOPES.get(status, errors.FaultScope.UNSPECIFIED)


def _retry_after(headers: Headers, now: float) -> float | None:
    """Return the wait that a provider asks for; `retry-after-ms`, the finer one, first."""
    exact = upstream_headers.header(headers, b"retry-after-ms").strip()
    if exact.isdigit():
        # A float holds whatever digits a provider sends; the parser below caps it.
        return upstream_headers.parse_retry_after(b"%f" % (float(exact) / 1000), now)
    return upstream_headers.parse_retry_after(upstream_headers.header(headers, b"retry-after"), now)


_SCOPES = {
    400: errors.FaultScope.REQUEST,
    401: errors.FaultScope.CREDENTIAL,
    402: errors.FaultScope.CREDENTIAL,
    403: errors.FaultScope.CREDENTIAL,
    404: errors.FaultScope.MODEL,
    413: errors.FaultScope.REQUEST,
    422: errors.FaultScope.REQUEST,
    429: errors.FaultScope.MODEL,
}
