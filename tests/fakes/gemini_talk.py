"""Google's bodies and stream frames: generateContent, streamGenerateContent, countTokens. No I/O."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

from tests.fakes.script import (
    PIXEL,
    WEATHER,
    Json,
    Request,
    Script,
    dumps,
    text,
    thinking,
    thought,
    word,
    words_of,
)

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPE = "type.googleapis.com/google.rpc."


def action(path: str) -> tuple[str, str]:
    """Return model and action of a path (still percent-encoded), two empty strings for other paths."""
    name, _, what = path.partition("?")[0].rpartition("/models/")[2].rpartition(":")
    return name, what


class GeminiTalk:
    """One request. Events end with CRLF, as Google's do."""

    def __init__(self, script: Script, record: Request, document: Json) -> None:
        self._script = script
        self._model = record.model or "fake"
        self._id = record.id
        path, _, query = record.path.partition("?")
        self._counting = path.endswith(":countTokens")
        self._array = record.stream and dict(parse_qsl(query)).get("alt") != "sse"
        self._sent = 0
        inner = document.get("generateContentRequest", document)
        self._input = words_of(inner, "systemInstruction", "contents", "tools")
        self.reports_usage = script.usage != "never"
        self.head = {"server": "scaffolding on HTTPServer2", "x-gemini-service-tier": "standard"}
        self.stream_type = "application/json; charset=UTF-8" if self._array else "text/event-stream"

    def tokens(self, output: int) -> dict[str, int]:
        """Return what is reported, in the units of a ledger."""
        if self._counting:
            return {}
        script = self._script
        found = {
            "input_tokens": self._input + script.cached + script.searches,
            "output_tokens": output + script.reasoning,
            "cache_read_tokens": script.cached,
            "reasoning_tokens": script.reasoning,
            "tool_use_prompt_tokens": script.searches,
        }
        return {
            unit: n for unit, n in found.items() if n or unit in {"input_tokens", "output_tokens"}
        }

    def whole(self) -> Json:
        """Return a response, or a count."""
        script = self._script
        if self._counting:
            details = [{"modality": "TEXT", "tokenCount": self._input}]
            return {"totalTokens": self._input, "promptTokensDetails": details}
        if script.blocked:
            return self._blocked()
        parts: list[Json] = []
        if script.reasoning:
            parts.append({"text": thinking(script.reasoning), "thought": True})
        parts.append({"text": text(script.chunks)})
        parts += self._extra_parts()
        body = self._response(parts, self._reason, script.chunks)
        if script.padding:
            body["padding"] = "x" * script.padding
        return body

    def opening(self) -> list[bytes]:
        """Return the thoughts."""
        return [
            self._frame(self._response([{"text": thought(i), "thought": True}], None, 0, i + 1))
            for i in range(self._script.reasoning)
        ]

    def piece(self, index: int) -> bytes:
        """Return one word."""
        return self._frame(self._response([{"text": word(index)}], None, index + 1))

    def closing(self) -> list[bytes]:
        """Return calls and pictures, and the reason of the end."""
        script = self._script
        frames = []
        if script.blocked:
            frames.append(self._frame(self._blocked()))
        elif script.finish:
            parts = self._extra_parts() or [{"text": ""}]
            frames.append(self._frame(self._response(parts, self._reason, script.chunks)))
        if self._array:
            frames.append(b"\n]\n" if self._sent else b"[]")
        return frames

    def error(self) -> bytes:
        """Return an event that is an error, or bare JSON over many lines."""
        body = self.failure(503)
        if self._script.bare_error:
            return json.dumps(body, indent=2).encode() + b"\n"
        return self._frame(body)

    def failure(self, status: int) -> Json:
        """Return google.rpc.Status as JSON."""
        script = self._script
        inner: Json = {
            "code": status,
            "message": script.error,
            "status": script.code
            or STATUS.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"),
        }
        details: list[Json] = []
        if script.reason:
            domain = {"reason": script.reason, "domain": "googleapis.com"}
            details.append({"@type": f"{_TYPE}ErrorInfo", **domain})
        if script.quota:
            dimensions = {"location": "global"}
            if script.quota == "model":
                dimensions["model"] = self._model
            violation = {
                "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
                "quotaId": "GenerateRequestsPerDayPerProject",
                "quotaDimensions": dimensions,
                "quotaValue": "50",
            }
            details.append({"@type": f"{_TYPE}QuotaFailure", "violations": [violation]})
        if script.retry_delay:
            details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": script.retry_delay})
        if details:
            inner["details"] = details
        return {"error": inner}

    @property
    def _reason(self) -> str:
        return self._script.finishing or "STOP"

    def _extra_parts(self) -> list[Json]:
        parts: list[Json] = []
        if self._script.picture:
            parts.append({"inlineData": {"mimeType": "image/png", "data": PIXEL}})
        parts += (
            {"functionCall": {"id": f"call_{i}", "name": "get_weather", "args": WEATHER}}
            for i in range(self._script.tools)
        )
        return parts

    def _blocked(self) -> Json:
        body: Json = {"promptFeedback": {"blockReason": self._script.blocked}}
        if self.reports_usage:
            usage = {"promptTokenCount": self._input, "totalTokenCount": self._input}
            body["usageMetadata"] = usage
        return body | {"modelVersion": self._model, "responseId": f"fake-{self._id}"}

    def _response(
        self, parts: list[Json], reason: str | None, output: int, thoughts: int | None = None
    ) -> Json:
        script = self._script
        candidate: Json = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if reason:
            candidate["finishReason"] = reason
        body: Json = {"candidates": [candidate]}
        if self.reports_usage:
            prompt = self._input + script.cached
            thoughts = script.reasoning if thoughts is None else thoughts
            usage = {
                "promptTokenCount": prompt,
                "candidatesTokenCount": output,
                "totalTokenCount": prompt + output + thoughts + script.searches,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
            }
            if script.cached:
                usage["cachedContentTokenCount"] = script.cached
            if thoughts:
                usage["thoughtsTokenCount"] = thoughts
            if script.searches:
                usage["toolUsePromptTokenCount"] = script.searches
            body["usageMetadata"] = usage
        return body | {"modelVersion": self._model, "responseId": f"fake-{self._id}"}

    def _frame(self, body: Json) -> bytes:
        data = dumps(self._script, body)
        if self._array:
            self._sent += 1
            return (b"[" if self._sent == 1 else b"\n,\r\n") + data
        return b"data: " + data + b"\r\n\r\n"
