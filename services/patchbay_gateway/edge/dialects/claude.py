"""
Anthropic's dialect: messages and count_tokens.

Envelope `{"type":"error","error":{type,message},"request_id"}`; streams are named events that begin with
`message_start` and end with `message_stop`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay_gateway.edge.dialects import faulting, faulting_claude, faults
from patchbay_gateway.edge.dialects.openai_response import event_type, holds_nothing
from patchbay_gateway.edge.dialects.port import ChunkKind, ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import PatchbayError, UpstreamError
    from patchbay_gateway.edge.dialects.port import ModelCard, StreamState
    from patchbay_gateway.kernel.outcomes import Fault

_JSON: Final = (b"content-type", b"application/json")
_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_LIFECYCLE: Final = frozenset({b"message_start", b"ping"})
_CONTENT: Final = frozenset(
    {b"content_block_delta", b"content_block_start", b"content_block_stop", b"message_delta"}
)
# Blocks that begin empty; any other says something by its beginning, as the name of a tool.
_SAYS_LATER: Final = ("text", "thinking")
_MAX_INPUT: Final = 200_000
_MAX_OUTPUT: Final = 64_000


class ClaudeDialect:
    """`claude`."""

    name = "claude"
    limit_signs: tuple[tuple[str, str], ...] = (
        ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-limit"),
        ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-limit"),
    )
    stream_content_type = b"text/event-stream; charset=utf-8"

    def fault(self, error: UpstreamError, now: float) -> Fault:
        """Return in neutral words what a provider reported."""
        return faulting.fault_of(error, now, faulting_claude.PECULIAR)

    def error(self, error: PatchbayError, request_id: str) -> ClientError:
        """Return *error* as an HTTP answer."""
        status = faults.status_of(error)
        headers = [
            _JSON,
            (b"request-id", request_id.encode("latin-1")),
            *faults.retry_headers(error, status, milliseconds=True),
        ]
        body = _envelope(error, status, request_id)
        found = faults.shaped(error, _is_shaped)
        if found is not None:
            document, whole = found
            if whole is not None:
                return ClientError(status, whole, headers)
            body["error"]["type"] = faults.text_of(document["error"], "type")
        return ClientError(status, orjson.dumps(body), headers)

    def stream_error(self, error: PatchbayError, state: StreamState, request_id: str) -> bytes:
        """Return `event: error`; no `message_stop` follows it."""
        shaped = self.error(error, request_id).body
        if b"\n" in shaped or b"\r" in shaped:
            shaped = orjson.dumps(orjson.loads(shaped))
        return b"event: error\ndata: " + shaped + b"\n\n"

    def keepalive(self) -> bytes:
        """Return a ping, as Anthropic does."""
        return b'event: ping\ndata: {"type": "ping"}\n\n'

    def classify(self, chunk: bytes, state: StreamState) -> ChunkKind:
        """Go by the event's name; look closely only until content was seen."""
        kind = event_type(chunk)
        if kind in _CONTENT:
            if not state.content and _is_empty(kind, chunk):
                return ChunkKind.LIFECYCLE
            state.content = True
            return ChunkKind.CONTENT
        if kind in _LIFECYCLE:
            return ChunkKind.LIFECYCLE
        if kind == b"message_stop":
            state.terminal = True
            return ChunkKind.TERMINAL
        if kind == b"error":
            return ChunkKind.ERROR
        return ChunkKind.LIFECYCLE if chunk[:1] == b":" else ChunkKind.CONTENT

    def in_stream_error(self, chunk: bytes) -> PatchbayError:
        """Return the error of `event: error`."""
        found = faults.event_json(chunk)
        inner = found.get("error") if isinstance(found, dict) else None
        status = faults.status_in(inner, found)
        if not isinstance(inner, dict):
            inner = {"type": "api_error", "message": "the provider reported an error in its stream"}
        return faults.in_stream(status, {"type": "error", "error": inner})

    def is_usage_only(self, chunk: bytes) -> bool:
        """Never."""
        return False

    def model_list(self, cards: Sequence[ModelCard]) -> bytes:
        """Return one page with everything."""
        ordered = sorted(cards, key=lambda card: card.id)
        return orjson.dumps(
            {
                "data": [_model(card) for card in ordered],
                "has_more": False,
                "first_id": ordered[0].id if ordered else None,
                "last_id": ordered[-1].id if ordered else None,
            }
        )

    def model_detail(self, card: ModelCard) -> bytes:
        """Return one model."""
        return orjson.dumps(_model(card))


def _envelope(error: PatchbayError, status: int, request_id: str) -> dict[str, Any]:
    inner = {
        "type": _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error"),
        "message": faults.message_of(error, status, request_id),
    }
    if not isinstance(error, errors.UpstreamError) and (code := faults.code_of(error, status)):
        # Anthropic has no codes; this one tells an unknown model from an unknown path.
        inner["code"] = code
    return {"type": "error", "error": inner, "request_id": request_id}


def _is_empty(kind: bytes, chunk: bytes) -> bool:
    """Whether an event of a block before any content holds none either."""
    if kind == b"content_block_stop":
        return True
    if kind == b"message_delta":
        return False
    found = faults.event_json(chunk)
    if not isinstance(found, dict):
        return False
    if kind == b"content_block_start":
        block = found.get("content_block")
        return isinstance(block, dict) and block.get("type") in _SAYS_LATER and holds_nothing(block)
    delta = found.get("delta")
    return isinstance(delta, dict) and holds_nothing(delta)


def _is_shaped(found: Any) -> bool:
    if not isinstance(found, dict) or found.get("type") != "error":
        return False
    inner = found.get("error")
    return (
        isinstance(inner, dict)
        and isinstance(inner.get("type"), str)
        and isinstance(inner.get("message"), str)
    )


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "owned_by": card.owned_by,
        "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "type": "model",
        "lifecycle": "active",
        "display_name": card.id,
        "max_input_tokens": _MAX_INPUT,
        "max_tokens": _MAX_OUTPUT,
    }
