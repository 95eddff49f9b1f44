"""What an Anthropic stream says, fed by hand: ends, errors and numbers, and what only looks like them."""

from __future__ import annotations

import orjson
import pytest

from patchbay import errors
from patchbay_gateway.executors.claude_errors import explain
from patchbay_gateway.executors.claude_stream import ClaudeStream
from patchbay_gateway.executors.claude_usage import Counts, usage_object


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **more}) + b"\n\n"


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event("message_start", message={"usage": {"input_tokens": 10, "output_tokens": 1}})
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
LAST = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7})
STOP = event("message_stop")


def make(payload: int = 400) -> ClaudeStream:
    return ClaudeStream(payload=payload, headers=[(b"request-id", b"r")])


def units(stream: ClaudeStream) -> dict[str, int]:
    return dict(stream.usage.items)


def test_numbers_follow_the_stream() -> None:
    stream = make()
    assert stream.usage.estimated
    assert units(stream) == {"input_tokens": 100, "output_tokens": 0}
    stream.take(START + BLOCK)
    assert (units(stream), stream.usage.estimated) == (
        {"input_tokens": 10, "output_tokens": 1},
        True,
    )
    stream.take(delta("x" * 40))
    assert units(stream)["output_tokens"] == 10
    stream.take(LAST)
    assert (units(stream)["output_tokens"], stream.usage.estimated) == (7, False)
    assert not stream.done
    stream.take(STOP)
    assert stream.done
    assert stream.end() is None


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"message_stop"}',
        '"type":"error"',
        'event: error\ndata: {"type":"error"}',
        '"usage":{',
    ],
)
def test_text_that_speaks_of_events_is_text(text: str) -> None:
    stream = make()
    stream.take(START + BLOCK)
    assert stream.take(delta(text)) is not None
    assert not stream.done
    with pytest.raises(errors.UpstreamError, match="before the answer was complete"):
        stream.end()


def test_arguments_that_look_like_events_are_arguments() -> None:
    """Tools of the provider's own get their input as objects, not as strings."""
    stream = make()
    looks = {"a": "message_stop", "type": "error", "b": {"type": "error"}}
    block = {"type": "server_tool_use", "id": "s", "name": "n", "input": looks}
    stream.take(START + event("content_block_start", index=0, content_block=block))
    assert not stream.done


def test_error_before_content_is_raised_with_the_headers_of_the_200() -> None:
    stream = make()
    stream.take(START + event("ping"))
    with pytest.raises(errors.UpstreamError) as caught:
        stream.take(event("error", error={"type": "rate_limit_error", "message": "slow"}))
    error = caught.value
    assert (error.http_status, error.message) == (429, "slow")
    assert error.headers == [(b"request-id", b"r")]
    assert orjson.loads(error.body)["error"]["type"] == "rate_limit_error"


def test_error_in_the_same_read_as_content_is_delivered() -> None:
    stream = make()
    failed = event("error", error={"type": "overloaded_error", "message": "late"})
    batch = stream.take(START + BLOCK + delta("hi") + failed)
    assert batch is not None
    assert batch.chunks[-1] == failed
    assert stream.done
    stream.end()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request_error", 400),
        ("authentication_error", 401),
        ("billing_error", 402),
        ("permission_error", 403),
        ("not_found_error", 404),
        ("request_too_large", 413),
        ("rate_limit_error", 429),
        ("api_error", 500),
        ("timeout_error", 504),
        ("overloaded_error", 529),
        ("a_new_error", 502),
    ],
)
def test_error_type_is_a_status(kind: str, status: int) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        make().take(event("error", error={"type": kind, "message": "m"}))
    assert caught.value.http_status == status


def test_last_event_without_its_blank_line_counts() -> None:
    stream = make()
    stream.take(START + BLOCK + delta("hi") + LAST + STOP[:-2])
    batch = stream.end()
    assert batch is not None
    assert stream.done


def test_half_of_the_last_event_does_not_count() -> None:
    stream = make()
    stream.take(START + BLOCK + delta("hi") + LAST + STOP[:-5])
    with pytest.raises(errors.UpstreamError):
        stream.end()


def test_event_without_end_is_refused() -> None:
    stream = make()
    piece = b"data: " + b"x" * (1 << 20)
    for _ in range(15):
        assert stream.take(piece) is None
    with pytest.raises(errors.UpstreamError) as caught:
        stream.take(piece)
    assert caught.value.reason == "UPSTREAM_TOO_LARGE"


def test_numbers_only_grow_and_cached_input_is_inside() -> None:
    counts = Counts()
    counts.add(
        {
            "input_tokens": 10,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
            "output_tokens": 1,
            "service_tier": "standard",
        }
    )
    counts.add(
        {
            "input_tokens": 0,
            "cache_read_input_tokens": None,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 4},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        }
    )
    assert dict(counts.usage().items) == {
        "input_tokens": 60,
        "output_tokens": 9,
        "cache_read_tokens": 30,
        "cache_creation_tokens": 20,
        "cache_creation_5m_tokens": 15,
        "cache_creation_1h_tokens": 5,
        "reasoning_tokens": 4,
        "web_search_requests": 2,
    }


def test_tools_cannot_rename_themselves_into_tokens() -> None:
    counts = Counts()
    counts.add({"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"output_tokens": 99}})
    assert dict(counts.usage().items) == {"input_tokens": 1, "output_tokens": 1}


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"usage":[]}', b'{"usage":{"input_tokens":-1}}'])
def test_malformed_usage_is_none(body: bytes) -> None:
    found = usage_object(body)
    counts = Counts()
    counts.add(found or {})
    assert not counts.known


@pytest.mark.parametrize(
    ("headers", "wait", "scope"),
    [
        ({b"anthropic-ratelimit-tokens-remaining": b"5"}, None, errors.FaultScope.MODEL),
        (
            {
                b"anthropic-ratelimit-tokens-remaining": b"0",
                b"anthropic-ratelimit-tokens-reset": b"1970-01-01T00:02:00Z",
                b"anthropic-ratelimit-requests-remaining": b"0",
                b"anthropic-ratelimit-requests-reset": b"1970-01-01T00:01:50Z",
            },
            20.0,
            errors.FaultScope.MODEL,
        ),
        (
            {
                b"anthropic-ratelimit-unified-status": b"rejected",
                b"anthropic-ratelimit-unified-reset": b"130",
            },
            30.0,
            errors.FaultScope.CREDENTIAL,
        ),
        (
            {
                b"anthropic-ratelimit-tokens-remaining": b"0",
                b"anthropic-ratelimit-tokens-reset": b"soon",
            },
            None,
            errors.FaultScope.MODEL,
        ),
        (
            {
                b"anthropic-ratelimit-tokens-remaining": b"0",
                b"anthropic-ratelimit-tokens-reset": b"1970-01-01T00:00:01Z",
            },
            0.0,
            errors.FaultScope.MODEL,
        ),
    ],
)
def test_spent_limits_say_when_to_come_back(
    headers: dict[bytes, bytes], wait: float | None, scope: errors.FaultScope
) -> None:
    error = errors.UpstreamError(429, headers=list(headers.items()))
    explain(error, 100.0)
    assert (error.retry_after, error.scope) == (wait, scope)


def test_error_after_a_block_that_holds_nothing_yet_is_raised() -> None:
    failed = event("error", error={"type": "overloaded_error", "message": "busy"})
    for together in (True, False):
        stream = make()
        if not together:
            stream.take(START + BLOCK)
        with pytest.raises(errors.UpstreamError, match="busy") as caught:
            stream.take(START + BLOCK + failed if together else failed)
        assert caught.value.http_status == 529
