"""One format in, another out: an executor that takes chat completions and answers as responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from patchbay.executor import StreamItem


class ProtocolFormat(Executor):
    """Answers with the last message, in the other format; gateways translate where a client needs it."""

    id = "protocol-format"
    name = "Protocol format"
    version = "1.0.0"
    author = "Patchbay"
    input_formats = ("openai",)
    output_formats = ("openai-response",)

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer at once."""
        words = _words(request)
        return ExecutorResponse(
            json.dumps(_response(request, " ".join(words))).encode(), usage=_usage(len(words))
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer in as many chunks as there are words."""
        words = _words(request)
        yield StreamHead()
        for count, word in enumerate(words, 1):
            event = {"type": "response.output_text.delta", "item_id": "1", "delta": f"{word} "}
            yield StreamBatch([_event(event)], _usage(count))
        whole = {"type": "response.completed", "response": _response(request, " ".join(words))}
        yield StreamBatch([_event(whole)])
        yield StreamTail(_usage(len(words)))


def _words(request: ExecutorRequest) -> list[str]:
    if request.format != "openai" or request.operation not in {"", "chat"}:
        raise errors.InvalidRequest(
            f"no {request.operation} in {request.format} here", reason="OPERATION_NOT_SUPPORTED"
        )
    try:
        return str(json.loads(request.payload)["messages"][-1]["content"]).split()
    except (ValueError, LookupError, TypeError):
        raise errors.InvalidRequest("the body has no last message") from None


def _response(request: ExecutorRequest, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {
        "id": f"resp_{request.attempt_uid}",
        "object": "response",
        "status": "completed",
        "model": request.model,
        "output": [{"type": "message", "role": "assistant", "content": content}],
    }


def _event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def _usage(words: int) -> Usage:
    return Usage((("output_tokens", words),), estimated=True)
