"""What the `openai` SDK shows of the gateway itself; what it shows of any provider: test_same_openai.py."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.observing import until

if TYPE_CHECKING:
    import openai
    from tests.harness.upstream import Upstream

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmM"
    "IQAAAABJRU5ErkJggg=="
)
MODELS = [
    "claude-fake", "echo", "fake-model", "gemini-fake", "public-name", "text-embedding-fake",
    "tired-claude", "tired-gemini", "tired-openai",
]  # fmt: skip
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Wetter für einen Ort — ☂",
            "parameters": {
                "type": "object",
                "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
            },
        },
    }
]


def arrived(upstream: Upstream, mark: str) -> dict[str, Any]:
    """Return the one request that carries *mark*."""
    (record,) = [r for r in upstream.records() if mark in r["body"]]
    return record


@pytest.fixture
def mark() -> str:
    """Tell this test's request in the upstream's log."""
    return uuid.uuid4().hex


@pytest.mark.parametrize("asked", [True, False])
async def test_chat_stream_has_usage_only_if_asked(
    sdk: openai.AsyncOpenAI, upstream: Upstream, mark: str, *, asked: bool
) -> None:
    """The upstream is always asked for usage; a client that did not ask never sees it."""
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    text, usages, empty = "", [], 0
    async for chunk in await sdk.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": mark}], stream=True, **options
    ):
        empty += not chunk.choices
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        if chunk.usage:
            usages.append(chunk.usage.completion_tokens)
    assert text == "".join(f"word{i} " for i in range(16))
    assert (usages, empty) == (([16], 1) if asked else ([], 0))
    assert json.loads(arrived(upstream, mark)["body"])["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("asked", [True, False])
async def test_completions_stream_has_usage_only_if_asked(
    sdk: openai.AsyncOpenAI, *, asked: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = [
        chunk
        async for chunk in await sdk.completions.create(
            model="fake-model", prompt="hello", stream=True, **options
        )
    ]
    assert "".join(c.choices[0].text for c in chunks if c.choices).endswith("word15 ")
    assert [c.usage.completion_tokens for c in chunks if c.usage] == ([16] if asked else [])


async def test_models_are_listed_and_found(sdk: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in sdk.models.list()]
    assert names == MODELS
    assert (await sdk.models.retrieve("fake-model")).id == "fake-model"


async def test_tools_and_images_reach_the_upstream_unchanged(
    sdk: openai.AsyncOpenAI, upstream: Upstream, mark: str
) -> None:
    """Nested `model` and `stream` keys, Unicode and a picture: every byte that the SDK wrote arrives."""
    written: list[bytes] = []

    async def keep(request: Any) -> None:
        written.append(request.content)

    sdk._client.event_hooks["request"].append(keep)
    content: Any = [
        {"type": "text", "text": f'{mark} "model": "other" \\ ☂ \u2028'},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    ]
    await sdk.chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": content}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        seed=9007199254740993,
        temperature=0.30000000000000004,
    )
    assert arrived(upstream, mark)["body"].encode() == written[0]


async def test_stream_left_early_is_cancelled_upstream(
    sdk: openai.AsyncOpenAI, upstream: Upstream, mark: str
) -> None:
    stream = await sdk.chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": mark}],
        stream=True,
        extra_body={"fake": {"chunks": 10_000, "delay_ms": 10}},
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    until(lambda: arrived(upstream, mark)["ended_at"], 60, "the provider's answer goes on")
    record = arrived(upstream, mark)
    assert record["aborted"]
    assert record["chunks_sent"] < 1000


async def test_raw_response_carries_the_gateway_headers(sdk: openai.AsyncOpenAI) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(
        model="public-name",
        messages=[{"role": "user", "content": "hello"}],
        extra_headers={"x-request-id": "mine-1"},
    )
    assert raw.request_id == "mine-1"
    assert raw.headers["x-patchbay-model"] == "fake-model"
    assert raw.headers["x-patchbay-provider"] == "fake"
    assert raw.headers["x-patchbay-attempts"] == "1"
    assert 0 <= float(raw.headers["x-patchbay-overhead-ms"]) < 10_000
    assert raw.parse().model == "fake-model"
