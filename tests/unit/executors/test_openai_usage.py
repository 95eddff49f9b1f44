"""What an OpenAI answer consumed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay.executor import Usage
from patchbay_gateway.executors import openai_usage
from patchbay_gateway.executors.estimate import OutputCounter, estimate


@pytest.mark.parametrize(
    ("usage", "items"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, [("input_tokens", 5), ("output_tokens", 2)]),
        ({"prompt_tokens": 5, "total_tokens": 5}, [("input_tokens", 5)]),
        (
            {
                "input_tokens": 9,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            [
                ("input_tokens", 9),
                ("output_tokens", 7),
                ("cache_read_tokens", 4),
                ("cache_creation_tokens", 1),
                ("reasoning_tokens", 3),
            ],
        ),
        (
            {
                "prompt_tokens": 5.0,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": None},
            },
            [("input_tokens", 5), ("output_tokens", 0)],
        ),
    ],
)
def test_read_usage(usage: dict[str, Any], items: list[tuple[str, int]]) -> None:
    assert openai_usage.read_usage(usage) == Usage(tuple(items))


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": "5"}, {"prompt_tokens": -1}, {"x": True}])
def test_read_usage_says_nothing_is_none(usage: dict[str, Any]) -> None:
    assert openai_usage.read_usage(usage) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"usage":3}', b'{"response":{}}'])
def test_usage_of_body_malformed_is_none(body: bytes) -> None:
    assert openai_usage.usage_of_body(body) is None


def test_usage_of_events_last_one_wins_and_null_does_not_count() -> None:
    events = [
        b'data: {"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
        b'data: {"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\":{"}}]}\n\n',
    ]
    usage = openai_usage.usage_of_events(events)
    assert usage == Usage((("input_tokens", 1), ("output_tokens", 2)))
    assert not openai_usage.has_usage(events[2])
    assert not openai_usage.has_usage(events[3])


def test_usage_of_events_responses_completed() -> None:
    event = {
        "type": "response.completed",
        "response": {"usage": {"input_tokens": 3, "output_tokens": 4}},
    }
    usage = openai_usage.usage_of_events([b"event: x\ndata: " + orjson.dumps(event) + b"\n\n"])
    assert usage == Usage((("input_tokens", 3), ("output_tokens", 4)))


@pytest.mark.parametrize(
    ("block", "counted"),
    [
        (b'{"delta":{"content":"four"}}', 4),
        (b'{"delta": {"content": "four"}}', 4),
        (b'{"delta":{"role":"assistant","content":""}}', 0),
        (b'{"delta":{"content":null}}', 0),
        (b'{"logprobs":{"content":[{"token":"x"}]}}', 0),
        (b'{"delta":{"content":"a\\"b"}}', 4),
        (b'{"delta":{"content":"a\\\\"}}', 3),
        (b'{"delta":{"content":"\\\\\\""}}', 4),
        (b'{"delta":{"reasoning_content":"abc"}}', 3),
        (b'{"function":{"arguments":"{\\"a\\":1}"}}', 9),
        (b'{"content":"one"} {"content":"three"}', 8),
        ('{"content":"ü"}'.encode(), 2),
        (b'{"content":"cut', 3),
    ],
)
def test_output_counter_bytes_of_content(block: bytes, counted: int) -> None:
    counter = OutputCounter(openai_usage.CHAT_FIELDS)
    counter.add(block)
    assert counter.total == counted


def test_output_counter_responses_counts_deltas_once() -> None:
    counter = OutputCounter(openai_usage.RESPONSE_FIELDS)
    counter.add(b'{"type":"response.output_text.delta","delta":"abcd","logprobs":[]}')
    counter.add(b'{"type":"response.output_text.done","text":"abcd"}')
    assert counter.total == 4


def test_estimate_is_a_quarter_and_flagged() -> None:
    usage = estimate(400, 80, 1.5)
    assert usage == Usage((("input_tokens", 150), ("output_tokens", 30)), estimated=True)
