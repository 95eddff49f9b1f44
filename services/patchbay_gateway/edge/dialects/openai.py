"""
OpenAI's dialect: chat completions, legacy completions, embeddings.

Envelope `{"error":{message,type,param,code}}`; streams are `data:` frames that end with `[DONE]`. Not
here: Responses (openai_response.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay_gateway.edge.dialects import faulting, faulting_openai, faults
from patchbay_gateway.edge.dialects.port import ChunkKind, ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import PatchbayError, UpstreamError
    from patchbay_gateway.edge.dialects.port import ModelCard, StreamState
    from patchbay_gateway.kernel.outcomes import Fault

_JSON: Final = (b"content-type", b"application/json")
# HTTP status → (type, code).
_KINDS: Final = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
NO_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\]')
"""A chunk that only carries usage has no choices; nearly every write is without one."""
_DELTAS: Final = (
    "content",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
)


def envelope(error: PatchbayError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of *error* in OpenAI's shape."""
    status = faults.status_of(error)
    if status == 529:  # Anthropic's own number; OpenAI's clients know 503
        status = 503
    if status >= 500:
        kind, code = "server_error", "internal_server_error"
    else:
        kind, code = _KINDS.get(status, ("invalid_request_error", ""))
    if isinstance(error, errors.UpstreamError):
        _, upstream = faults.upstream_code(error)
        code = upstream or code
    else:
        code = faults.code_of(error, status) or code
    return status, {
        "error": {
            "message": faults.message_of(error, status, request_id),
            "type": kind,
            "param": "model" if code == "model_not_found" else None,
            "code": code or None,
        }
    }


def is_shaped(found: Any) -> bool:
    """Whether a provider's JSON is OpenAI's error envelope (and neither Anthropic's nor Google's)."""
    if not isinstance(found, dict) or found.get("type") == "error":
        return False
    inner = found.get("error")
    return (
        isinstance(inner, dict)
        and isinstance(inner.get("message"), str)
        and (isinstance(inner.get("type"), str) or not isinstance(inner.get("code"), int))
        and "status" not in inner
    )


class OpenAIDialect:
    """`openai`."""

    name = "openai"
    limit_signs: tuple[tuple[str, str], ...] = (
        ("x-ratelimit-remaining-requests", "x-ratelimit-limit-requests"),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-limit-tokens"),
    )
    stream_content_type = b"text/event-stream; charset=utf-8"

    def fault(self, error: UpstreamError, now: float) -> Fault:
        """Return in neutral words what a provider reported."""
        return faulting.fault_of(error, now, faulting_openai.PECULIAR)

    def error(self, error: PatchbayError, request_id: str) -> ClientError:
        """Return *error* as an HTTP answer."""
        status, body = envelope(error, request_id)
        headers = [_JSON, *faults.retry_headers(error, status, milliseconds=True)]
        found = faults.shaped(error, is_shaped)
        if found is not None:
            document, whole = found
            if whole is not None:
                return ClientError(status, whole, headers)
            inner, code = document["error"], document["error"].get("code")
            body["error"].update(
                type=faults.text_of(inner, "type") or body["error"]["type"],
                param=faults.text_of(inner, "param") or None,
                code=code if isinstance(code, int) else faults.text_of(inner, "code") or None,
            )
        return ClientError(status, orjson.dumps(body), headers)

    def stream_error(self, error: PatchbayError, state: StreamState, request_id: str) -> bytes:
        """Return a `data:` frame with the envelope; no `[DONE]` follows it."""
        shaped = self.error(error, request_id).body
        if b"\n" in shaped or b"\r" in shaped:  # a provider's pretty print would end the frame
            shaped = orjson.dumps(orjson.loads(shaped))
        return b"data: " + shaped + b"\n\n"

    def keepalive(self) -> bytes:
        """Return a comment."""
        return b": keep-alive\n\n"

    def classify(self, chunk: bytes, state: StreamState) -> ChunkKind:
        """Look closely only until content was seen."""
        if chunk.startswith((b"data: [DONE]", b"data:[DONE]")):
            state.terminal = True
            return ChunkKind.TERMINAL
        # Inside strings the quotes are escaped, so this is a key or a value of its own.
        if chunk.find(b'"error"') >= 0:
            found = faults.event_json(chunk)
            if isinstance(found, dict) and found.get("error"):
                return ChunkKind.ERROR
        if state.content:
            return ChunkKind.LIFECYCLE if chunk[:1] == b":" else ChunkKind.CONTENT
        if _has_content(chunk):
            state.content = True
            return ChunkKind.CONTENT
        return ChunkKind.LIFECYCLE

    def in_stream_error(self, chunk: bytes) -> PatchbayError:
        """Return the error of `data: {"error":…}`."""
        found = faults.event_json(chunk)
        inner = found.get("error") if isinstance(found, dict) else None
        status = faults.status_in(inner, found)
        if isinstance(inner, str):
            inner = {"message": inner, "type": "server_error", "param": None, "code": None}
        if not isinstance(inner, dict):
            inner = {"message": "the provider reported an error in its stream"}
        return faults.in_stream(status, {"error": inner})

    def is_usage_only(self, chunk: bytes) -> bool:
        """Whether it is the chunk of `include_usage`: `choices` empty and `usage` set."""
        if chunk.find(b'"usage"') < 0 or not NO_CHOICES.search(chunk):
            return False
        found = faults.event_json(chunk)
        return isinstance(found, dict) and found.get("choices") == [] and bool(found.get("usage"))

    def model_list(self, cards: Sequence[ModelCard]) -> bytes:
        """Return `{"object":"list","data":[…]}`."""
        return orjson.dumps({"object": "list", "data": [_model(card) for card in cards]})

    def model_detail(self, card: ModelCard) -> bytes:
        """Return one model."""
        return orjson.dumps(_model(card))


def _model(card: ModelCard) -> dict[str, Any]:
    found: dict[str, Any] = {"id": card.id, "object": "model"}
    if card.created:
        found["created"] = card.created
    found["owned_by"] = card.owned_by
    return found


def _has_content(chunk: bytes) -> bool:
    found = faults.event_json(chunk)
    if not isinstance(found, dict):
        # Not a frame we know: whoever sent it meant it for the client.
        return chunk[:1] != b":" and bool(faults.event_data(chunk))
    for choice in found.get("choices") or ():
        if not isinstance(choice, dict):
            return True
        if choice.get("finish_reason") or choice.get("text"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(delta.get(key) for key in _DELTAS):
            return True
    return False
