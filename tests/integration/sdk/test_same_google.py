"""The official `google-genai` SDK cannot tell Patchbay from the provider: one suite, three places."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from google.genai import errors, types

if TYPE_CHECKING:
    from google import genai
    from tests.harness.upstream import Upstream
    from tests.integration.sdk.conftest import Place

MODEL = "gemini-fake"
WORDS = "".join(f"word{i} " for i in range(16))
WEATHER = {"city": "Zürich", "days": 3}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
TOOLS: Any = [
    types.Tool(function_declarations=[types.FunctionDeclaration(name="get_weather")]),
]


def config(fake: Any = None, retry: Any = None, **more: Any) -> types.GenerateContentConfig:
    """Return a configuration with which the upstream does as *fake* tells it."""
    options = types.HttpOptions(extra_body={"fake": fake or {}}, retry_options=retry)
    return types.GenerateContentConfig(http_options=options, **more)


def generate(sdk: genai.Client, contents: Any = "hello", fake: Any = None, **more: Any) -> Any:
    """Ask for an answer."""
    return sdk.models.generate_content(model=MODEL, contents=contents, config=config(fake, **more))


def stream(sdk: genai.Client, fake: Any = None, **more: Any) -> Any:
    """Ask for a stream."""
    return sdk.models.generate_content_stream(
        model=MODEL, contents="hello", config=config(fake, **more)
    )


def test_answer(google_sdk: genai.Client) -> None:
    answer = generate(google_sdk, fake={"cached": 30, "reasoning": 2, "searches": 5})
    assert answer.text == WORDS
    assert answer.candidates[0].finish_reason is types.FinishReason.STOP
    usage = answer.usage_metadata
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (16, 2)
    assert (usage.cached_content_token_count, usage.tool_use_prompt_token_count) == (30, 5)
    assert answer.model_version == MODEL


def test_stream(google_sdk: genai.Client) -> None:
    chunks = list(stream(google_sdk, fake={"reasoning": 2, "picture": True}))
    assert "".join(c.text or "" for c in chunks) == WORDS
    assert [c.parts[0].thought for c in chunks[:3]] == [True, True, None]
    assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
    assert chunks[-1].parts[0].inline_data.data == PIXEL
    assert chunks[-1].usage_metadata.candidates_token_count == 16


def test_answer_calls_tools(google_sdk: genai.Client) -> None:
    answer = generate(google_sdk, tools=TOOLS, fake={"tools": 2})
    assert [(c.name, c.args) for c in answer.function_calls] == [("get_weather", WEATHER)] * 2


def test_stream_calls_tools(google_sdk: genai.Client) -> None:
    last = list(stream(google_sdk, tools=TOOLS, fake={"tools": 1}))[-1]
    assert [c.args for c in last.function_calls] == [WEATHER]


def test_pictures_and_results_of_tools_arrive(google_sdk: genai.Client, upstream: Upstream) -> None:
    mark = uuid.uuid4().hex
    contents = [
        types.Content(
            role="user",
            parts=[types.Part(text=mark), types.Part.from_bytes(data=PIXEL, mime_type="image/png")],
        ),
        types.Content(
            role="model", parts=[types.Part.from_function_call(name="get_weather", args={"a": 1})]
        ),
        types.Content(
            role="user",
            parts=[types.Part.from_function_response(name="get_weather", response={"t": "17 °C"})],
        ),
    ]
    generate(google_sdk, contents, tools=TOOLS)
    (record,) = [r for r in upstream.records() if mark in r["body"]]
    sent = json.loads(record["body"])["contents"]
    assert base64.b64decode(sent[0]["parts"][1]["inlineData"]["data"]) == PIXEL
    assert sent[2]["parts"][0]["functionResponse"]["response"] == {"t": "17 °C"}
    assert record["path"].endswith(f"/models/{MODEL}:generateContent")


def test_count_tokens(google_sdk: genai.Client) -> None:
    count = google_sdk.models.count_tokens(model=MODEL, contents="hello")
    assert count.total_tokens is not None
    assert count.total_tokens > 0


def test_models(google_sdk: genai.Client) -> None:
    assert f"models/{MODEL}" in {m.name for m in google_sdk.models.list()}
    found = google_sdk.models.get(model=MODEL)
    assert found.name == f"models/{MODEL}"
    assert "generateContent" in (found.supported_actions or [])


def test_blocked_prompt_is_an_answer(google_sdk: genai.Client) -> None:
    answer = generate(google_sdk, fake={"blocked": "SAFETY"})
    assert answer.prompt_feedback.block_reason is types.BlockedReason.SAFETY
    last = list(stream(google_sdk, fake={"chunks": 0, "blocked": "SAFETY"}))[-1]
    assert last.prompt_feedback.block_reason is types.BlockedReason.SAFETY


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (400, errors.ClientError, "INVALID_ARGUMENT"),
        (404, errors.ClientError, "NOT_FOUND"),
        (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, errors.ServerError, "INTERNAL"),
        (503, errors.ServerError, "UNAVAILABLE"),
        (504, errors.ServerError, "DEADLINE_EXCEEDED"),
    ],
)
def test_status_is_the_sdks_class(
    google_sdk: genai.Client, status: int, kind: type[errors.APIError], word: str, *, streamed: bool
) -> None:
    fake = {"status": status, "error": "no room", "retry_delay": "17s"}
    with pytest.raises(kind) as caught:
        list(stream(google_sdk, fake=fake)) if streamed else generate(google_sdk, fake=fake)
    error = caught.value
    assert (error.code, error.status, error.message) == (status, word, "no room")
    assert error.details["error"]["details"][-1]["retryDelay"] == "17s"


def test_retry_succeeds(google_sdk: genai.Client) -> None:
    """This SDK has retries of its own and reads no header; what it needs is the status."""
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.05, jitter=0)
    fake = {"status": 503, "fails": 1, "mark": uuid.uuid4().hex}
    assert generate(google_sdk, fake=fake, retry=retry).text == WORDS


def test_retry_gives_up(google_sdk: genai.Client) -> None:
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.3, jitter=0)
    started = time.monotonic()
    with pytest.raises(errors.ServerError):
        generate(google_sdk, fake={"status": 503}, retry=retry)
    assert time.monotonic() - started >= 0.3


def test_failure_inside_a_200_before_content_is_an_error(google_sdk: genai.Client) -> None:
    with pytest.raises(errors.ServerError) as caught:
        list(stream(google_sdk, fake={"error_after": 0, "error": "oops"}))
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")


@pytest.mark.parametrize("bare", [False, True])
def test_failure_inside_a_200_after_content_is_an_error(
    google_sdk: genai.Client, *, bare: bool
) -> None:
    text = ""
    with pytest.raises(errors.ServerError) as caught:  # noqa: PT012 - the stream raises midway
        for chunk in stream(google_sdk, fake={"error_after": 4, "bare_error": bare}):
            text += chunk.text or ""
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")
    assert text == "word0 word1 word2 word3 "


@pytest.mark.parametrize("fake", [{"close_after": 4}, {"half_frame_after": 4}], ids=str)
def test_broken_stream_is_an_error_after_what_came(
    google_sdk: genai.Client, fake: dict[str, int]
) -> None:
    text = ""
    with pytest.raises((errors.APIError, httpx2.HTTPError)):  # noqa: PT012 - the stream raises midway
        for chunk in stream(google_sdk, fake=fake):
            text += chunk.text or ""
    assert text == "word0 word1 word2 word3 "


# The SDK's own way with aiohttp, none of ours.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
async def test_asynchronous_client(place: Place) -> None:
    sdk = place.google()
    parts = [
        c.text or ""
        async for c in await sdk.aio.models.generate_content_stream(model=MODEL, contents="hello")
    ]
    await sdk.aio.aclose()
    sdk.close()
    assert "".join(parts) == WORDS
