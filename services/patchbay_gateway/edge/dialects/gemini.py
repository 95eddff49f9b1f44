"""
Google's dialect: generateContent, streamGenerateContent, countTokens.

Envelope `{"error":{code,message,status,details}}` with google.rpc names. Streams are SSE, or with another
`alt` one JSON array; neither has an end mark, a `finishReason` is the end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay_gateway.edge.dialects import faulting, faulting_gemini, faults
from patchbay_gateway.edge.dialects.port import ChunkKind, ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import PatchbayError, UpstreamError
    from patchbay_gateway.edge.dialects.port import ModelCard, StreamState
    from patchbay_gateway.kernel.outcomes import Fault

_JSON: Final = (b"content-type", b"application/json; charset=UTF-8")
_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_METHODS: Final = ["generateContent", "streamGenerateContent", "countTokens"]
_MAX_INPUT: Final = 1_048_576
_MAX_OUTPUT: Final = 65_536


class GeminiDialect:
    """
    `gemini`.

    Args:
        sse: False for a client that asked for another `alt`: no keep-alives, raw error bodies.
    """

    name = "gemini"
    limit_signs: tuple[tuple[str, str], ...] = ()

    def __init__(self, *, sse: bool = True) -> None:
        self._sse = sse
        self.stream_content_type = (
            b"text/event-stream; charset=utf-8" if sse else b"application/json; charset=UTF-8"
        )

    def fault(self, error: UpstreamError, now: float) -> Fault:
        """Return in neutral words what a provider reported."""
        return faulting.fault_of(error, now, faulting_gemini.PECULIAR)

    def error(self, error: PatchbayError, request_id: str) -> ClientError:
        """Return *error* as an HTTP answer."""
        status = faults.status_of(error)
        if status == 529:  # Anthropic's own number
            status = 503
        headers = [_JSON, *faults.retry_headers(error, status, milliseconds=False)]
        body = _envelope(error, status, request_id)
        found = faults.shaped(error, _is_shaped)
        if found is not None:
            document, whole = found
            if whole is not None:
                return ClientError(status, whole, headers)
            body["error"]["status"] = faults.text_of(document["error"], "status")
        return ClientError(status, orjson.dumps(body), headers)

    def stream_error(self, error: PatchbayError, state: StreamState, request_id: str) -> bytes:
        """
        Return an event that is the envelope, or the bare body where the stream is no SSE.

        Google's SDKs take every line but `data:` and blank ones for JSON, so the event has no name.
        """
        shaped = self.error(error, request_id).body
        if not self._sse:
            return shaped
        if b"\n" in shaped or b"\r" in shaped:
            shaped = orjson.dumps(orjson.loads(shaped))
        return b"data: " + shaped + b"\n\n"

    def keepalive(self) -> bytes:
        """Return blank lines, for Google's SDKs fail on comments; nothing where the stream is no SSE."""
        return b"\n\n" if self._sse else b""

    def classify(self, chunk: bytes, state: StreamState) -> ChunkKind:
        """A `finishReason` or `blockReason` is the end, though its chunk may hold content too."""
        if chunk.find(b'"error"') >= 0:
            found = faults.event_json(chunk)
            if isinstance(found, list) and found:
                found = found[0]
            if isinstance(found, dict) and found.get("error"):
                return ChunkKind.ERROR
        if chunk.find(b'"finishReason"') >= 0 or chunk.find(b'"blockReason"') >= 0:
            state.terminal = state.content = True
            return ChunkKind.TERMINAL
        if chunk[:1] == b":":
            return ChunkKind.LIFECYCLE
        state.content = True
        return ChunkKind.CONTENT

    def in_stream_error(self, chunk: bytes) -> PatchbayError:
        """Return the error of `{"error":…}`."""
        found = faults.event_json(chunk)
        if isinstance(found, list) and found:
            found = found[0]
        inner = found.get("error") if isinstance(found, dict) else None
        if not isinstance(inner, dict):
            inner = {
                "code": 502,
                "message": "the provider reported an error in its stream",
                "status": "UNAVAILABLE",
            }
        return faults.in_stream(faults.status_in(inner), {"error": inner})

    def is_usage_only(self, chunk: bytes) -> bool:
        """Never."""
        return False

    def model_list(self, cards: Sequence[ModelCard]) -> bytes:
        """Return `{"models":[…]}`."""
        return orjson.dumps({"models": [_model(card) for card in cards]})

    def model_detail(self, card: ModelCard) -> bytes:
        """Return one model."""
        return orjson.dumps(_model(card))


def _envelope(error: PatchbayError, status: int, request_id: str) -> dict[str, Any]:
    name = _STATUS.get(status) or ("INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
    inner: dict[str, Any] = {
        "code": status,
        "message": faults.message_of(error, status, request_id),
        "status": name,
    }
    details: list[dict[str, Any]] = []
    if not isinstance(error, errors.UpstreamError) and status != 500:
        info: dict[str, Any] = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.reason,
            "domain": "patchbay.dev",
        }
        if code := faults.code_of(error, status):
            info["metadata"] = {"code": code}
        details.append(info)
    if error.retry_after is not None:
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": f"{math.ceil(error.retry_after)}s",
            }
        )
    if details:
        inner["details"] = details
    return {"error": inner}


def _is_shaped(found: Any) -> bool:
    inner = found.get("error") if isinstance(found, dict) else None
    return (
        isinstance(inner, dict)
        and isinstance(inner.get("message"), str)
        and isinstance(inner.get("status"), str)
        and isinstance(inner.get("code"), int)
    )


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "name": f"models/{card.id}",
        "version": card.id,
        "displayName": card.id,
        "description": card.id,
        "inputTokenLimit": _MAX_INPUT,
        "outputTokenLimit": _MAX_OUTPUT,
        "supportedGenerationMethods": _METHODS,
    }
