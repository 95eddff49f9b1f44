"""The echo model by plain HTTP: four dialects, streamed and not, and each failure rehearsed by header."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

TEXT = "the quick brown fox"
WORDS = ["the", " quick", " brown", " fox"]
MESSAGES: list[Any] = [{"role": "user", "content": TEXT}]
GEMINI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": TEXT}]}]}
DIALECTS = ["openai", "openai-response", "claude", "gemini"]


def asked(dialect: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return path and body of one chat request."""
    if dialect == "gemini":
        action = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"/v1beta/models/echo:{action}", GEMINI
    paths: dict[str, tuple[str, dict[str, Any]]] = {
        "openai": ("/v1/chat/completions", {"model": "echo", "messages": MESSAGES}),
        "openai-response": ("/v1/responses", {"model": "echo", "input": TEXT}),
        "claude": ("/v1/messages", {"model": "echo", "max_tokens": 100, "messages": MESSAGES}),
    }
    path, body = paths[dialect]
    return path, {**body, "stream": True} if stream else body


def events(text: str) -> list[tuple[str, Any]]:
    """Return (event, data) of an SSE text; data as JSON where it is."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line[:8])
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


SAID: dict[str, Callable[[Any], str]] = {
    "openai": lambda a: a["choices"][0]["message"]["content"],
    "openai-response": lambda a: a["output"][0]["content"][0]["text"],
    "claude": lambda a: a["content"][0]["text"],
    "gemini": lambda a: a["candidates"][0]["content"]["parts"][0]["text"],
}
COUNTED: dict[str, Callable[[Any], tuple[int, int]]] = {
    "openai": lambda a: (a["usage"]["prompt_tokens"], a["usage"]["completion_tokens"]),
    "openai-response": lambda a: (a["usage"]["input_tokens"], a["usage"]["output_tokens"]),
    "claude": lambda a: (a["usage"]["input_tokens"], a["usage"]["output_tokens"]),
    "gemini": lambda a: (
        a["usageMetadata"]["promptTokenCount"],
        a["usageMetadata"]["candidatesTokenCount"],
    ),
}


def pieces(dialect: str, found: list[tuple[str, Any]]) -> list[str]:
    """Return the words of a stream, one an event."""
    texts = []
    for event, data in found:
        if data == "[DONE]":
            continue
        if dialect == "openai" and data.get("choices"):
            texts.append(data["choices"][0]["delta"].get("content"))
        elif dialect == "openai-response" and event == "response.output_text.delta":
            texts.append(data["delta"])
        elif dialect == "claude" and event == "content_block_delta":
            texts.append(data["delta"]["text"])
        elif dialect == "gemini":
            texts += [p["text"] for p in data["candidates"][0].get("content", {}).get("parts", [])]
    return [text for text in texts if text]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_answer(http: httpx.AsyncClient, dialect: str) -> None:
    path, body = asked(dialect, stream=False)
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert SAID[dialect](answer.json()) == TEXT
    assert COUNTED[dialect](answer.json()) == (4, 4)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_stream_comes_word_by_word(http: httpx.AsyncClient, dialect: str) -> None:
    path, body = asked(dialect, stream=True)
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    found = events(answer.text)
    assert pieces(dialect, found) == WORDS
    event, last = found[-1]
    assert {
        "openai": last == "[DONE]",
        "openai-response": event == "response.completed",
        "claude": event == "message_stop",
        "gemini": dialect == "gemini" and last["candidates"][0].get("finishReason") == "STOP",
    }[dialect]


async def test_gemini_stream_without_sse_is_a_json_array(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1beta/models/echo:streamGenerateContent?alt=json", json=GEMINI)
    assert answer.headers["content-type"].startswith("application/json")
    parts = [c["candidates"][0].get("content", {}).get("parts", []) for c in answer.json()]
    assert "".join(p["text"] for part in parts for p in part) == TEXT


async def test_completions_and_embeddings(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={"model": "echo", "prompt": TEXT})
    assert answer.json()["choices"][0]["text"] == TEXT
    answer = await http.post("/v1/embeddings", json={"model": "echo", "input": ["a", "b"]})
    assert len(answer.json()["data"]) == 2


async def test_tokens_are_counted(http: httpx.AsyncClient) -> None:
    body = {"model": "echo", "messages": MESSAGES}
    assert (await http.post("/v1/messages/count_tokens", json=body)).json() == {"input_tokens": 4}
    answer = await http.post("/v1beta/models/echo:countTokens", json=GEMINI)
    assert answer.json() == {"totalTokens": 4}


@pytest.mark.parametrize(
    ("prefix", "dialect"),
    [
        ("/openai", "openai"),
        ("/openai", "openai-response"),
        ("/anthropic", "claude"),
        ("/genai", "gemini"),
    ],
)
async def test_prefix_of_a_provider_is_accepted(
    http: httpx.AsyncClient, prefix: str, dialect: str
) -> None:
    path, body = asked(dialect, stream=False)
    answer = await http.post(prefix + path, json=body)
    assert SAID[dialect](answer.json()) == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_chunks_and_delay_are_as_asked(http: httpx.AsyncClient, dialect: str) -> None:
    path, body = asked(dialect, stream=True)
    started = time.monotonic()
    answer = await http.post(
        path, json=body, headers={"x-echo-chunks": "6", "x-echo-delay-ms": "20"}
    )
    assert pieces(dialect, events(answer.text)) == [*WORDS, " the", " quick"]
    assert time.monotonic() - started >= 6 * 0.02


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_status_is_as_asked_in_the_dialects_form(
    http: httpx.AsyncClient, dialect: str, *, stream: bool
) -> None:
    path, body = asked(dialect, stream=stream)
    answer = await http.post(path, json=body, headers={"x-echo-status": "418"})
    assert answer.status_code == 418
    assert answer.headers["content-type"].startswith("application/json")
    assert_shaped(dialect, answer.json())


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_failure_in_a_stream_is_the_dialects_terminal_event(
    http: httpx.AsyncClient, dialect: str
) -> None:
    """What came before it arrives, nothing says that the answer is complete."""
    path, body = asked(dialect, stream=True)
    answer = await http.post(path, json=body, headers={"x-echo-fail-after": "2"})
    assert answer.status_code == 200
    found = events(answer.text)
    event, last = found.pop()
    assert pieces(dialect, found) == WORDS[:2]
    if dialect == "openai-response":
        assert event == "error"
        assert (last["type"], last["sequence_number"]) == ("error", len(found))
    else:
        assert_shaped(dialect, last)
    assert "message_stop" not in answer.text
    assert "[DONE]" not in answer.text
    assert "response.completed" not in answer.text
    assert "finishReason" not in answer.text


async def test_failure_without_stream_is_a_502(http: httpx.AsyncClient) -> None:
    for dialect in DIALECTS:
        path, body = asked(dialect, stream=False)
        answer = await http.post(path, json=body, headers={"x-echo-fail-after": "2"})
        assert answer.status_code == 502
        assert_shaped(dialect, answer.json())


def assert_shaped(dialect: str, error: Any) -> None:
    """Assert that *error* has the form in which the dialect's SDK reads it."""
    inner = error["error"]
    assert isinstance(inner["message"], str)
    if dialect == "claude":
        assert error["type"] == "error"
        assert isinstance(inner["type"], str)
    elif dialect == "gemini":
        assert isinstance(inner["code"], int)
        assert isinstance(inner["status"], str)
    else:
        assert isinstance(inner["type"], str)
        assert {"param", "code"} <= set(inner)


