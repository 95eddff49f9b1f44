"""
What executors of HTTP providers do alike: headers of a call, plain requests, reading a stream to its end.

How a credential becomes headers differs by provider and is passed in. Not here: the HTTP client
(upstream.py), what bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from patchbay import errors
from patchbay.executor import ExecutorHTTPResponse
from patchbay.upstream_headers import HOP_BY_HOP, forwarded, header
from patchbay_gateway.executors.upstream import TRUNCATED, Call, failure, read_all

if TYPE_CHECKING:
    from collections.abc import Collection

    from patchbay.errors import Headers
    from patchbay.executor import ExecutorHTTPRequest, ExecutorRequest
    from patchbay.secrets import OpenedSecret
    from patchbay_gateway.executors.upstream import Explain, Reply, Upstream

    class Ending(Protocol):
        """A stream that knows whether its provider had the last word."""

        done: bool


# The last byte of JSON by its first.
_LAST: Final = {b"{": b"}", b"[": b"]"}
# Bytes kept of an answer that is none.
_KEPT: Final = 64 << 10
USER_AGENT: Final = b"patchbay/0.1"

Authorize = Callable[["OpenedSecret"], "Headers"]
"""From a secret, opened and allowed for the URL, to the headers that carry it."""

# What a plain request may not bring along: lengths are the connection's, credentials are ours.
_OWN_HEADERS: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"accept-encoding",
        b"authorization",
        b"x-api-key",
        b"x-goog-api-key",
    }
)


def bearer(secret: OpenedSecret) -> Headers:
    """Return an API key or an OAuth access token as bearer token."""
    token = secret.get("api_key") or secret["access_token"]
    return [(b"authorization", b"Bearer " + token.encode())]


def model_call(
    request: ExecutorRequest,
    url: str,
    authorize: Authorize,
    *,
    names: Collection[str] = (),
    prefixes: tuple[str, ...] = (),
    more: Headers,
) -> Call:
    """
    Return the POST of *request* to *url*.

    Args:
        request: What is asked.
        url: Where.
        authorize: The provider's way with credentials.
        names: The provider's allow-list of client headers, lower case.
        prefixes: The same by beginnings of names.
        more: Headers of the provider's own.

    Raises:
        PermissionDenied: The credential must not be sent there.
        FailedPrecondition: The credential cannot be opened.
    """
    message = request.message
    provider = message.provider
    headers = forwarded(message.headers, names=names, prefixes=prefixes)
    if prefixes:
        # No prefix of an allow-list lets a key through.
        headers = [pair for pair in headers if pair[0] not in _OWN_HEADERS]
    headers += (
        (b"content-type", (message.content_type or "application/json").encode("latin-1")),
        (b"accept", b"text/event-stream" if message.stream else b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", USER_AGENT),
        *more,
    )
    secret = request.secret()
    if secret is not None:
        secret.check(url)
        headers += authorize(secret)
    if provider.attempt_header:
        headers.append(
            (
                provider.attempt_header.lower().encode("latin-1"),
                message.attempt_uid.encode("latin-1"),
            )
        )
    return Call(
        "POST",
        url,
        headers,
        message.payload,
        request.first_byte_timeout,
        request.idle_timeout,
        provider.proxy_url,
    )


async def whole_answer(
    upstream: Upstream, call: Call, now: Callable[[], float], explain: Explain
) -> tuple[Reply, bytes]:
    """
    Run *call*; return its answer, which is closed, and the whole of its body.

    Args:
        upstream: How to reach the provider.
        call: What is asked.
        now: Unix seconds.
        explain: The provider's way with errors.

    Raises:
        UpstreamError: The provider refused or failed; a body of status 200 may still say that it did.
            502 UPSTREAM_NOT_JSON, UPSTREAM_EMPTY or UPSTREAM_TRUNCATED: it is no JSON object or array, by its
            first and last bytes; it is not parsed.
    """
    reply = await upstream.send(call)
    try:
        if reply.status >= 300:
            raise await failure(reply, now, explain)
        body = await read_all(reply)
    finally:
        reply.close()
    if body[:1] != b"{" or body[-1:] != b"}":
        _check_json(reply, body)
    return reply, body


def _check_json(reply: Reply, body: bytes) -> None:
    """Refuse what is no JSON, as a page to log in that comes as a 200, or half of it."""
    # A byte order mark is no part of JSON, and yet some write it.
    inner = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not inner:
        raise errors.UpstreamError(
            502, "the provider's answer is empty", reason="UPSTREAM_EMPTY", sent=errors.Sent.YES
        )
    last = _LAST.get(inner[:1])
    if last is None:
        raise errors.UpstreamError(
            502,
            "the provider answered with something that is not JSON",
            headers=reply.headers,
            body=body[:_KEPT],
            content_type=content_type(reply),
            sent=errors.Sent.YES,
            reason="UPSTREAM_NOT_JSON",
        )
    if inner[-1:] != last:
        raise errors.UpstreamError(
            502,
            "the provider's answer ended before it was complete",
            reason=TRUNCATED,
            sent=errors.Sent.YES,
        )


async def plain_request(
    upstream: Upstream, request: ExecutorHTTPRequest, authorize: Authorize
) -> ExecutorHTTPResponse:
    """Run one plain request with the credential; any status is an answer, redirects too."""
    message = request.message
    secret = request.secret()
    headers: Headers = [
        (name, value)
        for name, value in request.headers()
        if name not in HOP_BY_HOP and name not in _OWN_HEADERS
    ]
    if secret is not None:
        secret.check(message.url)
        headers += authorize(secret)
    reply = await upstream.send(
        Call(
            message.method.upper(),
            message.url,
            headers,
            message.body,
            request.first_byte_timeout,
            request.idle_timeout,
            request.provider.proxy_url,
        )
    )
    try:
        body = await read_all(reply)
    finally:
        reply.close()
    return ExecutorHTTPResponse(reply.status, reply.headers, body, content_type(reply))


def content_type(reply: Reply) -> str:
    """Return the content type of an answer, empty without one."""
    return header(reply.headers, b"content-type").decode("latin-1")


async def next_bytes(reply: Reply, stream: Ending) -> bytes:
    """Return the next bytes; a provider that breaks off or hangs after its last word has ended."""
    try:
        return await reply.read()
    except errors.UpstreamError:
        if stream.done:
            return b""
        raise


def is_whole(kind: str) -> bool:
    """Whether an answer of content type *kind* is no stream for certain; streams come under many names."""
    return kind.lower().startswith(("application/json", "text/html"))


def no_stream(body: bytes, kind: str) -> errors.UpstreamError:
    """Return the error of a whole body of content type *kind* where a stream was asked for."""
    return errors.UpstreamError(
        502,
        "the provider answered a streamed request with a body that is not a stream",
        body=body[:_KEPT],
        content_type=kind,
        sent=errors.Sent.YES,
        reason="UPSTREAM_NOT_A_STREAM",
    )


def truncated() -> errors.UpstreamError:
    """Return the error of a stream that ended before its answer was complete."""
    return errors.UpstreamError(
        502,
        "the provider's stream ended before the answer was complete",
        reason="UPSTREAM_TRUNCATED",
        sent=errors.Sent.YES,
    )


def too_large(why: Exception) -> errors.UpstreamError:
    """Return the error of an event without end."""
    return errors.UpstreamError(502, str(why), reason="UPSTREAM_TOO_LARGE", sent=errors.Sent.YES)
