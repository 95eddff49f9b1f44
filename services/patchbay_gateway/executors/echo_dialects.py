"""
How the echo executor reads and answers the four dialects: pure functions from JSON to JSON.

An answer is made of pieces (one word each) and counts; every dialect turns them into one body or into
the events that its official SDK expects. Tokens are whitespace-separated words. Not here: what to
answer, pace and rehearsed failures (echo.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request says."""

    text: str
    """The last text of the user."""
    input_tokens: int
    """Words of all texts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say, for any dialect."""

    uid: str
    """Unique; the dialects put their prefix before it."""
    model: str
    created: int
    """Unix seconds."""
    pieces: tuple[str, ...]
    input_tokens: int
    include_usage: bool
    """OpenAI chat and completions streams: `stream_options.include_usage`."""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    @property
    def output_tokens(self) -> int:
        """One token per piece."""
        return len(self.pieces)


class EchoDialect(Protocol):
    """One dialect and operation."""

    def read(self, body: Json) -> Reading:
        """Find texts; fields of a wrong type count as absent."""
        ...

    def whole(self, answer: Answer) -> Json:
        """Return the non-streamed body."""
        ...

    def opening(self, answer: Answer) -> list[bytes]:
        """Return the events before the first piece."""
        ...

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return the event of one piece."""
        ...

    def closing(self, answer: Answer) -> list[bytes]:
        """Return the events after the last piece."""
        ...


def count_words(text: str) -> int:
    """Return the number of whitespace-separated words."""
    return len(text.split())


def _texts(content: object) -> Iterator[str]:
    """Texts in a `content`: a string, a part, or a list of parts, whatever the parts' type is called."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, dict):
        for key in ("text", "content", "parts"):
            yield from _texts(content.get(key))


def _read_turns(turns: object, *more: object) -> Reading:
    last, count = "", sum(count_words(text) for extra in more for text in _texts(extra))
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    for turn in turns if isinstance(turns, list) else []:
        text = "\n".join(_texts(turn))
        count += count_words(text)
        if isinstance(turn, str) or (isinstance(turn, dict) and turn.get("role", "user") == "user"):
            last = text
    return Reading(last, count)


def _data(event: Json) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _named(event: Json) -> bytes:
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


class OpenAIChat:
    """`/v1/chat/completions`."""

    def read(self, body: Json) -> Reading:
        """Take `messages`."""
        return _read_turns(body.get("messages"))

    def whole(self, answer: Answer) -> Json:
        """Return a chat.completion."""
        message: Json = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": [],
        }
        return self._frame(answer, "chat.completion") | {
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": self._usage(answer),
        }

    def opening(self, answer: Answer) -> list[bytes]:
        """Return the chunk that names the role."""
        return [self._chunk(answer, {"role": "assistant", "content": ""}, None)]

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return a content chunk."""
        return self._chunk(answer, {"content": answer.pieces[index]}, None)

    def closing(self, answer: Answer) -> list[bytes]:
        """Return finish, usage when asked for, and [DONE]."""
        events = [self._chunk(answer, {}, "stop")]
        if answer.include_usage:
            usage = {"choices": [], "usage": self._usage(answer)}
            events.append(_data(self._frame(answer, "chat.completion.chunk") | usage))
        return [*events, b"data: [DONE]\n\n"]

    def _chunk(self, answer: Answer, delta: Json, finish: str | None) -> bytes:
        event = self._frame(answer, "chat.completion.chunk")
        event["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if answer.include_usage:
            event["usage"] = None
        return _data(event)

    def _frame(self, answer: Answer, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{answer.uid}",
            "object": kind,
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": None,
        }

    def _usage(self, answer: Answer) -> Json:
        return _openai_usage(answer.input_tokens, answer.output_tokens)


class OpenAICompletions:
    """`/v1/completions`."""

    def read(self, body: Json) -> Reading:
        """Take `prompt`; of several the last."""
        return _read_turns(body.get("prompt"))

    def whole(self, answer: Answer) -> Json:
        """Return a text_completion."""
        usage = _openai_usage(answer.input_tokens, answer.output_tokens)
        return self._frame(answer, answer.text, "stop") | {"usage": usage}

    def opening(self, answer: Answer) -> list[bytes]:
        """Return nothing: the first piece opens."""
        return []

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return a text chunk."""
        return _data(self._chunk(answer, answer.pieces[index], None))

    def closing(self, answer: Answer) -> list[bytes]:
        """Return finish, usage when asked for, and [DONE]."""
        events = [_data(self._chunk(answer, "", "stop"))]
        if answer.include_usage:
            usage = _openai_usage(answer.input_tokens, answer.output_tokens)
            last = self._frame(answer, "", None) | {"choices": [], "usage": usage}
            events.append(_data(last))
        return [*events, b"data: [DONE]\n\n"]

    def _chunk(self, answer: Answer, text: str, finish: str | None) -> Json:
        event = self._frame(answer, text, finish)
        if answer.include_usage:
            event["usage"] = None
        return event

    def _frame(self, answer: Answer, text: str, finish: str | None) -> Json:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {
            "id": f"cmpl-{answer.uid}",
            "object": "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [choice],
        }


