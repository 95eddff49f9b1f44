"""
Answers of OpenAI Chat Completions, as Claude Messages gives them.

A stream keeps Claude's rules: one message_start, blocks that never overlap with indexes from 0 without gaps,
one message_delta that has waited for the usage, one message_stop at the end. Tool calls may arrive in pieces,
interleaved, without id or name; each becomes one block, its arguments one delta. Not here: the way there
(claude_to_openai.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay.errors import Sent, UpstreamError
from patchbay.sse import event_data
from patchbay_gateway.translate import tools
from patchbay_gateway.translate.documents import (
    Document,
    mapping,
    number,
    read_answer,
    sequence,
    text,
    write,
)

if TYPE_CHECKING:
    from patchbay_gateway.translate.port import Context

_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "end_turn",
}


def usage_of(said: Document) -> Document:
    """Return Claude's usage: input tokens exclude what was read from the cache."""
    details = mapping(said.get("prompt_tokens_details"))
    cached = number(details.get("cached_tokens"))
    usage: Document = {
        "input_tokens": max(0, number(said.get("prompt_tokens")) - cached),
        "output_tokens": number(said.get("completion_tokens")),
    }
    if cached:
        usage["cache_read_input_tokens"] = cached
    return usage


def stop_reason(finish: str, *, called: bool) -> str:
    """Return Claude's word; a call that was given decides, whatever the provider says."""
    if called:
        return "tool_use"
    reason = _REASONS.get(finish, "end_turn")
    return "end_turn" if reason == "tool_use" else reason


def translate_answer(context: Context, body: bytes) -> bytes:
    """
    Translate a whole answer.

    Raises:
        UpstreamError: *body* is no completion.
    """
    completion = read_answer(body)
    if completion.get("error") and not completion.get("choices"):
        raise failure(body)
    choice = mapping((sequence(completion.get("choices")) or [{}])[0])
    message = mapping(choice.get("message"))
    blocks: list[Document] = []
    if thought := _thought(message):
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    if said := _said(message.get("content")) or text(message.get("refusal")):
        blocks.append({"type": "text", "text": said})
    calls = [mapping(call) for call in sequence(message.get("tool_calls"))]
    for position, call in enumerate(calls):
        function = mapping(call.get("function"))
        blocks.append(
            {
                "type": "tool_use",
                "id": tools.claude_id(text(call.get("id")), position),
                "name": text(function.get("name")) or f"tool_{position}",
                "input": tools.arguments(text(function.get("arguments"))),
            }
        )
    return write(
        {
            "id": text(completion.get("id")),
            "type": "message",
            "role": "assistant",
            "model": text(completion.get("model")) or context.model,
            "content": blocks,
            "stop_reason": stop_reason(text(choice.get("finish_reason")), called=bool(calls)),
            "stop_sequence": None,
            "usage": usage_of(mapping(completion.get("usage"))),
        }
    )


def failure(body: bytes) -> UpstreamError:
    """Return the failure that an `error` document inside a 200 reports."""
    return UpstreamError(
        502,
        "the provider reported an error inside its answer",
        body=body[: 64 << 10],
        content_type="application/json",
        sent=Sent.YES,
        reason="UPSTREAM_ERROR",
    )


def count_answer(tokens: int) -> bytes:
    """Return the answer of /v1/messages/count_tokens."""
    return write({"input_tokens": tokens})


def _said(content: object) -> str:
    if isinstance(content, str):
        return content
    return "".join(text(mapping(part).get("text")) for part in sequence(content))


def _thought(message: Document) -> str:
    # Compatible servers use either name; OpenAI itself has none.
    return text(message.get("reasoning_content")) or text(message.get("reasoning"))


