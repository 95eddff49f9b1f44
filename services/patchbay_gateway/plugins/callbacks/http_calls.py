"""
HTTP requests that plugins make through the host (pluginapi: HostHTTPClient).

Each hop of a redirect is checked as the first URL is, and what identifies the plugin at one origin is not
carried to another. No proxy is used: behind one nobody could say which address is reached. Any status is an
answer. Not here: the wire of one hop (connection.py), which hosts and addresses (addresses.py).
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from patchbay import errors, status
from patchbay.host.v1 import http_pb2
from patchbay.secrets import origin_of
from patchbay.server import DEFAULT_MESSAGE_LIMIT
from patchbay.upstream_headers import HOP_BY_HOP
from patchbay_gateway.plugins.callbacks.addresses import allowed_addresses, system_resolver
from patchbay_gateway.plugins.callbacks.connection import Target, exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from patchbay.errors import Headers
    from patchbay_gateway.plugins.callbacks.addresses import Resolver
    from patchbay_gateway.plugins.callbacks.callers import Caller
    from patchbay_gateway.plugins.callbacks.connection import Reply
    from patchbay_gateway.plugins.grants import Grants

_INVALID: Final = "INVALID_URL"
_HOPS: Final = 10
"""Redirects that are followed; the next one is the answer."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BODY_LIMIT: Final = DEFAULT_MESSAGE_LIMIT - (256 << 10)
"""Bytes of a whole answer; what is beside it in the message has room."""

_NEVER_SENT: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_IDENTIFYING: Final = frozenset(
    {b"authorization", b"cookie", b"www-authenticate", b"x-api-key", b"x-goog-api-key", b"api-key"}
)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLAIN: Final = re.compile(r"[\x21-\x7e]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class HttpCalls:
    """
    Makes the requests of one process.

    Args:
        resolve: Finds addresses.
        trust: Makes the TLS context, once, when it is needed; default the system's trust.
    """

    def __init__(
        self,
        *,
        resolve: Resolver = system_resolver,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._resolve = resolve
        self._trust = trust
        self._context: ssl.SSLContext | None = None

    async def whole(self, caller: Caller, request: http_pb2.HTTPRequest) -> http_pb2.HTTPResponse:
        """
        Return the whole answer.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED, HTTP_ADDRESS_REFUSED.
            InvalidRequest: INVALID_URL, INVALID_HTTP_REQUEST.
            ResourceExhausted: HTTP_BODY_TOO_LARGE.
            Unavailable: HTTP_CONNECTION.
        """
        async with await self._open(caller, request) as reply:
            pieces, size = [], 0
            async for piece in reply:
                pieces.append(piece)
                size += len(piece)
                if size > _BODY_LIMIT:
                    raise errors.ResourceExhausted(
                        "the answer is too large to be given in one piece; ask for a stream",
                        reason="HTTP_BODY_TOO_LARGE",
                    )
        answer = http_pb2.HTTPResponse(status_code=reply.status, body=b"".join(pieces))
        status.headers_to_map(_shown(reply), answer.headers)
        return answer

    async def stream(
        self, caller: Caller, request: http_pb2.HTTPRequest
    ) -> AsyncGenerator[http_pb2.HTTPStreamResponse, None]:
        """Yield head and pieces of the answer; raises as `whole`. Close it in every case."""
        async with await self._open(caller, request) as reply:
            head = http_pb2.HTTPStreamHead(status_code=reply.status)
            status.headers_to_map(_shown(reply), head.headers)
            yield http_pb2.HTTPStreamResponse(head=head)
            async for piece in reply:
                yield http_pb2.HTTPStreamResponse(payload=piece)

    async def _open(self, caller: Caller, request: http_pb2.HTTPRequest) -> Reply:
        grants = caller.grants
        caller.need(bool(grants.hosts), "make HTTP requests", "http.hosts")
        method = request.method.strip().upper() or "GET"
        if not _TOKEN.fullmatch(method) or method == "CONNECT":
            raise _wrong("the method is none")
        headers = _sendable(status.headers_from_map(request.headers))
        url, body = request.url, request.body
        for hop in range(_HOPS + 1):
            reply = await self._hop(grants, url, method, headers, body)
            location = _location(reply)
            if location is None or hop == _HOPS:
                return reply
            await reply.aclose()
            before, url = url, urljoin(url, location)
            if reply.status == 303 or (reply.status in {301, 302} and method == "POST"):
                method, body = ("HEAD" if method == "HEAD" else "GET"), b""
                headers = [(n, v) for n, v in headers if not n.startswith(b"content-")]
            if origin_of(before) != origin_of(url):
                headers = [(n, v) for n, v in headers if n not in _IDENTIFYING]
        raise AssertionError("the last hop returns")

    async def _hop(
        self, grants: Grants, url: str, method: str, headers: Headers, body: bytes
    ) -> Reply:
        target = parse_target(url)
        addresses = await allowed_addresses(grants, target.host, target.port, self._resolve)
        if self._context is None:
            self._context = self._trust()
        return await exchange(addresses, target, method, headers, body, self._context)


def parse_target(url: str) -> Target:
    """
    Return where *url* leads.

    Raises:
        InvalidRequest: INVALID_URL, it is not absolute http or https, or not plain enough that everybody
            reads it alike.
    """
    if not _PLAIN.fullmatch(url):
        raise errors.InvalidRequest("the URL has characters that must be escaped", reason=_INVALID)
    origin_of(url)
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in {"http", "https"} or not host or "%" in host:
        raise errors.InvalidRequest("the URL must be absolute http or https", reason=_INVALID)
    tls = parts.scheme == "https"
    path = parts.path or "/"
    return Target(
        tls,
        host,
        parts.port or (443 if tls else 80),
        f"{path}?{parts.query}" if parts.query else path,
    )


def _location(reply: Reply) -> str | None:
    if reply.status in _REDIRECTS:
        for name, value in reply.headers:
            if name == b"location":
                return value.decode("latin-1").partition("#")[0].strip()
    return None


def _shown(reply: Reply) -> Headers:
    return [(name, value) for name, value in reply.headers if name not in HOP_BY_HOP]


def _sendable(headers: Headers) -> Headers:
    found = []
    for name, value in headers:
        lower = name.lower()
        if not _TOKEN.fullmatch(lower.decode("latin-1")) or not _VALUE.fullmatch(value):
            raise _wrong("a header is not one line")
        if lower not in _NEVER_SENT:
            found.append((lower, value))
    return found


def _wrong(why: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"the HTTP request cannot be sent: {why}", reason="INVALID_HTTP_REQUEST"
    )