class OpenAIResponses:
    """`/v1/responses`."""

    def read(self, body: Json) -> Reading:
        """Take `input`, and `instructions` into the count."""
        return _read_turns(body.get("input"), body.get("instructions"))

    def whole(self, answer: Answer) -> Json:
        """Return a completed response."""
        return self._response(answer, "completed") | {
            "output": [self._item(answer, "completed")],
            "usage": {
                "input_tokens": answer.input_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": answer.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.input_tokens + answer.output_tokens,
            },
        }

    def opening(self, answer: Answer) -> list[bytes]:
        """Return created, in progress, item and part."""
        running = self._response(answer, "in_progress")
        item = self._item(answer, "in_progress") | {"content": []}
        return [
            _named({"type": "response.created", "sequence_number": 0, "response": running}),
            _named({"type": "response.in_progress", "sequence_number": 1, "response": running}),
            _named(
                {
                    "type": "response.output_item.added",
                    "sequence_number": 2,
                    "output_index": 0,
                    "item": item,
                }
            ),
            self._at(answer, 3, "response.content_part.added", {"part": self._part("")}),
        ]

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return an output_text delta."""
        delta = {"delta": answer.pieces[index], "logprobs": []}
        return self._at(answer, 4 + index, "response.output_text.delta", delta)

    def closing(self, answer: Answer) -> list[bytes]:
        """Return text, part, item and response done."""
        number = 4 + len(answer.pieces)
        text = {"text": answer.text, "logprobs": []}
        return [
            self._at(answer, number, "response.output_text.done", text),
            self._at(
                answer, number + 1, "response.content_part.done", {"part": self._part(answer.text)}
            ),
            _named(
                {
                    "type": "response.output_item.done",
                    "sequence_number": number + 2,
                    "output_index": 0,
                    "item": self._item(answer, "completed"),
                }
            ),
            _named(
                {
                    "type": "response.completed",
                    "sequence_number": number + 3,
                    "response": self.whole(answer),
                }
            ),
        ]

    def _at(self, answer: Answer, number: int, kind: str, more: Json) -> bytes:
        place = {"item_id": f"msg_{answer.uid}", "output_index": 0, "content_index": 0}
        return _named({"type": kind, "sequence_number": number} | place | more)

    def _part(self, text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, answer: Answer, status: str) -> Json:
        return {
            "id": f"msg_{answer.uid}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._part(answer.text)],
        }

    def _response(self, answer: Answer, status: str) -> Json:
        return {
            "id": f"resp_{answer.uid}",
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": answer.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }


class ClaudeMessages:
    """`/v1/messages`."""

    def read(self, body: Json) -> Reading:
        """Take `messages`, and `system` into the count."""
        return _read_turns(body.get("messages"), body.get("system"))

    def whole(self, answer: Answer) -> Json:
        """Return a message."""
        return self._message(answer, answer.output_tokens) | {
            "content": [{"type": "text", "text": answer.text}],
            "stop_reason": "end_turn",
        }

    def opening(self, answer: Answer) -> list[bytes]:
        """Return message_start and the start of the one block."""
        block = {"type": "text", "text": ""}
        return [
            _named({"type": "message_start", "message": self._message(answer, 0)}),
            _named({"type": "content_block_start", "index": 0, "content_block": block}),
        ]

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return a text_delta."""
        delta = {"type": "text_delta", "text": answer.pieces[index]}
        return _named({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, answer: Answer) -> list[bytes]:
        """Return the end of the block, stop reason with usage, message_stop."""
        return [
            _named({"type": "content_block_stop", "index": 0}),
            _named(
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": answer.output_tokens},
                }
            ),
            _named({"type": "message_stop"}),
        ]

    def _message(self, answer: Answer, output_tokens: int) -> Json:
        return {
            "id": f"msg_{answer.uid}",
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": answer.input_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": output_tokens,
            },
        }


class GeminiContent:
    """`generateContent` and `streamGenerateContent?alt=sse`."""

    def read(self, body: Json) -> Reading:
        """Take `contents`, and the system instruction into the count."""
        system = body.get("systemInstruction", body.get("system_instruction"))
        return _read_turns(body.get("contents"), system)

    def whole(self, answer: Answer) -> Json:
        """Return a GenerateContentResponse."""
        return self._response(answer, answer.text, answer.output_tokens, "STOP")

    def opening(self, answer: Answer) -> list[bytes]:
        """Return nothing: each event is whole."""
        return []

    def piece(self, answer: Answer, index: int) -> bytes:
        """Return one response with one piece; the last carries the finish reason."""
        last = index + 1 == len(answer.pieces)
        body = self._response(answer, answer.pieces[index], index + 1, "STOP" if last else None)
        return self._frame(body, index)

    def closing(self, answer: Answer) -> list[bytes]:
        """Return nothing, or the one response of an empty answer."""
        if answer.pieces:
            return []
        return [self._frame(self._response(answer, "", 0, "STOP"), 0)]

    def _frame(self, body: Json, index: int) -> bytes:
        return _data(body)

    def _response(self, answer: Answer, text: str, tokens: int, finish: str | None) -> Json:
        candidate: Json = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        return {
            "candidates": [candidate],
            "usageMetadata": {
                "promptTokenCount": answer.input_tokens,
                "candidatesTokenCount": tokens,
                "totalTokenCount": answer.input_tokens + tokens,
            },
            "modelVersion": answer.model,
            "responseId": answer.uid,
        }


class GeminiArray(GeminiContent):
    """`streamGenerateContent` without `alt=sse`: one JSON array that grows."""

    def closing(self, answer: Answer) -> list[bytes]:
        """Close the array."""
        return [*super().closing(answer), b"]"]

    def _frame(self, body: Json, index: int) -> bytes:
        return (b",\r\n" if index else b"[") + orjson.dumps(body)


def _openai_usage(prompt: int, completion: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
