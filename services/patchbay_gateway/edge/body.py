"""
The body of a client request: read, decompressed, scanned.

Not here: the scanner itself (scan.py), decompression (encoding.py), what is done with the model.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge import encoding
from patchbay_gateway.edge.scan import Document, rewrite, scan

if TYPE_CHECKING:
    from patchbay_gateway.edge.budget import Charge
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.edge.routes.request import RoutedRequest

__all__ = ["Document", "asked", "read", "rewrite", "scan", "scanned"]

# Larger bodies are scanned in a thread: bytes.
_ON_LOOP: Final = 1 << 20
# Characters of a model's name, as many as the ledger keeps of a text.
_MAX_MODEL: Final = 512


async def read(
    exchange: Exchange, *, limit: int, deadline: float, charge: Charge | None = None
) -> Document:
    """
    Return the scanned body of *exchange*.

    Args:
        exchange: The request.
        limit: Bytes, as sent and decompressed.
        deadline: Seconds for all of it.
        charge: The request's account of the budget of bytes in flight.

    Raises:
        InvalidRequest: reasons BODY_TOO_LARGE, BODY_TIMEOUT, UNSUPPORTED_MEDIA, INVALID_ENCODING,
            INVALID_JSON, AMBIGUOUS_KEY, INVALID_MODEL.
        Unavailable: reason IN_FLIGHT_LIMIT.
        ClientGone: The client left.
    """
    coding = encoding.content_encoding(exchange.head.headers)
    data = await exchange.body(limit, deadline, charge)
    if coding:
        compressed = len(data)
        data = await encoding.decompress(data, coding, limit, charge)
        if charge is not None:
            charge.refund(compressed)
    return await scanned(data)


async def scanned(data: bytes) -> Document:
    """
    Return *data* scanned; a large one not on the loop.

    Raises:
        InvalidRequest: As `read`.
    """
    return scan(data) if len(data) <= _ON_LOOP else await asyncio.to_thread(scan, data)


def asked(document: Document, routed: RoutedRequest) -> tuple[str, bool]:
    """
    Return the public model name and whether the answer is to be a stream.

    OpenAI's dialects stream if `stream` is true, and take no other value than false and null for it: what a
    lax provider makes of `1` or `"true"` is anybody's guess. Claude's stream if it is there and neither
    false nor null; Gemini's by its path. Embeddings and token counts are never streams.

    Raises:
        InvalidRequest: No model, or a name that can be none, or a `stream` that is no boolean; reason
            MISSING_MODEL, INVALID_MODEL, INVALID_STREAM.
    """
    model = routed.model_from_path or document.model
    if not model:
        raise InvalidRequest("'model' is missing", reason="MISSING_MODEL")
    if len(model) > _MAX_MODEL:
        raise InvalidRequest(
            f"'model' has more than {_MAX_MODEL} characters", reason="INVALID_MODEL"
        )
    if routed.stream_from_path is not None:
        return model, routed.stream_from_path
    if routed.operation in {"embeddings", "count_tokens"}:
        return model, False
    if routed.dialect.name == "claude":
        return model, document.stream is not None and document.stream is not False
    if document.stream is not None and not isinstance(document.stream, bool):
        raise InvalidRequest("'stream' must be true or false", reason="INVALID_STREAM")
    return model, document.stream is True
