"""The official `openai` SDK cannot tell Patchbay from the provider: one suite, three places."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from tests.harness.upstream import Upstream
    from tests.integration.sdk.conftest import Place

MODEL = "fake-model"
HELLO: Any = [{"role": "user", "content": "hello"}]
WORDS = "".join(f"word{i} " for i in range(16))
WEATHER = {"city": "Zürich", "days": 3}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmM"
    "IQAAAABJRU5ErkJggg=="
)
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]


def create(sdk: openai.OpenAI, messages: Any = HELLO, fake: Any = None, **more: Any) -> Any:
    """Ask for a chat answer; the upstream does as *fake* tells it."""
    return sdk.chat.completions.create(
        model=MODEL, messages=messages, extra_body={"fake": fake or {}}, **more
    )


def test_chat(openai_sdk: openai.OpenAI) -> None:
    answer = create(openai_sdk, fake={"cached": 3, "reasoning": 2})
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize("asked", [True, False])
def test_chat_stream(openai_sdk: openai.OpenAI, *, asked: bool) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(create(openai_sdk, stream=True, **more))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == WORDS
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert [c.usage.completion_tokens for c in chunks if c.usage] == ([16] if asked else [])


def test_chat_calls_tools(openai_sdk: openai.OpenAI) -> None:
    message = create(openai_sdk, tools=TOOLS, fake={"tools": 2}).choices[0].message
    assert [json.loads(c.function.arguments) for c in message.tool_calls] == [WEATHER, WEATHER]


def test_chat_stream_calls_tools(openai_sdk: openai.OpenAI) -> None:
    with openai_sdk.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=TOOLS, extra_body={"fake": {"tools": 2}}
    ) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    calls = [c.function for c in choice.message.tool_calls]
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [("get_weather", WEATHER)] * 2


def test_chat_takes_pictures_and_results_of_tools(
    openai_sdk: openai.OpenAI, upstream: Upstream
) -> None:
    """What the SDK wrote is what arrives, byte for byte but for the order to count."""
    mark = uuid.uuid4().hex
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": mark},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "17 °C"},
    ]
    create(openai_sdk, messages, tools=TOOLS)
    (record,) = [r for r in upstream.records() if mark in r["body"]]
    assert json.loads(record["body"])["messages"] == messages


def test_completions(openai_sdk: openai.OpenAI) -> None:
    answer = openai_sdk.completions.create(model=MODEL, prompt="hello")
    assert answer.choices[0].text == WORDS
    chunks = openai_sdk.completions.create(model=MODEL, prompt="hello", stream=True)
    assert "".join(c.choices[0].text for c in chunks) == WORDS


def test_responses(openai_sdk: openai.OpenAI) -> None:
    answer = openai_sdk.responses.create(
        model=MODEL, input="hello", extra_body={"fake": {"tools": 1}}
    )
    assert answer.output_text == WORDS
    assert answer.output[1].type == "function_call"
    assert json.loads(answer.output[1].arguments) == WEATHER
    assert answer.usage is not None
    assert answer.usage.output_tokens == 16


def test_responses_stream(openai_sdk: openai.OpenAI) -> None:
    with openai_sdk.responses.stream(
        model=MODEL, input="hello", extra_body={"fake": {"tools": 1}}
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [e.sequence_number for e in events] == sorted({e.sequence_number for e in events})
    assert final.output_text == WORDS
    assert final.output[1].type == "function_call"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(openai_sdk: openai.OpenAI, encoding: Any) -> None:
    answer = openai_sdk.embeddings.create(
        model="text-embedding-fake", input=["hello", "world"], encoding_format=encoding
    )
    assert answer.data[0].embedding == [0.6, 0.8]


def test_models(openai_sdk: openai.OpenAI) -> None:
    assert {MODEL, "text-embedding-fake"} <= {m.id for m in openai_sdk.models.list()}
    assert openai_sdk.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (413, openai.APIStatusError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_status_is_the_sdks_class(
    openai_sdk: openai.OpenAI, status: int, kind: type[openai.APIStatusError], *, stream: bool
) -> None:
    fake = {"status": status, "error": "the disk is full", "code": "disk_full"}
    with pytest.raises(kind) as caught:
        create(openai_sdk, stream=stream, fake=fake)
    assert caught.value.status_code == status
    assert caught.value.code == "disk_full"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"] == "the disk is full"
    assert caught.value.request_id


@pytest.mark.parametrize("hint", [{"retry_after_ms": "700"}, {"retry_after": "1"}], ids=str)
def test_retry_hint_is_obeyed(openai_sdk: openai.OpenAI, hint: dict[str, str]) -> None:
    started = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        create(openai_sdk.with_options(max_retries=1), fake={"status": 429, **hint})
    # Without a hint the SDK waits half a second at most.
    assert 0.7 <= time.monotonic() - started < 30


def test_retry_succeeds(openai_sdk: openai.OpenAI) -> None:
    fake = {"status": 503, "fails": 1, "mark": uuid.uuid4().hex, "retry_after_ms": "1"}
    answer = create(openai_sdk.with_options(max_retries=1), fake=fake)
    assert answer.choices[0].message.content == WORDS


def test_failure_inside_a_200_before_content_is_an_error(openai_sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="oops"):
        list(create(openai_sdk, stream=True, fake={"error_after": 0, "error": "oops"}))


@pytest.mark.parametrize(
    "fake",
    [{"close_after": 4}, {"half_frame_after": 4}, {"error_after": 4}],
    ids=["closed", "half a frame", "error event"],
)
def test_broken_stream_is_an_error_after_what_came(
    openai_sdk: openai.OpenAI, fake: dict[str, int]
) -> None:
    text = ""
    with pytest.raises((openai.APIError, httpx.HTTPError)):  # noqa: PT012 - the stream raises midway
        for chunk in create(openai_sdk, stream=True, fake=fake):
            text += chunk.choices[0].delta.content or ""
    assert text == "word0 word1 word2 word3 "


def test_timeout_is_the_sdks_own(openai_sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        create(openai_sdk.with_options(timeout=0.3), fake={"stall": "head"})


async def test_asynchronous_client(place: Place) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{place.host}/v1",
        api_key=place.key,
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
    ) as sdk:
        stream: Any = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == WORDS
