"""The official `anthropic` SDK cannot tell Patchbay from the provider: one suite, three places."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

if TYPE_CHECKING:
    from tests.harness.upstream import Upstream
    from tests.integration.sdk.conftest import Place

MODEL = "claude-fake"
HELLO: Any = [{"role": "user", "content": "hello"}]
WORDS = "".join(f"word{i} " for i in range(16))
WEATHER = {"city": "Zürich", "days": 3}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
TOOLS: Any = [{"name": "get_weather", "input_schema": {"type": "object"}}]


def create(sdk: anthropic.Anthropic, messages: Any = HELLO, fake: Any = None, **more: Any) -> Any:
    """Ask for a message; the upstream does as *fake* tells it."""
    return sdk.messages.create(
        model=MODEL, max_tokens=99, messages=messages, extra_body={"fake": fake or {}}, **more
    )


def test_message(anthropic_sdk: anthropic.Anthropic) -> None:
    fake = {"cached": 30, "created": 20, "created_1h": 5, "reasoning": 2, "searches": 1}
    answer = create(anthropic_sdk, fake=fake)
    assert [b.type for b in answer.content] == ["thinking", "text"]
    assert answer.content[0].signature
    assert answer.content[1].text == WORDS
    assert (answer.stop_reason, answer.model) == ("end_turn", MODEL)
    usage = answer.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (30, 20)
    assert usage.cache_creation.ephemeral_1h_input_tokens == 5
    assert usage.output_tokens == 18
    assert usage.server_tool_use.web_search_requests == 1
    assert answer._request_id


def test_raw_stream(anthropic_sdk: anthropic.Anthropic) -> None:
    events = list(create(anthropic_sdk, stream=True, fake={"pings": True, "cached": 7}))
    assert [e.type for e in events[:2]] == ["message_start", "content_block_start"]
    assert [e.type for e in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0].message.usage.cache_read_input_tokens == 7
    assert events[-2].usage.output_tokens == 16


def test_stream_collects_text_thinking_and_tools(anthropic_sdk: anthropic.Anthropic) -> None:
    with anthropic_sdk.messages.stream(
        model=MODEL,
        max_tokens=99,
        messages=HELLO,
        tools=TOOLS,
        extra_body={"fake": {"tools": 2, "reasoning": 3}},
    ) as stream:
        assert "".join(stream.text_stream) == WORDS
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    kinds = [b.type for b in final.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert [b.input for b in final.content if b.type == "tool_use"] == [WEATHER, WEATHER]
    assert final.usage.output_tokens == 19


def test_message_calls_tools(anthropic_sdk: anthropic.Anthropic) -> None:
    answer = create(anthropic_sdk, tools=TOOLS, fake={"tools": 1})
    assert answer.stop_reason == "tool_use"
    assert (answer.content[1].name, answer.content[1].input) == ("get_weather", WEATHER)


def test_pictures_and_results_of_tools_arrive(
    anthropic_sdk: anthropic.Anthropic, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": mark}, {"type": "image", "source": source}],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "17 °C"}],
        },
    ]
    create(
        anthropic_sdk,
        messages,
        tools=TOOLS,
        system="be brief",
        extra_headers={"anthropic-beta": "b-1"},
    )
    (record,) = [r for r in upstream.records() if mark in r["body"]]
    assert json.loads(record["body"])["messages"] == messages
    assert record["headers"]["anthropic-beta"] == "b-1"
    assert (
        record["headers"]["anthropic-version"] == anthropic_sdk.default_headers["anthropic-version"]
    )


def test_count_tokens(anthropic_sdk: anthropic.Anthropic) -> None:
    count = anthropic_sdk.messages.count_tokens(model=MODEL, messages=HELLO)
    assert count.input_tokens == 5


def test_models(anthropic_sdk: anthropic.Anthropic) -> None:
    assert MODEL in {m.id for m in anthropic_sdk.models.list()}
    found = anthropic_sdk.models.retrieve(MODEL)
    assert (found.id, found.type, found.display_name) == (MODEL, "model", MODEL)
    assert found.lifecycle == "active"


def test_refusal_is_an_answer(anthropic_sdk: anthropic.Anthropic) -> None:
    assert create(anthropic_sdk, fake={"blocked": "yes"}).stop_reason == "refusal"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (422, anthropic.UnprocessableEntityError, "invalid_request_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_status_is_the_sdks_class(
    anthropic_sdk: anthropic.Anthropic,
    status: int,
    kind: type[anthropic.APIStatusError],
    word: str,
    *,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        create(anthropic_sdk, stream=stream, fake={"status": status, "error": "no room"})
    error = caught.value
    assert (error.status_code, error.type, error.api_message) == (status, word, "no room")
    assert error.request_id


@pytest.mark.parametrize("hint", [{"retry_after_ms": "700"}, {"retry_after": "1"}], ids=str)
def test_retry_hint_is_obeyed(anthropic_sdk: anthropic.Anthropic, hint: dict[str, str]) -> None:
    started = time.monotonic()
    with pytest.raises(anthropic.RateLimitError):
        create(anthropic_sdk.with_options(max_retries=1), fake={"status": 429, **hint})
    # Without a hint the SDK waits half a second at most.
    assert 0.7 <= time.monotonic() - started < 30


def test_retry_succeeds(anthropic_sdk: anthropic.Anthropic) -> None:
    fake = {"status": 529, "fails": 1, "mark": uuid.uuid4().hex, "retry_after_ms": "1"}
    answer = create(anthropic_sdk.with_options(max_retries=1), fake=fake)
    assert answer.content[0].text == WORDS


def test_failure_inside_a_200_before_content_is_an_error(
    anthropic_sdk: anthropic.Anthropic,
) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(create(anthropic_sdk, stream=True, fake={"error_after": 0, "error": "oops"}))
    assert (caught.value.type, caught.value.api_message) == ("overloaded_error", "oops")


def test_failure_inside_a_200_after_content_is_an_error(
    anthropic_sdk: anthropic.Anthropic,
) -> None:
    words = 0
    with pytest.raises(anthropic.APIStatusError) as caught:  # noqa: PT012 - the stream raises midway
        for event in create(anthropic_sdk, stream=True, fake={"error_after": 4, "error": "oops"}):
            words += event.type == "content_block_delta"
    assert (words, caught.value.type, caught.value.api_message) == (4, "overloaded_error", "oops")


@pytest.mark.parametrize(
    "fake", [{"close_after": 4}, {"half_frame_after": 4}], ids=["closed", "half a frame"]
)
def test_broken_stream_is_an_error_after_what_came(
    anthropic_sdk: anthropic.Anthropic, fake: dict[str, int]
) -> None:
    words = 0
    with pytest.raises((anthropic.APIError, httpx2.HTTPError)):  # noqa: PT012 - the stream raises midway
        for event in create(anthropic_sdk, stream=True, fake=fake):
            words += event.type == "content_block_delta"
    assert words == 4


def test_timeout_is_the_sdks_own(anthropic_sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        create(anthropic_sdk.with_options(timeout=0.3), fake={"stall": "head"})


async def test_asynchronous_client(place: Place) -> None:
    async with (
        anthropic.AsyncAnthropic(
            base_url=place.host,
            api_key=place.key,
            http_client=anthropic.DefaultAsyncHttpxClient(verify=False),
        ) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=9, messages=HELLO) as stream,
    ):
        assert "".join([text async for text in stream.text_stream]) == WORDS
