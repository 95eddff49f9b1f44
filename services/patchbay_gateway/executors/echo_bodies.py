"""Bodies of the echo executor that are no conversation: embeddings, and errors in each dialect."""

from __future__ import annotations

import base64
import hashlib
import struct

import orjson

from patchbay_gateway.executors.echo_dialects import Json, count_words


def embeddings(body: Json, model: str) -> tuple[Json, int]:
    """
    Return the answer of `/v1/embeddings` and its tokens.

    The vectors are unit vectors made of a hash of the text: equal texts are equal, others are not alike.
    """
    given = body.get("input")
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        given = [given]
    size = body.get("dimensions")
    size = size if isinstance(size, int) and 0 < size <= 4096 else 16
    tokens, data = 0, []
    for index, item in enumerate(given):
        tokens += len(item) if isinstance(item, list) else count_words(str(item))
        vector = _vector(orjson.dumps(item), size)
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": packed if body.get("encoding_format") == "base64" else vector,
            }
        )
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}, tokens


def _vector(seed: bytes, size: int) -> list[float]:
    raw = hashlib.shake_128(seed).digest(2 * size)
    values = [value - 32767.5 for value in struct.unpack(f"<{size}H", raw)]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


_CLAUDE_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_TYPES = {401: "invalid_request_error", 429: "rate_limit_error"}
_GEMINI_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(name: str, status: int, message: str) -> bytes:
    """Return the error body of dialect *name* for *status*."""
    server = status >= 500
    if name == "claude":
        kind = _CLAUDE_TYPES.get(status, "api_error" if server else "invalid_request_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    if name == "gemini":
        kind = _GEMINI_STATUS.get(status, "INTERNAL" if server else "INVALID_ARGUMENT")
        return orjson.dumps({"error": {"code": status, "message": message, "status": kind}})
    kind = _OPENAI_TYPES.get(status, "server_error" if server else "invalid_request_error")
    code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
