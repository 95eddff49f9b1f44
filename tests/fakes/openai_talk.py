"""What the fake upstream says: its script, and OpenAI's bodies and stream frames. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

FOREVER = 3600.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """What to do with one request. Counts are content chunks, one word and one token each."""

    chunks: int = 16
    delay_ms: float = 0
    """Pause before each chunk."""
    bytes_per_write: int = 0
    """Cut each write into pieces of so many bytes; 0 does not."""
    frames_per_write: int = 1
    """Content frames joined into one write; only without delay."""
    status: int = 200
    error: str = "as told"
    """Message of an error answer."""
    retry_after: str = ""
    stall: str = ""
    """`head`: no answer at all; `body`: a head and then nothing; `N`: nothing after N chunks."""
    stall_s: float = FOREVER
    half_frame_after: int = -1
    """After so many chunks send half of the next one and close."""
    close_after: int = -1
    """After so many chunks close without an end."""
    drop: bool = False
    """Close when the request has arrived, without a byte of an answer."""
    close_idle: bool = False
    """Close the connection after a whole answer that promised keep-alive."""
    error_after: int = -1
    """After so many chunks send an error event inside the 200 and end."""
    usage: str = "asked"
    """`asked`: as OpenAI does; `always`; `never`; `each`: in every chunk, growing."""
    done: bool = True
    """Whether [DONE] ends chat and completions streams."""
    finish: bool = True
    """Whether a finish_reason is sent."""
    crlf: bool = False
    """CRLF line ends."""
    spaces: bool = False
    """JSON with a blank after colon and comma."""
    cached: int = 0
    """Cached input tokens to report."""
    reasoning: int = 0
    """Reasoning tokens to report."""
    location: str = ""
    """Answer a redirect to here."""
    padding: int = 0
    """So many extra bytes in a non-streamed answer or error."""


class Request(Protocol):
    """What the talk needs to know of a request."""

    id: int
    path: str
    model: str


class Talk:
    """The words: bodies and frames of one request's dialect."""

    def __init__(self, script: Script, record: Request, document: Json) -> None:
        self._script = script
        self._model = record.model or "fake"
        self._id = record.id
        path = record.path.partition("?")[0]
        self._kind = path.rsplit("/", 1)[-1]
        self._input = max(1, len(json.dumps(document.get("messages", document)).split()))
        options = document.get("stream_options") or {}
        self._asked = options.get("include_usage") is True
        self._document = document

    @property
    def reports_usage(self) -> bool:
        usage = self._script.usage
        if usage == "asked":
            return self._asked or self._kind == "responses"
        return usage != "never"

    def tokens(self, output: int) -> dict[str, int]:
        if self._kind == "embeddings":
            return {"input_tokens": self._input}
        tokens = {"input_tokens": self._input, "output_tokens": output}
        if self._script.cached:
            tokens["cache_read_tokens"] = self._script.cached
        if self._script.reasoning:
            tokens["reasoning_tokens"] = self._script.reasoning
        return tokens

    def usage(self, output: int) -> Json:
        total = {"total_tokens": self._input + output}
        cached = {"cached_tokens": self._script.cached}
        reasoning = {"reasoning_tokens": self._script.reasoning}
        if self._kind == "responses":
            return {
                "input_tokens": self._input,
                "input_tokens_details": cached,
                "output_tokens": output,
                "output_tokens_details": reasoning,
            } | total
        if self._kind == "embeddings":
            return {"prompt_tokens": self._input, "total_tokens": self._input}
        return {
            "prompt_tokens": self._input,
            "completion_tokens": output,
            "prompt_tokens_details": cached,
            "completion_tokens_details": reasoning,
        } | total

    def dumps(self, document: Json) -> bytes:
        separators = (", ", ": ") if self._script.spaces else (",", ":")
        return json.dumps(document, separators=separators).encode()

    def _text(self) -> str:
        return "".join(_word(i) for i in range(self._script.chunks))

    def whole(self) -> Json:
        usage = {} if self._script.usage == "never" else {"usage": self.usage(self._script.chunks)}
        padding = {"padding": "x" * self._script.padding} if self._script.padding else {}
        return self._body() | usage | padding

    def _body(self) -> Json:
        if self._kind == "embeddings":
            vectors = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
            return {"object": "list", "data": vectors, "model": self._model}
        if self._kind == "responses":
            return self._response("completed", [self._item("completed", self._text())])
        if self._kind == "completions" and "messages" not in self._document:
            choice: Json = {"index": 0, "text": self._text(), "finish_reason": "stop"}
            return self._envelope("text_completion", choice)
        message = {"role": "assistant", "content": self._text()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return self._envelope("chat.completion", choice)

    @property
    def _chat(self) -> bool:
        return self._kind == "completions" and "messages" in self._document

    def opening(self) -> list[bytes]:
        if self._kind == "responses":
            running = self._response("in_progress", [])
            return [
                self._event(0, "response.created", {"response": running}),
                self._event(1, "response.in_progress", {"response": running}),
                self._event(
                    2,
                    "response.output_item.added",
                    {"output_index": 0, "item": self._item("in_progress", "")},
                ),
                self._event(3, "response.content_part.added", self._place() | {"part": _part("")}),
            ]
        return [self._delta({"role": "assistant", "content": ""}, None, 0)] if self._chat else []

    def piece(self, index: int) -> bytes:
        word = _word(index)
        if self._kind == "responses":
            more = self._place() | {"delta": word, "logprobs": []}
            return self._event(4 + index, "response.output_text.delta", more)
        if self._chat:
            return self._delta({"content": word}, None, index + 1)
        return self._data(self._envelope("text_completion", _text_choice(word, None)))

    def closing(self) -> list[bytes]:
        chunks, script = self._script.chunks, self._script
        if self._kind == "responses":
            if not script.finish:
                return []
            done = self.whole()
            item = self._item("completed", self._text())
            return [
                self._event(
                    4 + chunks,
                    "response.output_text.done",
                    self._place() | {"text": self._text(), "logprobs": []},
                ),
                self._event(
                    5 + chunks,
                    "response.content_part.done",
                    self._place() | {"part": _part(self._text())},
                ),
                self._event(
                    6 + chunks, "response.output_item.done", {"output_index": 0, "item": item}
                ),
                self._event(7 + chunks, "response.completed", {"response": done}),
            ]
        frames = []
        if script.finish and self._chat:
            frames.append(self._delta({}, "stop", chunks))
        elif script.finish:
            frames.append(self._data(self._envelope("text_completion", _text_choice("", "stop"))))
        if self.reports_usage:
            kind = "chat.completion.chunk" if self._chat else "text_completion"
            last = self._envelope(kind) | {"usage": self.usage(chunks)}
            frames.append(self._data(last))
        if script.done:
            frames.append(b"data: [DONE]\n\n")
        return frames

    def error(self) -> bytes:
        if self._kind == "responses":
            return self._event(9, "error", {"code": "server_error", "message": self._script.error})
        error = {"message": self._script.error, "type": "server_error", "code": None}
        return self._data({"error": error})

    def _delta(self, delta: Json, finish: str | None, sent: int) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = self._envelope("chat.completion.chunk", choice)
        if self._script.usage == "each":
            event["usage"] = self.usage(sent)
        elif self._asked:
            event["usage"] = None
        return self._data(event)

    def _envelope(self, kind: str, *choices: Json) -> Json:
        return {
            "id": f"fake-{self._id}",
            "object": kind,
            "created": 1_700_000_000,
            "model": self._model,
            "choices": list(choices),
        }

    def _response(self, status: str, output: list[Json]) -> Json:
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": 1_700_000_000,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None,
        }

    def _item(self, status: str, text: str) -> Json:
        content = [_part(text)] if text else []
        return {
            "id": f"msg_{self._id}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _place(self) -> Json:
        return {"item_id": f"msg_{self._id}", "output_index": 0, "content_index": 0}

    def _event(self, number: int, kind: str, more: Json) -> bytes:
        body = self.dumps({"type": kind, "sequence_number": number} | more)
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _data(self, event: Json) -> bytes:
        return b"data: " + self.dumps(event) + b"\n\n"


def _word(index: int) -> str:
    return f"word{index} "


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text_choice(text: str, finish: str | None) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
