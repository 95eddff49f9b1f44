"""
Answers of Claude Messages, as OpenAI Chat Completions gives them.

A stream begins with the role, gives text and thinking as they come, a tool call whole when its block ends,
one chunk with the reason for the end, the usage where the client asked for it, and `[DONE]`. Not here: the
way there (openai_to_claude.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from patchbay.errors import Sent, UpstreamError
from patchbay.sse import event_data
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
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "sensitive": "content_filter",
}


def finish_reason(stop: str) -> str:
    """Return OpenAI's word for Claude's reason to stop."""
    return _REASONS.get(stop, "stop")


def usage_of(said: Document) -> Document:
    """Return OpenAI's usage: prompt tokens include what was read from and written to the cache."""
    read = number(said.get("cache_read_input_tokens"))
    created = number(said.get("cache_creation_input_tokens"))
    prompt = number(said.get("input_tokens")) + read + created
    output = number(said.get("output_tokens"))
    usage: Document = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    if read or created:
        usage["prompt_tokens_details"] = {"cached_tokens": read, "cached_creation_tokens": created}
    return usage


def translate_answer(context: Context, body: bytes) -> bytes:
    """
    Translate a whole answer.

    Raises:
        UpstreamError: *body* is no message.
    """
    message = read_answer(body)
    if message.get("type") == "error":
        raise failure(message, body)
    said, thought, calls = "", "", []
    for block in map(mapping, sequence(message.get("content"))):
        kind = block.get("type")
        if kind == "text":
            said += text(block.get("text"))
        elif kind == "thinking":
            thought += text(block.get("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block, orjson.dumps(mapping(block.get("input"))).decode()))
    answer: Document = {"role": "assistant", "content": said if said or not calls else None}
    if thought:
        answer["reasoning_content"] = thought
    if calls:
        answer["tool_calls"] = calls
    return write(
        {
            "id": text(message.get("id")),
            "object": "chat.completion",
            "created": context.created,
            "model": text(message.get("model")) or context.model,
            "choices": [
                {
                    "index": 0,
                    "message": answer,
                    "finish_reason": finish_reason(text(message.get("stop_reason"))),
                }
            ],
            "usage": usage_of(mapping(message.get("usage"))),
        }
    )


def failure(document: Document, body: bytes) -> UpstreamError:
    """Return the failure that an `error` document inside a 200 reports."""
    return UpstreamError(
        502,
        "the provider reported an error inside its answer",
        body=body[: 64 << 10],
        content_type="application/json",
        sent=Sent.YES,
        reason=text(mapping(document.get("error")).get("type")).upper() or "UPSTREAM_ERROR",
    )


def _call(block: Document, arguments: str) -> Document:
    return {
        "id": text(block.get("id")),
        "type": "function",
        "function": {"name": text(block.get("name")), "arguments": arguments},
    }


class Stream:
    """One streamed answer."""

    def __init__(self, context: Context) -> None:
        self._created = context.created
        self._id = ""
        self._model = context.model
        self._usage: Document = {}
        self._asked = _asked_for_usage(context.original_request)
        self._block: Document = {}
        self._arguments: list[str] = []
        self._calls = 0
        self._reason = ""
        self._done = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Translate one event."""
        data = event_data(chunk)
        if not data or self._done:
            return []
        try:
            event = mapping(orjson.loads(data))
        except orjson.JSONDecodeError:
            return []
        kind = event.get("type")
        if kind == "error":
            raise failure(event, data)
        handler = _HANDLERS.get(text(kind))
        return handler(self, event) if handler is not None else []

    def end(self) -> list[bytes]:
        """Refuse a stream that has not said its last word."""
        if self._done:
            return []
        raise UpstreamError(
            502,
            "the provider's stream ended before it was complete",
            sent=Sent.YES,
            reason="UPSTREAM_TRUNCATED",
        )

    def _start(self, event: Document) -> list[bytes]:
        message = mapping(event.get("message"))
        self._id = text(message.get("id"))
        self._model = text(message.get("model")) or self._model
        self._usage = dict(mapping(message.get("usage")))
        return [self._delta({"role": "assistant", "content": ""})]

    def _block_start(self, event: Document) -> list[bytes]:
        self._block = mapping(event.get("content_block"))
        self._arguments = []
        return []

    def _block_delta(self, event: Document) -> list[bytes]:
        delta = mapping(event.get("delta"))
        kind = delta.get("type")
        if kind == "text_delta":
            return [self._delta({"content": text(delta.get("text"))})]
        if kind == "thinking_delta":
            return [self._delta({"reasoning_content": text(delta.get("thinking"))})]
        if kind == "input_json_delta":
            self._arguments.append(text(delta.get("partial_json")))
        return []

    def _block_stop(self, _: Document) -> list[bytes]:
        block, self._block = self._block, {}
        if block.get("type") != "tool_use":
            return []
        arguments = "".join(self._arguments)
        if not arguments:
            arguments = orjson.dumps(mapping(block.get("input"))).decode()
        call = {"index": self._calls, **_call(block, arguments)}
        self._calls += 1
        return [self._delta({"tool_calls": [call]})]

    def _message_delta(self, event: Document) -> list[bytes]:
        self._usage.update({k: v for k, v in mapping(event.get("usage")).items() if v is not None})
        reason = text(mapping(event.get("delta")).get("stop_reason"))
        self._reason = finish_reason(reason) if reason else self._reason
        return []

    def _stop(self, _: Document) -> list[bytes]:
        self._done = True
        chunks = [self._delta({}, self._reason or "stop")]
        if self._asked:
            chunks.append(self._chunk([], usage=usage_of(self._usage)))
        return [*chunks, b"data: [DONE]\n\n"]

    def _delta(self, delta: Document, reason: str | None = None) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": reason}])

    def _chunk(self, choices: list[Document], *, usage: Document | None = None) -> bytes:
        document: Document = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._asked:
            document["usage"] = usage
        return b"data: " + orjson.dumps(document) + b"\n\n"


_HANDLERS: Final = {
    "message_start": Stream._start,  # noqa: SLF001 - the class's own table
    "content_block_start": Stream._block_start,  # noqa: SLF001
    "content_block_delta": Stream._block_delta,  # noqa: SLF001
    "content_block_stop": Stream._block_stop,  # noqa: SLF001
    "message_delta": Stream._message_delta,  # noqa: SLF001
    "message_stop": Stream._stop,  # noqa: SLF001
}


def _asked_for_usage(original: bytes) -> bool:
    if b"include_usage" not in original:
        return False
    options = mapping(orjson.loads(original)).get("stream_options")
    return mapping(options).get("include_usage") is True
