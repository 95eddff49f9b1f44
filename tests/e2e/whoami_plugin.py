"""
An executor that says which pod answered and when the call arrived: what the tests of scaling read.

The last message of a user is `{"words": N, "delay": SECONDS}`, or anything else for one word at once. The
first word of an answer is `pod@unix-seconds`. A configuration with `refuse` is refused. Mounted into pods by
the tests from a ConfigMap; it needs the SDK alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.serve import serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem

MODEL = "whoami"


class WhoAmI(Executor):
    """Tells its pod."""

    id = "whoami"
    name = "Who am I"
    version = "1.0.0"
    author = "Patchbay"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    async def configure(self, config: bytes) -> None:
        """Refuse what asks for it."""
        if b"refuse" in config:
            raise errors.InvalidRequest("the configuration says refuse; remove that key")

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer at once."""
        words, delay = _wishes(request.payload)
        first = _first()
        if delay:
            await asyncio.sleep(delay)
        text = " ".join([first, *["word"] * (words - 1)])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        answer = {"object": "chat.completion", "model": MODEL, "choices": [choice]}
        return ExecutorResponse(json.dumps(answer).encode())

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer word by word."""
        words, delay = _wishes(request.payload)
        yield StreamHead()
        yield StreamBatch([_chunk(_first())])
        for _ in range(words - 1):
            await asyncio.sleep(delay)
            yield StreamBatch([_chunk(" word")])
        yield StreamBatch([_chunk("", "stop"), b"data: [DONE]\n\n"])
        yield StreamTail()


def _first() -> str:
    return f"{socket.gethostname()}@{time.time():.3f}"


def _wishes(payload: bytes) -> tuple[int, float]:
    text = json.loads(payload)["messages"][-1]["content"]
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return 1, 0.0
    return max(1, int(found.get("words", 1))), float(found.get("delay", 0.0))


def _chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    data = {"object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


if __name__ == "__main__":
    serve(WhoAmI())
