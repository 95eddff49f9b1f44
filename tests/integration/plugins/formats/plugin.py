"""A plugin with a format of its own: an executor that answers in it, and translators from and to it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.serve import serve
from patchbay.transform import (
    RequestTransformRequest,
    RequestTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem


class Whisper(Executor, RequestTranslator, ResponseTranslator):
    """In `whisper` a request is `{"ask": TEXT}`, an answer `{"said": TEXT}`, and so is each chunk of one."""

    id: ClassVar = "whisper"
    name: ClassVar = "Whisper"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("whisper",)

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Say what was asked."""
        said = json.loads(request.message.payload)["messages"][-1]["content"]
        return ExecutorResponse(json.dumps({"said": said}).encode())

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Say it word by word."""
        said = json.loads(request.message.payload)["messages"][-1]["content"]
        yield StreamHead(200, [], "text/event-stream")
        yield StreamBatch([_event({"said": word}) for word in [*said.split(), None]])
        yield StreamTail(None)

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the chat."""
        if (request.from_format, request.to_format) != ("whisper", "openai"):
            return None
        asked = {"role": "user", "content": json.loads(request.body)["ask"]}
        chat = {"model": request.model, "messages": [asked], "stream": request.stream}
        return json.dumps(chat).encode()

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        """Return an answer, or a chunk, in the other of the two formats."""
        pair = request.from_format, request.to_format
        if pair not in {("whisper", "openai"), ("openai", "whisper")}:
            return None
        data = request.body.removeprefix(b"data:").strip()
        found: dict[str, Any] = {} if data == b"[DONE]" else json.loads(data)
        if pair[1] == "whisper":
            answer = _whispered(found, stream=request.stream)
        else:
            answer = _chat(found["said"], stream=request.stream)
        return _event(answer) if request.stream else json.dumps(answer).encode()


def _whispered(found: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    choices = found.get("choices") or [{}]
    return {"said": choices[0].get("delta" if stream else "message", {}).get("content")}


def _chat(said: str | None, *, stream: bool) -> dict[str, Any]:
    if stream:
        return {"choices": [{"index": 0, "delta": {"content": said}}]} if said else {}
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "w", "object": "chat.completion", "model": "w", "choices": [choice]}


def _event(found: dict[str, Any]) -> bytes:
    return b"data: " + (json.dumps(found).encode() if found else b"[DONE]") + b"\n\n"


if __name__ == "__main__":
    serve(Whisper(), address=os.environ["SAMPLE_ADDRESS"])
