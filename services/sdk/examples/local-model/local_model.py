"""A model without a provider: an executor that counts, and the registrar that makes its model known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.models import (
    ModelInfo,
    ModelRegistrar,
    ModelRegistrationRequest,
    ModelRegistrationResponse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from patchbay.executor import StreamItem

MODEL = "count-to-ten"


class LocalModel(ModelRegistrar, Executor):
    """Counts to ten."""

    id = "local-model"
    name = "Local model"
    version = "1.0.0"
    author = "Patchbay"
    input_formats = ("openai",)
    output_formats = ("openai",)

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        """Name the model."""
        model = ModelInfo(MODEL, display_name="Counts to ten", owned_by="local")
        return ModelRegistrationResponse(self.identifier, [model])

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Count at once."""
        _check(request)
        message = {"role": "assistant", "content": " ".join(map(str, range(1, 11)))}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"object": "chat.completion", "model": request.model, "choices": [choice]}
        return ExecutorResponse(json.dumps(answer).encode())

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Count one by one; what is ready together goes in one batch, as chunks of their own."""
        _check(request)
        yield StreamHead()
        yield StreamBatch([_chunk(f"{number} ") for number in range(1, 11)])
        yield StreamBatch([_chunk("", "stop"), b"data: [DONE]\n\n"])
        yield StreamTail()


def _check(request: ExecutorRequest) -> None:
    if request.format != "openai" or request.operation not in {"", "chat"}:
        raise errors.InvalidRequest(
            f"no {request.operation} in {request.format} here", reason="OPERATION_NOT_SUPPORTED"
        )


def _chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    data = {"object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"
