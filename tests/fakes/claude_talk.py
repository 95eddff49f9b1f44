"""Anthropic's bodies and stream frames: messages and count_tokens. No I/O."""

from __future__ import annotations

import json

from tests.fakes.script import (
    WEATHER,
    Json,
    Request,
    Script,
    dumps,
    limit_headers,
    text,
    thinking,
    thought,
    word,
    words_of,
)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_LIMITS = {
    "anthropic-ratelimit-requests-%s": "999",
    "anthropic-ratelimit-tokens-%s": "9999",
    "anthropic-ratelimit-input-tokens-%s": "8000",
    "anthropic-ratelimit-output-tokens-%s": "1999",
}
RESET = "2030-01-01T00:00:30Z"
"""When limits start anew: far away, so that a reader sees who believes it."""


class ClaudeTalk:
    """One request."""

    stream_type = "text/event-stream; charset=utf-8"

    def __init__(self, script: Script, record: Request, document: Json) -> None:
        self._script = script
        self._model = record.model or "fake"
        self._id = record.id
        self._counting = record.path.partition("?")[0].endswith("/count_tokens")
        self._input = words_of(document, "system", "messages", "tools")
        self.reports_usage = script.usage != "never"
        self.head = {
            "request-id": f"req_fake{record.id}",
            "anthropic-organization-id": "fake-organization",
        } | limit_headers(script, _LIMITS, RESET)

    def tokens(self, output: int) -> dict[str, int]:
        """Return what is reported, in the units of a ledger."""
        if self._counting:
            return {}
        script = self._script
        found = {
            "input_tokens": self._input + script.cached + script.created,
            "output_tokens": output + script.reasoning,
            "cache_read_tokens": script.cached,
            "cache_creation_tokens": script.created,
            "cache_creation_5m_tokens": script.created - script.created_1h,
            "cache_creation_1h_tokens": script.created_1h,
            "reasoning_tokens": script.reasoning,
            "web_search_requests": script.searches,
        }
        return {
            unit: n for unit, n in found.items() if n or unit in {"input_tokens", "output_tokens"}
        }

    def whole(self) -> Json:
        """Return a message, or a count."""
        if self._counting:
            return {"input_tokens": self._input}
        script = self._script
        content: list[Json] = []
        if script.reasoning:
            said = thinking(script.reasoning)
            content.append({"type": "thinking", "thinking": said, "signature": "c2lnbmVk"})
        content.append({"type": "text", "text": text(script.chunks)})
        content += [self._call(i, WEATHER) for i in range(script.tools)]
        message = self._message(content, self._reason, script.chunks)
        if script.padding:
            message["padding"] = "x" * script.padding
        return message

    def opening(self) -> list[bytes]:
        """Return the start of the message, the thinking and the start of the text."""
        script = self._script
        started = self._message([], None, 0)
        if "usage" in started:
            started["usage"]["output_tokens"] = 1
        frames = [self._event("message_start", {"message": started})]
        if script.pings:
            frames.append(b'event: ping\ndata: {"type": "ping"}\n\n')
        if script.reasoning:
            frames.append(self._start(0, {"type": "thinking", "thinking": "", "signature": ""}))
            frames += [
                self._delta(0, {"type": "thinking_delta", "thinking": thought(i)})
                for i in range(script.reasoning)
            ]
            frames.append(self._delta(0, {"type": "signature_delta", "signature": "c2lnbmVk"}))
            frames.append(self._event("content_block_stop", {"index": 0}))
        frames.append(self._start(self._text_at, {"type": "text", "text": ""}))
        return frames

    def piece(self, index: int) -> bytes:
        """Return one word."""
        return self._delta(self._text_at, {"type": "text_delta", "text": word(index)})

    def closing(self) -> list[bytes]:
        """Return the end of the text, the calls and the end of the message."""
        script, at = self._script, self._text_at
        frames = [self._event("content_block_stop", {"index": at})]
        if script.pings:
            frames.append(b'event: ping\ndata: {"type": "ping"}\n\n')
        said = json.dumps(WEATHER)
        for number in range(script.tools):
            at += 1
            frames.append(self._start(at, self._call(number, {})))
            frames += [
                self._delta(at, {"type": "input_json_delta", "partial_json": part})
                for part in ("", said[:9], said[9:])
            ]
            frames.append(self._event("content_block_stop", {"index": at}))
        if script.finish:
            last: Json = {"delta": {"stop_reason": self._reason, "stop_sequence": None}}
            if self.reports_usage:
                last["usage"] = self._usage(script.chunks)
            frames.append(self._event("message_delta", last))
        if script.finish and script.done:
            frames.append(self._event("message_stop", {}))
        return frames

    def error(self) -> bytes:
        """Return `event: error`."""
        kind = self._script.code or "overloaded_error"
        body = {"type": "error", "error": {"type": kind, "message": self._script.error}}
        return b"event: error\ndata: " + dumps(self._script, body) + b"\n\n"

    def failure(self, status: int) -> Json:
        """Return the envelope."""
        kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        inner = {"type": self._script.code or kind, "message": self._script.error}
        return {"type": "error", "error": inner, "request_id": f"req_fake{self._id}"}

    @property
    def _text_at(self) -> int:
        return 1 if self._script.reasoning else 0

    @property
    def _reason(self) -> str:
        script = self._script
        regular = "tool_use" if script.tools else "end_turn"
        return script.finishing or ("refusal" if script.blocked else regular)

    def _usage(self, output: int) -> Json:
        script = self._script
        usage: Json = {
            "input_tokens": self._input,
            "cache_creation_input_tokens": script.created,
            "cache_read_input_tokens": script.cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": script.created - script.created_1h,
                "ephemeral_1h_input_tokens": script.created_1h,
            },
            "output_tokens": output + (script.reasoning if output else 0),
            "service_tier": "standard",
        }
        if script.reasoning and output:
            usage["output_tokens_details"] = {"thinking_tokens": script.reasoning}
        if script.searches and output:
            usage["server_tool_use"] = {
                "web_search_requests": script.searches,
                "web_fetch_requests": 0,
            }
        return usage

    def _message(self, content: list[Json], reason: str | None, output: int) -> Json:
        message: Json = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
        }
        if self.reports_usage:
            message["usage"] = self._usage(output)
        return message

    def _call(self, index: int, arguments: Json) -> Json:
        return {
            "type": "tool_use",
            "id": f"toolu_{self._id}_{index}",
            "name": "get_weather",
            "input": arguments,
        }

    def _start(self, index: int, block: Json) -> bytes:
        return self._event("content_block_start", {"index": index, "content_block": block})

    def _delta(self, index: int, delta: Json) -> bytes:
        return self._event("content_block_delta", {"index": index, "delta": delta})

    def _event(self, kind: str, more: Json) -> bytes:
        body = dumps(self._script, {"type": kind} | more)
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)
