"""
Whole answers: a status, headers and a JSON body in one go.

Not here: streams (edge/stream.py) and what the body says (dialects/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.edge.routes.paths import MethodNotAllowed

if TYPE_CHECKING:
    from patchbay.errors import Headers, PatchbayError
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.exchange import Exchange

_JSON = (b"content-type", b"application/json")


async def send_whole(exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete answer with `content-length`; *headers* must name the content type."""
    headers.append((b"content-length", b"%d" % len(body)))
    await exchange.send_head(status, headers)
    if body and exchange.head.method != "HEAD":
        await exchange.send(body)
    await exchange.finish()


async def send_json(exchange: Exchange, status: int, body: bytes, headers: Headers) -> None:
    """Send *body* as JSON."""
    await send_whole(exchange, status, [_JSON, *headers], body)


async def send_error(
    exchange: Exchange, dialect: Dialect, error: PatchbayError, request_id: str
) -> None:
    """Send *error* in *dialect*; nothing may have been committed."""
    seen = dialect.error(error, request_id)
    headers = [*seen.headers, (b"x-request-id", request_id.encode())]
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    await send_whole(exchange, seen.status, headers, seen.body)