@dataclass(slots=True)
class _Call:
    """One tool call of a stream, as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Stream:
    """One streamed answer."""

    def __init__(self, context: Context) -> None:
        self._model = context.model
        self._id = ""
        self._started = False
        self._blocks = 0
        self._open = ""
        self._calls: dict[int, _Call] = {}
        self._finish = ""
        self._usage: Document = {}
        self._done = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Translate one event."""
        data = event_data(chunk)
        if not data or self._done:
            return []
        if data.strip() == b"[DONE]":
            return self._conclude()
        try:
            event = mapping(orjson.loads(data))
        except orjson.JSONDecodeError:
            return []
        if event.get("error") and not event.get("choices"):
            raise failure(data)
        self._id = self._id or text(event.get("id"))
        self._model = text(event.get("model")) or self._model
        if usage := mapping(event.get("usage")):
            self._usage = usage
        frames: list[bytes] = []
        for entry in sequence(event.get("choices")):
            choice = mapping(entry)
            # Claude has one answer; further ones, which nobody can have asked for, are left out.
            if number(choice.get("index")) == 0:
                self._choice(choice, frames)
        return frames

    def end(self) -> list[bytes]:
        """Conclude a stream that has a reason for its end but no `[DONE]`; refuse any other."""
        if self._done:
            return []
        if self._finish:
            return self._conclude()
        raise UpstreamError(
            502,
            "the provider's stream ended before it was complete",
            sent=Sent.YES,
            reason="UPSTREAM_TRUNCATED",
        )

    def _choice(self, choice: Document, frames: list[bytes]) -> None:
        delta = mapping(choice.get("delta"))
        if not self._started:
            frames.append(self._start())
        if thought := _thought(delta):
            self._piece("thinking", {"type": "thinking_delta", "thinking": thought}, frames)
        if said := text(delta.get("content")) or text(delta.get("refusal")):
            self._piece("text", {"type": "text_delta", "text": said}, frames)
        for entry in sequence(delta.get("tool_calls")):
            self._call(mapping(entry))
        if finish := text(choice.get("finish_reason")):
            self._finish = finish
            self._close(frames)
            self._flush(frames)

    def _call(self, piece: Document) -> None:
        call = self._calls.setdefault(number(piece.get("index")), _Call())
        function = mapping(piece.get("function"))
        call.id = call.id or text(piece.get("id"))
        call.name = call.name or text(function.get("name"))
        if arguments := text(function.get("arguments")):
            call.arguments.append(arguments)

    def _piece(self, kind: str, delta: Document, frames: list[bytes]) -> None:
        if self._open != kind:
            self._close(frames)
            block: Document = {"type": kind, kind: ""}
            frames.append(self._begin(block))
            self._open = kind
        frames.append(_frame("content_block_delta", {"index": self._blocks, "delta": delta}))

    def _begin(self, block: Document) -> bytes:
        return _frame("content_block_start", {"index": self._blocks, "content_block": block})

    def _close(self, frames: list[bytes]) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            # The provider has none; a block without one is refused by strict clients.
            delta = {"type": "signature_delta", "signature": ""}
            frames.append(_frame("content_block_delta", {"index": self._blocks, "delta": delta}))
        frames.append(_frame("content_block_stop", {"index": self._blocks}))
        self._blocks += 1
        self._open = ""

    def _flush(self, frames: list[bytes]) -> None:
        """Give the calls that came, in the provider's order; one without any content is none."""
        for index in sorted(self._calls):
            call = self._calls[index]
            if not (call.id or call.name or call.arguments):
                del self._calls[index]
                continue
            block = {
                "type": "tool_use",
                "id": tools.claude_id(call.id, index),
                "name": call.name or f"tool_{index}",
                "input": {},
            }
            delta = {
                "type": "input_json_delta",
                "partial_json": tools.repaired("".join(call.arguments)),
            }
            frames += (
                self._begin(block),
                _frame("content_block_delta", {"index": self._blocks, "delta": delta}),
                _frame("content_block_stop", {"index": self._blocks}),
            )
            self._blocks += 1

    def _start(self) -> bytes:
        self._started = True
        message: Document = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _frame("message_start", {"message": message})

    def _conclude(self) -> list[bytes]:
        self._done = True
        frames: list[bytes] = []
        if not self._started:
            frames.append(self._start())
        if not self._finish:
            self._close(frames)
            self._flush(frames)
        reason = stop_reason(self._finish, called=bool(self._calls))
        frames += (
            _frame(
                "message_delta",
                {
                    "delta": {"stop_reason": reason, "stop_sequence": None},
                    "usage": usage_of(self._usage),
                },
            ),
            _frame("message_stop", {}),
        )
        return frames


def _frame(kind: str, fields: dict[str, Any]) -> bytes:
    data = orjson.dumps({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
