"""What an OpenAI answer consumed."""

from __future__ import annotations

import json
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


COUNTS: list[object] = [
    None,
    0,
    7,
    7.0,
    7.9,
    -1,
    -0.5,
    "7",
    True,
    False,
    [7],
    {},
    10**17,
    10**30,
    1e300,
]
DETAILS: list[object] = [
    *({"cached_tokens": count} for count in COUNTS),
    *({"cache_creation_tokens": count, "cache_write_tokens": 3} for count in COUNTS),
    *({"reasoning_tokens": count} for count in COUNTS),
    *({"cached_tokens": 1, "reasoning_tokens": 2, "audio_tokens": "x"}, {}, [], 3, "x", None),
]
NAMES = [
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "output_tokens"),
]
SHAPES: list[dict[str, Any]] = [
    {},
    {"total_tokens": 12},
    *({a: count, b: 5} for a, b in NAMES for count in COUNTS),
    *({a: 5, b: count} for a, b in NAMES for count in COUNTS),
    *({"prompt_tokens": count, "input_tokens": 5, "output_tokens": 1} for count in COUNTS),
    *({"completion_tokens": 1, "output_tokens": count, "input_tokens": 3} for count in COUNTS),
    *({"prompt_tokens": 9, "prompt_tokens_details": details} for details in DETAILS),
    *({"input_tokens": 9, "input_tokens_details": details} for details in DETAILS),
    *({"completion_tokens": 9, "completion_tokens_details": details} for details in DETAILS),
    *({"output_tokens": 9, "output_tokens_details": details} for details in DETAILS),
    *(
        {"prompt_tokens": 9, "prompt_tokens_details": a, "input_tokens_details": b}
        for a in DETAILS[-6:]
        for b in DETAILS[-6:]
    ),
]


def test_usage_of_body_agrees_with_read_usage() -> None:
    """A decoder that knows the types reads what is well formed, another one the rest: as one."""
    for shape in SHAPES:
        check_agreement(shape)


def check_agreement(shape: dict[str, Any]) -> None:
    expected = openai_usage.read_usage(shape)
    usage = json.dumps(shape).encode()
    spaced = json.dumps({"usage": shape, "id": 1}, indent=1, separators=(" , ", " : ")).encode()
    for body in (
        b'{"id":"x","usage":%b}' % usage,
        b'{"usage":null,"response":{"id":3,"usage":%b}}' % usage,
        b'{"response":{"usage":%b},"usage":[]}' % usage,
        b'{"usage":%b,"response":{"usage":{"input_tokens":77}}}' % usage,
        b'{"usage":%b,"response":"none"}' % usage,
        spaced,
    ):
        assert openai_usage.usage_of_body(body) == expected, body
    for unit, count in expected.items if expected is not None else ():
        assert unit.endswith("_tokens")
        assert type(count) is int
        assert 0 <= count < 1 << 63


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
        (b'{ "delta" : { "content" : "four" } }', 4),
        (b'{"delta":{"content" :"four"}}', 4),
        (b'{"delta":{"content":null,"x":"a\\" :"}}', 0),
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
