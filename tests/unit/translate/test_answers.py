"""Answers between Claude Messages and OpenAI Chat Completions, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay.errors import UpstreamError
from patchbay.sse import event_data
from patchbay_gateway.translate import claude_answers, openai_answers
from patchbay_gateway.translate.port import Context, StreamTranslator

CONTEXT = Context("public", b"{}", b"{}", created=7)
ASKED = Context("public", b'{"stream_options":{"include_usage":true}}', b"{}", created=7)


def claude(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: %s\n\n" % orjson.dumps({"id": "c1", "model": "up", "choices": choices, **more})


def call(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


DONE = b"data: [DONE]\n\n"


def run(stream: StreamTranslator, *chunks: bytes) -> list[Any]:
    frames: list[bytes] = []
    for one in chunks:
        frames += stream.feed(one)
    frames += stream.end()
    return [
        data.decode() if data == b"[DONE]" else orjson.loads(data)
        for data in map(event_data, frames)
    ]


def message_start(**usage: int) -> bytes:
    return claude("message_start", message={"id": "m1", "model": "up", "usage": usage})


class TestClaudeToOpenAIClient:
    def whole(self, **fields: Any) -> dict[str, Any]:
        body = orjson.dumps({"type": "message", "id": "m1", "model": "up", **fields})
        found: dict[str, Any] = orjson.loads(claude_answers.translate_answer(CONTEXT, body))
        return found

    def test_usage_includes_what_the_cache_held(self) -> None:
        usage = {
            "input_tokens": 13,
            "cache_read_input_tokens": 22000,
            "cache_creation_input_tokens": 31,
            "output_tokens": 4,
        }
        assert self.whole(content=[], usage=usage)["usage"] == {
            "prompt_tokens": 22044,
            "completion_tokens": 4,
            "total_tokens": 22048,
            "prompt_tokens_details": {"cached_tokens": 22000, "cached_creation_tokens": 31},
        }

    @pytest.mark.parametrize(
        ("stop", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "length"),
            ("tool_use", "tool_calls"),
            ("refusal", "content_filter"),
            ("sensitive", "content_filter"),
        ],
    )
    def test_reasons(self, stop: str, finish: str) -> None:
        answer = self.whole(content=[], stop_reason=stop)
        assert answer["choices"][0]["finish_reason"] == finish

    def test_redacted_thinking_never_appears(self) -> None:
        body = orjson.dumps(self.whole(content=[{"type": "redacted_thinking", "data": "SECRET"}]))
        assert b"SECRET" not in body
        assert b"reasoning_content" not in body

    def test_error_document_is_a_failure(self) -> None:
        body = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
        with pytest.raises(UpstreamError) as caught:
            claude_answers.translate_answer(CONTEXT, body)
        assert caught.value.reason == "OVERLOADED_ERROR"

    def test_stream_and_whole_say_the_same(self) -> None:
        blocks = [
            {"type": "thinking", "thinking": "hm, so", "signature": "s"},
            {"type": "text", "text": "Hello there"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ]
        whole = self.whole(content=blocks, stop_reason="tool_use")["choices"][0]
        events = run(
            claude_answers.Stream(ASKED),
            message_start(input_tokens=5),
            claude("ping"),
            claude("content_block_start", index=0, content_block={"type": "thinking"}),
            *[
                claude(
                    "content_block_delta",
                    index=0,
                    delta={"type": "thinking_delta", "thinking": piece},
                )
                for piece in ("hm, ", "so")
            ],
            claude("content_block_stop", index=0),
            claude("content_block_start", index=1, content_block={"type": "text", "text": ""}),
            *[
                claude("content_block_delta", index=1, delta={"type": "text_delta", "text": piece})
                for piece in ("Hello ", "there")
            ],
            claude("content_block_stop", index=1),
            claude(
                "content_block_start",
                index=2,
                content_block={"type": "tool_use", "id": "t1", "name": "f", "input": {}},
            ),
            *[
                claude(
                    "content_block_delta",
                    index=2,
                    delta={"type": "input_json_delta", "partial_json": piece},
                )
                for piece in ('{"a"', ":1}")
            ],
            claude("content_block_stop", index=2),
            claude("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
            claude("message_stop"),
        )
        assert events[-1] == "[DONE]"
        usage = events[-2]
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        deltas = [e["choices"][0]["delta"] for e in events[:-2]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        said = "".join(d.get("content") or "" for d in deltas)
        thought = "".join(d.get("reasoning_content") or "" for d in deltas)
        calls = [c for d in deltas for c in d.get("tool_calls", [])]
        assert said == whole["message"]["content"]
        assert thought == whole["message"]["reasoning_content"]
        assert [{k: v for k, v in c.items() if k != "index"} for c in calls] == whole["message"][
            "tool_calls"
        ]
        assert events[-3]["choices"][0]["finish_reason"] == whole["finish_reason"]

    def test_usage_is_left_out_where_nobody_asked(self) -> None:
        events = run(
            claude_answers.Stream(CONTEXT),
            message_start(input_tokens=1),
            claude("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
            claude("message_stop"),
        )
        assert all("usage" not in e for e in events if e != "[DONE]")

    def test_error_event_is_a_failure(self) -> None:
        stream = claude_answers.Stream(CONTEXT)
        with pytest.raises(UpstreamError):
            stream.feed(claude("error", error={"type": "overloaded_error", "message": "busy"}))

    def test_truncated_stream_never_looks_finished(self) -> None:
        stream = claude_answers.Stream(CONTEXT)
        stream.feed(message_start())
        with pytest.raises(UpstreamError, match="before it was complete"):
            stream.end()


class TestOpenAIToClaudeClient:
    def run(self, *chunks: bytes) -> list[dict[str, Any]]:
        events = run(openai_answers.Stream(CONTEXT), *chunks)
        self.check_shape(events)
        return events

    @staticmethod
    def check_shape(events: list[dict[str, Any]]) -> None:
        """Check what holds for every stream: order, indexes, one of each end."""
        kinds = [e["type"] for e in events]
        assert kinds[0] == "message_start"
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert [kinds.count(k) for k in ("message_start", "message_delta", "message_stop")] == [
            1
        ] * 3
        open_block, following = None, 0
        for event in events[1:-2]:
            if event["type"] == "content_block_start":
                assert open_block is None
                assert event["index"] == following
                open_block = event["index"]
            elif event["type"] == "content_block_delta":
                assert event["index"] == open_block
            else:
                assert event["index"] == open_block
                open_block, following = None, following + 1
        assert open_block is None

    @staticmethod
    def tools(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            e["content_block"]
            for e in events
            if e["type"] == "content_block_start" and e["content_block"]["type"] == "tool_use"
        ]

    @staticmethod
    def reason(events: list[dict[str, Any]]) -> str:
        found: str = events[-2]["delta"]["stop_reason"]
        return found

    def test_late_usage_comes_before_the_one_end(self) -> None:
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        events = self.run(chunk({"content": "hi"}), chunk({}, "stop"), chunk(usage=usage), DONE)
        assert events[-2]["usage"] == {
            "input_tokens": 6,
            "output_tokens": 2,
            "cache_read_input_tokens": 4,
        }
        assert self.reason(events) == "end_turn"

    def test_nothing_follows_the_end(self) -> None:
        stream = openai_answers.Stream(CONTEXT)
        stream.feed(chunk({"content": "hi"}, "stop"))
        stream.feed(DONE)
        assert stream.feed(chunk(call(id="late"))) == []
        assert stream.end() == []

    @pytest.mark.parametrize("name", [None, 5, ""])
    def test_call_without_name_gets_one(self, name: Any) -> None:
        events = self.run(
            chunk(call(id="c1", function={"name": name, "arguments": "{}"})),
            chunk({}, "tool_calls"),
            DONE,
        )
        (tool,) = self.tools(events)
        assert (tool["id"], tool["name"]) == ("c1", "tool_0")
        assert self.reason(events) == "tool_use"

    def test_name_repeated_or_null_later_starts_nothing_new(self) -> None:
        events = self.run(
            chunk(call(id="c1", function={"name": "f", "arguments": '{"a"'})),
            chunk(call(function={"name": None, "arguments": ":"})),
            chunk(call(function={"name": "f", "arguments": "1}"})),
            chunk({}, "tool_calls"),
            DONE,
        )
        (tool,) = self.tools(events)
        assert tool["name"] == "f"
        (delta,) = [e["delta"] for e in events if e["type"] == "content_block_delta"]
        assert delta == {"type": "input_json_delta", "partial_json": '{"a":1}'}

    def test_call_without_any_content_is_none(self) -> None:
        events = self.run(chunk(call(function={"name": ""})), chunk({}, "tool_calls"), DONE)
        assert self.tools(events) == []
        assert self.reason(events) == "end_turn"

    def test_call_without_id_gets_one(self) -> None:
        events = self.run(
            chunk(call(function={"name": "f", "arguments": "{}"})), chunk({}, "stop"), DONE
        )
        (tool,) = self.tools(events)
        assert tool["id"] == "toolu_0"
        assert self.reason(events) == "tool_use"

    def test_id_that_comes_later_is_used(self) -> None:
        events = self.run(
            chunk(call(function={"name": "f"})),
            chunk(call(id="real")),
            chunk({}, "tool_calls"),
            DONE,
        )
        assert self.tools(events)[0]["id"] == "real"

    def test_interleaved_calls_come_in_the_providers_order(self) -> None:
        events = self.run(
            chunk({"content": "so"}),
            chunk(call(1, id="b", function={"name": "g", "arguments": "{}"})),
            chunk(call(0, id="a", function={"name": "f", "arguments": "{}"})),
            chunk({}, "tool_calls"),
            DONE,
        )
        assert [t["id"] for t in self.tools(events)] == ["a", "b"]

    def test_thinking_text_and_call_are_blocks_in_order(self) -> None:
        events = self.run(
            chunk({"role": "assistant", "reasoning_content": "hm"}),
            chunk({"content": "hi"}),
            chunk(call(id="c", function={"name": "f", "arguments": "{'a': 1}"})),
            chunk({}, "tool_calls"),
            DONE,
        )
        starts = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
        assert starts == ["thinking", "text", "tool_use"]
        pieces = [
            e["delta"]["partial_json"]
            for e in events
            if e["type"] == "content_block_delta" and "partial_json" in e["delta"]
        ]
        assert pieces == ['{"a":1}']

    def test_stream_without_done_but_with_a_reason_is_complete(self) -> None:
        assert self.reason(self.run(chunk({"content": "x"}, "length"))) == "max_tokens"

    def test_truncated_stream_never_looks_finished(self) -> None:
        stream = openai_answers.Stream(CONTEXT)
        stream.feed(chunk({"content": "x"}))
        with pytest.raises(UpstreamError):
            stream.end()

    def test_error_inside_the_stream_is_a_failure(self) -> None:
        with pytest.raises(UpstreamError):
            openai_answers.Stream(CONTEXT).feed(b'data: {"error":{"message":"busy"}}\n\n')

    def test_whole_answer(self) -> None:
        body = orjson.dumps({
            "id": "c1",
            "model": "up",
            "choices": [
                {
                    "message": {
                        "content": "hi",
                        "reasoning_content": "hm",
                        "tool_calls": [
                            {"id": "a b", "function": {"name": "f", "arguments": '{"x":1}'}}
                        ],
                    },
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        })  # fmt: skip
        assert orjson.loads(openai_answers.translate_answer(CONTEXT, body)) == {
            "id": "c1",
            "type": "message",
            "role": "assistant",
            "model": "up",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "hi"},
                {"type": "tool_use", "id": "a_b", "name": "f", "input": {"x": 1}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 1},
        }

    def test_body_that_is_no_object_is_a_failure(self) -> None:
        with pytest.raises(UpstreamError):
            openai_answers.translate_answer(CONTEXT, b"<html>")