async def test_model_list_in_three_shapes(http: httpx.AsyncClient) -> None:
    names = [
        "claude-fake", "echo", "fake-model", "gemini-fake", "public-name", "text-embedding-fake",
        "tired-claude", "tired-gemini", "tired-openai",
    ]  # fmt: skip
    found = (await http.get("/v1/models")).json()
    assert found["object"] == "list"
    assert [(m["id"], m["object"]) for m in found["data"]] == [(n, "model") for n in names]
    assert {"echo", "fake"} <= {m["owned_by"] for m in found["data"]}
    for path, extra in (
        ("/v1/models", {"anthropic-version": "2023-06-01"}),
        ("/anthropic/v1/models", {}),
    ):
        found = (await http.get(path, headers=extra)).json()
        assert [(m["id"], m["type"]) for m in found["data"]] == [(n, "model") for n in names]
        assert (found["has_more"], found["first_id"], found["last_id"]) == (
            False,
            names[0],
            names[-1],
        )
    for path, extra in (
        ("/v1beta/models", {}),
        ("/genai/v1beta/models", {}),
        ("/v1/models", {"x-goog-api-key": "test-client-key"}),
    ):
        found = (await http.get(path, headers=extra)).json()
        assert [m["name"] for m in found["models"]] == [f"models/{n}" for n in names]


async def test_one_model_in_three_shapes(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models/echo")).json()["id"] == "echo"
    claude = await http.get("/v1/models/echo", headers={"anthropic-version": "2023-06-01"})
    assert claude.json()["type"] == "model"
    assert (await http.get("/v1beta/models/echo")).json()["name"] == "models/echo"
