"""
Code as a plugin author writes it, for the type checker alone; nobody runs it.

Lines that must be refused carry `type: ignore` with the code of the refusal: strict mode reports an ignore
that refuses nothing, so a line that begins to pass fails the check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

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
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem


class Parrot(Executor):
    """What the tutorial begins with."""

    id: ClassVar = "parrot"
    name: ClassVar = "Parrot"
    version: ClassVar = "1.0.0"
    author: ClassVar = "You"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer at once."""
        if request.operation != "chat":
            raise errors.InvalidRequest("chat only", reason="OPERATION_NOT_SUPPORTED")
        secret = request.secret()
        _ = secret["api_key"]  # type: ignore[index]  # there may be none
        if secret is not None:
            key: str = secret["api_key"]
            secret.check(f"https://parrot.example/{len(key)}")
        return ExecutorResponse(request.payload, usage=Usage((("input_tokens", 1),)))

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer in pieces."""
        yield StreamHead(content_type="text/event-stream")
        yield StreamBatch([b"data: [DONE]\n\n"])
        yield b"data: [DONE]\n\n"  # type: ignore[misc]  # bytes are no item of a stream
        yield StreamTail(Usage((("output_tokens", 1),)))


class Mute(Executor):
    """Answers what the port does not know."""

    async def execute(self, request: ExecutorRequest) -> str:  # type: ignore[override]
        """Return a string."""
        return request.format


def misuses(request: ExecutorRequest) -> None:
    """What a checker must not let pass."""
    ExecutorResponse("text")  # type: ignore[arg-type]  # a payload is bytes
    StreamBatch(["text"])  # type: ignore[list-item]  # so are chunks
    Usage({"input_tokens": 1})  # type: ignore[arg-type]  # units are pairs, in order
    request.payload = b""  # type: ignore[misc]  # a request is its caller's
    _ = request.model_name  # type: ignore[attr-defined]
    errors.UpstreamError("429", "busy")  # type: ignore[arg-type]  # a status is a number
    errors.Unavailable("away", retry_after="2")  # type: ignore[arg-type]  # seconds, a number
    errors.UpstreamError(429, "busy", scope="request")  # type: ignore[arg-type]
