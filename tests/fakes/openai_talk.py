"""OpenAI's bodies and stream frames: chat, completions, responses, embeddings. No I/O."""

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
    word,
    words_of,
)


class OpenAITalk:
    """One request."""

    stream_type = "text/event-stream; charset=utf-8"

    def __init__(self, script: Script, record: Request, document: Json) -> None:
        self._script = script
        self._model = record.model or "fake"
        self._id = record.id
        path = record.path.partition("?")[0]
        self._kind = path.rsplit("/", 1)[-1]
        self._input = words_of(document, "messages")
        options = document.get("stream_options") or {}
        self._asked = options.get("include_usage") is True
        self._document = document
        limits = {"x-ratelimit-%s-requests": "999", "x-ratelimit-%s-tokens": "9999"}
        self.head = {
            "x-request-id": f"fake-{record.id}",
            "openai-processing-ms": "1",
        } | limit_headers(script, limits, "30s")

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

    def whole(self) -> Json:
        usage = {} if self._script.usage == "never" else {"usage": self.usage(self._script.chunks)}
        padding = {"padding": "x" * self._script.padding} if self._script.padding else {}
        return self._body() | usage | padding

    def _body(self) -> Json:
        if self._kind == "embeddings":
            vectors = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
            return {"object": "list", "data": vectors, "model": self._model}
        if self._kind == "responses":
            calls = [self._call_item(i, WEATHER) for i in range(self._script.tools)]
            said = self._item("completed", text(self._script.chunks))
            return self._response("completed", [said, *calls])
        if self._kind == "completions" and "messages" not in self._document:
            choice: Json = {"index": 0, "text": text(self._script.chunks), "finish_reason": "stop"}
            return self._envelope("text_completion", choice)
        message: Json = {"role": "assistant", "content": text(self._script.chunks)}
        if self._script.tools:
            message["tool_calls"] = [self._call(i, WEATHER) for i in range(self._script.tools)]
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return self._envelope("chat.completion", choice)

    @property
    def _finish(self) -> str:
        return self._script.finishing or ("tool_calls" if self._script.tools else "stop")

    def _call(self, index: int, arguments: Json | None) -> Json:
        said = json.dumps(arguments, ensure_ascii=False) if arguments is not None else ""
        function = {"name": "get_weather", "arguments": said}
        return {"id": f"call_{self._id}_{index}", "type": "function", "function": function}

    def _call_item(self, index: int, arguments: Json | None) -> Json:
        return {
            "id": f"fc_{self._id}_{index}",
            "type": "function_call",
            "status": "in_progress" if arguments is None else "completed",
            "call_id": f"call_{self._id}_{index}",
            "name": "get_weather",
            "arguments": "" if arguments is None else json.dumps(arguments),
        }

    def _call_events(self, number: int) -> list[bytes]:
        frames = []
        said = json.dumps(WEATHER)
        for index in range(self._script.tools):
            place = {"output_index": index + 1, "item_id": f"fc_{self._id}_{index}"}
            item = {"output_index": index + 1, "item": self._call_item(index, None)}
            done = {"output_index": index + 1, "item": self._call_item(index, WEATHER)}
            kind = "response.function_call_arguments"
            frames += [
                self._event(number, "response.output_item.added", item),
                self._event(number + 1, f"{kind}.delta", place | {"delta": said[:9]}),
                self._event(number + 2, f"{kind}.delta", place | {"delta": said[9:]}),
                self._event(
                    number + 3, f"{kind}.done", place | {"name": "get_weather", "arguments": said}
                ),
                self._event(number + 4, "response.output_item.done", done),
            ]
            number += 5
        return frames

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
        said = word(index)
        if self._kind == "responses":
            more = self._place() | {"delta": said, "logprobs": []}
            return self._event(4 + index, "response.output_text.delta", more)
        if self._chat:
            return self._delta({"content": said}, None, index + 1)
        return self._data(self._envelope("text_completion", _text_choice(said, None)))

    def closing(self) -> list[bytes]:
        chunks, script = self._script.chunks, self._script
        if self._kind == "responses":
            if not script.finish:
                return []
            done = self.whole()
            item = self._item("completed", text(self._script.chunks))
            return [
                self._event(
                    4 + chunks,
                    "response.output_text.done",
                    self._place() | {"text": text(self._script.chunks), "logprobs": []},
                ),
                self._event(
                    5 + chunks,
                    "response.content_part.done",
                    self._place() | {"part": _part(text(self._script.chunks))},
                ),
                self._event(
                    6 + chunks, "response.output_item.done", {"output_index": 0, "item": item}
                ),
                *self._call_events(7 + chunks),
                self._event(
                    7 + chunks + 5 * script.tools, "response.completed", {"response": done}
                ),
            ]
        frames = []
        if self._chat:
            for index in range(script.tools):
                begun = {"index": index} | self._call(index, None)
                frames.append(self._delta({"tool_calls": [begun]}, None, chunks))
                said = json.dumps(WEATHER, ensure_ascii=False)
                for part in (said[:9], said[9:]):
                    more = {"index": index, "function": {"arguments": part}}
                    frames.append(self._delta({"tool_calls": [more]}, None, chunks))
        if script.finish and self._chat:
            frames.append(self._delta({}, self._finish, chunks))
        elif script.finish:
            frames.append(self._data(self._envelope("text_completion", _text_choice("", "stop"))))
        if self.reports_usage:
            kind = "chat.completion.chunk" if self._chat else "text_completion"
            last = self._envelope(kind) | {"usage": self.usage(chunks)}
            frames.append(self._data(last))
        if script.done:
            frames.append(b"data: [DONE]\n\n")
        return frames

    def failure(self, status: int) -> Json:
        code = self._script.code or None
        return {
            "error": {
                "message": self._script.error,
                "type": "fake_error",
                "param": None,
                "code": code,
            }
        }

    def error(self) -> bytes:
        if self._kind == "responses":
            return self._event(
                9,
                "error",
                {"code": self._script.code or "server_error", "message": self._script.error},
            )
        code = self._script.code or None
        error = {"message": self._script.error, "type": "server_error", "code": code}
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

    def _item(self, status: str, said: str) -> Json:
        content = [_part(said)] if said else []
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
        body = dumps(self._script, {"type": kind, "sequence_number": number} | more)
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _data(self, event: Json) -> bytes:
        return b"data: " + dumps(self._script, event) + b"\n\n"


def _part(said: str) -> Json:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _text_choice(said: str, finish: str | None) -> Json:
    return {"index": 0, "text": said, "logprobs": None, "finish_reason": finish}
