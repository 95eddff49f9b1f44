"""Requests between OpenAI Chat Completions and Claude Messages."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay.errors import InvalidRequest
from patchbay_gateway.translate import claude_to_openai, openai_to_claude

PIXEL = "data:image/png;base64,aGVsbG8="


def to_claude(**given: Any) -> dict[str, Any]:
    body = orjson.dumps({"model": "m", **given})
    found: dict[str, Any] = orjson.loads(openai_to_claude.translate_request("up", body, False))
    return found


def to_openai(*, stream: bool = False, **given: Any) -> dict[str, Any]:
    body = orjson.dumps({"model": "m", **given})
    found: dict[str, Any] = orjson.loads(claude_to_openai.translate_request("up", body, stream))
    return found


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


class TestOpenAIToClaude:
    def test_request_names_the_upstream_model(self) -> None:
        assert to_claude(messages=[user("hi")])["model"] == "up"

    def test_tool_result_and_adjacent_user_text_share_one_message(self) -> None:
        found = to_claude(
            messages=[
                user("go"),
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "42"},
                user("and now?"),
            ]
        )
        last = found["messages"][-1]
        assert [b["type"] for b in last["content"]] == ["tool_result", "text"]
        assert len(found["messages"]) == 3

    def test_system_between_user_messages_does_not_split_the_turn(self) -> None:
        part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
        found = to_claude(messages=[user([part]), {"role": "system", "content": "s"}, user("b")])
        assert len(found["messages"]) == 1
        assert found["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
        assert found["system"] == [{"type": "text", "text": "s"}]

    def test_tool_call_ids_are_spelled_as_claude_takes_them_on_both_sides(self) -> None:
        found = to_claude(
            messages=[
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "call.with space:1",
                            "function": {"name": "f", "arguments": '{"a":1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call.with space:1", "content": "x"},
            ]
        )
        assert found["messages"][0]["content"][0]["id"] == "call_with_space_1"
        assert found["messages"][0]["content"][0]["input"] == {"a": 1}
        assert found["messages"][1]["content"][0]["tool_use_id"] == "call_with_space_1"

    def test_parallel_tool_results_become_one_ordered_user_message(self) -> None:
        cache = {"type": "ephemeral"}
        found = to_claude(
            messages=[
                {"role": "tool", "tool_call_id": "a", "content": "1", "cache_control": cache},
                {"role": "tool", "tool_call_id": "b", "content": "2"},
            ]
        )
        blocks = found["messages"][0]["content"]
        assert [b["tool_use_id"] for b in blocks] == ["a", "b"]
        assert blocks[0]["cache_control"] == cache

    def test_repeated_tool_result_keeps_last_content_at_first_place(self) -> None:
        found = to_claude(
            messages=[
                {"role": "tool", "tool_call_id": "a", "content": "old"},
                {"role": "tool", "tool_call_id": "b", "content": "2"},
                {"role": "tool", "tool_call_id": "a", "content": "new"},
            ]
        )
        blocks = found["messages"][0]["content"]
        assert [(b["tool_use_id"], b["content"]) for b in blocks] == [("a", "new"), ("b", "2")]

    def test_temperature_gives_way_to_top_p(self) -> None:
        found = to_claude(messages=[user("x")], temperature=0.3, top_p=0.9)
        assert "temperature" not in found
        assert found["top_p"] == 0.9

    def test_temperature_alone_ends_at_claudes_scale(self) -> None:
        assert to_claude(messages=[user("x")], temperature=1.6)["temperature"] == 1

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ({"max_tokens": 5, "max_completion_tokens": 7}, 5),
            ({"max_completion_tokens": 7}, 7),
            ({}, 32000),
        ],
    )
    def test_limit_has_an_order_of_sources(self, given: dict[str, int], wanted: int) -> None:
        assert to_claude(messages=[user("x")], **given)["max_tokens"] == wanted

    def test_system_and_developer_merge_in_order(self) -> None:
        found = to_claude(
            messages=[
                {"role": "system", "content": "a"},
                {"role": "developer", "content": [{"type": "text", "text": "b"}]},
                user("x"),
            ]
        )
        assert [b["text"] for b in found["system"]] == ["a", "b"]

    def test_system_alone_keeps_an_empty_user_message(self) -> None:
        found = to_claude(messages=[{"role": "system", "content": "a"}])
        assert found["messages"] == [{"role": "user", "content": [{"type": "text", "text": ""}]}]

    def test_part_cache_control_wins_over_message_level(self) -> None:
        part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        message = {**user([part]), "cache_control": {"type": "ephemeral"}}
        found = to_claude(messages=[message])
        assert found["messages"][0]["content"][0]["cache_control"]["ttl"] == "1h"

    def test_root_alternatives_of_a_schema_become_one_object(self) -> None:
        schema = {
            "anyOf": [
                {"properties": {"a": {"type": "string"}}, "required": ["a"]},
                {"properties": {"b": {"type": "number"}}},
            ]
        }
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        found = to_claude(messages=[user("x")], tools=[tool])["tools"][0]["input_schema"]
        assert found == {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
        }

    def test_images_become_sources(self) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": PIXEL}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ]
        blocks = to_claude(messages=[user(parts)])["messages"][0]["content"]
        assert blocks[0]["source"] == {
            "type": "base64",
            "media_type": "image/png",
            "data": "aGVsbG8=",
        }
        assert blocks[1]["source"] == {"type": "url", "url": "https://example.com/a.png"}

    def test_tool_result_keeps_its_image(self) -> None:
        content = [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": PIXEL}},
        ]
        found = to_claude(messages=[{"role": "tool", "tool_call_id": "a", "content": content}])
        inner = found["messages"][0]["content"][0]["content"]
        assert [b["type"] for b in inner] == ["text", "image"]

    def test_user_becomes_metadata(self) -> None:
        assert to_claude(messages=[user("x")], user="u")["metadata"] == {"user_id": "u"}
        kept = to_claude(messages=[user("x")], user="u", metadata={"user_id": "m", "k": "v"})
        assert kept["metadata"] == {"user_id": "m"}

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ("auto", {"type": "auto"}),
            ("required", {"type": "any"}),
            ("none", {"type": "none"}),
            ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
        ],
    )
    def test_tool_choice(self, given: Any, wanted: Any) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        found = to_claude(messages=[user("x")], tools=[tool], tool_choice=given)
        assert found["tool_choice"] == wanted

    def test_one_call_at_a_time_is_said_claudes_way(self) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        found = to_claude(messages=[user("x")], tools=[tool], parallel_tool_calls=False)
        assert found["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}

    def test_effort_becomes_a_budget_below_the_limit(self) -> None:
        found = to_claude(
            messages=[user("x")], reasoning_effort="high", max_tokens=5000, temperature=0.2
        )
        assert found["thinking"] == {"type": "enabled", "budget_tokens": 4999}
        assert "temperature" not in found

    def test_stop_is_always_a_list(self) -> None:
        assert to_claude(messages=[user("x")], stop="END")["stop_sequences"] == ["END"]

    def test_arguments_that_are_nearly_json_are_repaired(self) -> None:
        call = {"id": "c", "function": {"name": "f", "arguments": "{'a': 'b'}"}}
        found = to_claude(messages=[{"role": "assistant", "tool_calls": [call]}])
        assert found["messages"][0]["content"][0]["input"] == {"a": "b"}

    def test_content_that_claude_cannot_take_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidRequest, match="input_audio"):
            to_claude(messages=[user([{"type": "input_audio", "input_audio": {}}])])

    @pytest.mark.parametrize("body", [b"[]", b"nonsense", b'"x"'])
    def test_no_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            openai_to_claude.translate_request("up", body, False)


class TestClaudeToOpenAI:
    def test_tool_results_come_before_the_users_texts(self) -> None:
        content = [
            {"type": "text", "text": "before"},
            {"type": "tool_result", "tool_use_id": "a", "content": "42"},
            {"type": "text", "text": "after"},
        ]
        call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        found = to_openai(messages=[{"role": "assistant", "content": [call]}, user(content)])
        assert [m["role"] for m in found["messages"]] == ["assistant", "tool", "user"]
        assert [p["text"] for p in found["messages"][2]["content"]] == ["before", "after"]

    def test_object_result_is_its_json(self) -> None:
        block = {"type": "tool_result", "tool_use_id": "a", "content": {"foo": "bar"}}
        assert to_openai(messages=[user([block])])["messages"][0]["content"] == '{"foo":"bar"}'

    def test_result_with_image_keeps_both_parts(self) -> None:
        image = {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="},
        }
        block = {
            "type": "tool_result",
            "tool_use_id": "a",
            "content": [{"type": "text", "text": "see"}, image],
        }
        content = to_openai(messages=[user([block])])["messages"][0]["content"]
        assert content == [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": PIXEL}},
        ]

    def test_result_of_one_image_object_is_a_list_of_one(self) -> None:
        image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        block = {"type": "tool_result", "tool_use_id": "a", "content": image}
        content = to_openai(messages=[user([block])])["messages"][0]["content"]
        assert content == [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]

    def test_assistant_text_and_calls_are_one_message(self) -> None:
        content = [
            {"type": "text", "text": "pre"},
            {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
            {"type": "text", "text": "post"},
        ]
        (message,) = to_openai(messages=[{"role": "assistant", "content": content}])["messages"]
        assert [p["text"] for p in message["content"]] == ["pre", "post"]
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}

    def test_thinking_of_earlier_turns_is_left_out(self) -> None:
        thought = {"type": "thinking", "thinking": "hm", "signature": ""}
        found = to_openai(
            messages=[
                {"role": "assistant", "content": [thought]},
                {"role": "assistant", "content": [thought, {"type": "text", "text": "said"}]},
            ]
        )
        assert found["messages"] == [{"role": "assistant", "content": "said"}]

    def test_stop_sequences_stay_a_list(self) -> None:
        assert to_openai(messages=[user("x")], stop_sequences=["END"])["stop"] == ["END"]

    def test_objects_without_properties_get_them_everywhere(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "a": {"type": "object"},
                "b": {"type": "array", "items": {"type": "object"}},
            },
            "default": {"type": "object"},
        }
        tool = {"name": "f", "input_schema": schema}
        found = to_openai(messages=[user("x")], tools=[tool])["tools"][0]["function"]["parameters"]
        assert found["properties"]["a"]["properties"] == {}
        assert found["properties"]["b"]["items"]["properties"] == {}
        assert found["default"] == {"type": "object"}

    def test_system_inside_the_conversation_is_a_reminder(self) -> None:
        found = to_openai(messages=[{"role": "system", "content": "mind"}])
        assert found["messages"] == [
            {"role": "user", "content": "<system-reminder>\nmind\n</system-reminder>"}
        ]

    @pytest.mark.parametrize(
        ("system", "wanted"),
        [
            ("a", "a"),
            ([{"type": "text", "text": "a"}], "a"),
            (
                [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            ),
            ("", None),
            ([], None),
        ],
    )
    def test_system_is_one_message_or_none(self, system: Any, wanted: Any) -> None:
        messages = to_openai(system=system, messages=[user("x")])["messages"]
        said = [m["content"] for m in messages if m["role"] == "system"]
        assert said == ([] if wanted is None else [wanted])

    def test_stream_asks_for_usage(self) -> None:
        found = to_openai(stream=True, messages=[user("x")])
        assert found["stream"] is True
        assert found["stream_options"] == {"include_usage": True}

    def test_budget_becomes_an_effort(self) -> None:
        asked = {"type": "enabled", "budget_tokens": 8192}
        assert to_openai(messages=[user("x")], thinking=asked)["reasoning_effort"] == "medium"

    def test_tools_that_the_provider_runs_are_left_out(self) -> None:
        tool = {"type": "web_search_20250305", "name": "web_search"}
        assert "tools" not in to_openai(messages=[user("x")], tools=[tool])

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ({"type": "any"}, "required"),
            ({"type": "none"}, "none"),
            ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ],
    )
    def test_tool_choice(self, given: Any, wanted: Any) -> None:
        tool = {"name": "f", "input_schema": {"type": "object"}}
        found = to_openai(messages=[user("x")], tools=[tool], tool_choice=given)
        assert found["tool_choice"] == wanted
