"""
OpenAI's Responses dialect.

HTTP errors are OpenAI's; in streams every event has a `type` and a `sequence_number`, errors too, because
strict clients check each `data` against a union by `type`. The stream has no `[DONE]`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay_gateway.edge.dialects import blotting, faults
from patchbay_gateway.edge.dialects.openai import OpenAIDialect
from patchbay_gateway.edge.dialects.port import ChunkKind

if TYPE_CHECKING:
    from patchbay.errors import PatchbayError
    from patchbay_gateway.edge.dialects.port import StreamState

_LIFECYCLE: Final = frozenset({b"response.created", b"response.in_progress", b"response.queued"})
# How items and their parts begin, nearly always empty.
_BEGINNINGS: Final = {
    b"response.output_item.added": "item",
    b"response.content_part.added": "part",
    b"response.reasoning_summary_part.added": "part",
}
# Items that begin empty; any other says something by its beginning, as the name of a function.
_SAYS_LATER: Final = {
    "message": ("content",),
    "reasoning": ("summary", "content", "encrypted_content"),
}
_TERMINAL: Final = frozenset({b"response.completed", b"response.incomplete"})
_ERROR: Final = frozenset({b"error", b"response.failed", b"response.error"})
_TYPE: Final = re.compile(rb'\A(?:data: ?)?\{\s*"type"\s*:\s*"([^"\\]*)"')
_SEQUENCE: Final = re.compile(rb'"sequence_number"\s*:\s*(\d+)')
_CODES: Final = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "model_not_found",
    408: "request_timeout",
    429: "rate_limit_exceeded",
}


def event_type(chunk: bytes) -> bytes:
    """Return the type of one event, from its `event:` line or else its JSON; b'' for comments."""
    if chunk.startswith(b"event:"):
        return chunk[6 : chunk.find(b"\n")].strip()
    if chunk[:1] == b":":
        return b""
    if match := _TYPE.match(chunk):
        return match[1]
    found = faults.event_json(chunk)
    kind = found.get("type") if isinstance(found, dict) else None
    return kind.encode() if isinstance(kind, str) else b""


def holds_nothing(part: dict[str, Any]) -> bool:
    """Whether a part of an answer has a type and nothing else."""
    return not any(value for key, value in part.items() if key != "type")


def _is_empty(kind: bytes, chunk: bytes) -> bool:
    """Whether an item or a part begins without content."""
    found = faults.event_json(chunk)
    begun = found.get(_BEGINNINGS[kind]) if isinstance(found, dict) else None
    if not isinstance(begun, dict):
        return False
    if kind != b"response.output_item.added":
        return holds_nothing(begun)
    fields = _SAYS_LATER.get(str(begun.get("type")))
    return fields is not None and not any(begun.get(field) for field in fields)


class OpenAIResponseDialect(OpenAIDialect):
    """`openai-response`."""

    name = "openai-response"

    def stream_error(self, error: PatchbayError, state: StreamState, request_id: str) -> bytes:
        """Return `event: error`, numbered after the last event that went out."""
        seen = self.error(error, request_id)
        inner = orjson.loads(seen.body)["error"]
        code = inner.get("code")
        if not isinstance(code, str) or not code:
            code = _CODES.get(seen.status) or (
                "internal_server_error" if seen.status >= 500 else "invalid_request_error"
            )
        event = {
            "type": "error",
            "code": code,
            "message": blotting.clean(str(inner.get("message") or "")),
            "param": inner.get("param"),
            "sequence_number": last_sequence(state) + 1,
        }
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"

    def classify(self, chunk: bytes, state: StreamState) -> ChunkKind:
        """Go by the event's type; look closely only until content was seen."""
        kind = event_type(chunk)
        if kind:
            state.last = chunk
        if kind in _TERMINAL:
            state.terminal = True
            return ChunkKind.TERMINAL
        if kind in _ERROR:
            return ChunkKind.ERROR
        if kind in _LIFECYCLE or (not kind and chunk[:1] == b":"):
            return ChunkKind.LIFECYCLE
        if not state.content and kind in _BEGINNINGS and _is_empty(kind, chunk):
            return ChunkKind.LIFECYCLE
        # Providers that answer errors of the chat kind on this route as well.
        if not kind and chunk.find(b'"error"') >= 0:
            found = faults.event_json(chunk)
            if isinstance(found, dict) and found.get("error"):
                return ChunkKind.ERROR
        state.content = True
        return ChunkKind.CONTENT

    def in_stream_error(self, chunk: bytes) -> PatchbayError:
        """Return the error of `error`, `response.failed` or a bare `{"error":…}`."""
        found = faults.event_json(chunk)
        found = found if isinstance(found, dict) else {}
        response = found.get("response")
        inner: Any = found.get("error")
        if not inner and isinstance(response, dict):
            inner = response.get("error")
        if not isinstance(inner, dict):
            inner = found
        shaped = {
            "message": inner.get("message") or "the provider reported an error in its stream",
            "type": inner.get("type") if inner is not found else None,
            "param": inner.get("param"),
            "code": inner.get("code"),
        }
        status = faults.status_in(inner, response, found)
        if not isinstance(shaped["type"], str):
            shaped["type"] = "server_error" if status >= 500 else "invalid_request_error"
        return faults.in_stream(status, {"error": shaped})

    def is_usage_only(self, chunk: bytes) -> bool:
        """Never: usage comes with the terminal event."""
        return False


def last_sequence(state: StreamState) -> int:
    """Return the last `sequence_number` of the stream, -1 before the first."""
    # The key is unescaped only outside strings; nested objects have none of that name.
    matches = _SEQUENCE.findall(state.last)
    return max(state.sequence, int(matches[-1]) if matches else -1)
