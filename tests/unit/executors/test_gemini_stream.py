"""What a Gemini stream says, fed by hand: ends, errors and numbers, and what only looks like them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay import errors
from patchbay_gateway.executors.gemini import model_url
from patchbay_gateway.executors.gemini_errors import error_document, explain
from patchbay_gateway.executors.gemini_stream import GeminiStream
from patchbay_gateway.executors.gemini_usage import read_usage, usage_of_body


def event(parts: list[Any], *, finish: str = "", usage: dict[str, int] | None = None) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    body: dict[str, Any] = {"candidates": [candidate]}
    if usage:
        body["usageMetadata"] = usage
    return b"data: " + orjson.dumps(body) + b"\r\n\r\n"


def said(text: str, **more: Any) -> bytes:
    return event([{"text": text}], **more)


FAILED = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}


def make(*, array: bool = False) -> GeminiStream:
    return GeminiStream(array=array, payload=400, headers=[])


def test_numbers_follow_the_stream() -> None:
    stream = make()
    stream.take(said("x" * 40))
    assert dict(stream.usage.items) == {"input_tokens": 100, "output_tokens": 10}
    stream.take(said("x" * 40, usage={"promptTokenCount": 9, "totalTokenCount": 9}))
    assert (dict(stream.usage.items), stream.usage.estimated) == (
        {"input_tokens": 9, "output_tokens": 20},
        True,
    )
    last = {"promptTokenCount": 9, "candidatesTokenCount": 12, "totalTokenCount": 21}
    stream.take(said("", finish="STOP", usage=last))
    assert (dict(stream.usage.items), stream.usage.estimated) == (
        {"input_tokens": 9, "output_tokens": 12},
        False,
    )
    assert stream.end() is None


@pytest.mark.parametrize("text", ['"finishReason":"STOP"', '"error":{}', '"blockReason":"SAFETY"'])
def test_text_that_speaks_of_ends_is_text(text: str) -> None:
    stream = make()
    stream.take(said(text))
    assert not stream.done
    with pytest.raises(errors.UpstreamError, match="before the answer was complete"):
        stream.end()


def test_arguments_that_look_like_ends_are_arguments() -> None:
    stream = make()
    args = {"finishReason": "STOP", "error": {"code": 1}, "promptFeedback": {"blockReason": "X"}}
    stream.take(event([{"functionCall": {"name": "f", "args": args}}]))
    assert not stream.done


def test_unspecified_reason_is_no_end() -> None:
    stream = make()
    stream.take(said("a", finish="FINISH_REASON_UNSPECIFIED"))
    assert not stream.done


def test_usage_after_the_end_counts() -> None:
    stream = make()
    stream.take(said("a", finish="STOP"))
    stream.take(b'data: {"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4}}\n\n')
    assert dict(stream.usage.items) == {"input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize("shape", [FAILED, [FAILED]])
def test_error_before_content_is_raised(shape: Any) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        make().take(b"data: " + orjson.dumps(shape) + b"\n\n")
    assert (caught.value.http_status, caught.value.message) == (503, "overloaded")
    assert error_document(caught.value.body) == FAILED


def test_error_after_content_is_delivered_but_in_an_array_raised() -> None:
    failed = b"data: " + orjson.dumps(FAILED) + b"\n\n"
    stream = make()
    batch = stream.take(said("a") + failed)
    assert batch is not None
    assert batch.chunks[-1] == failed
    assert stream.done
    with pytest.raises(errors.UpstreamError, match="overloaded"):
        make(array=True).take(said("a") + failed)


def test_array_of_nothing_is_empty() -> None:
    stream = make(array=True)
    stream.done = True
    batch = stream.end()
    assert batch is not None
    assert list(batch.chunks) == [b"[]"]


@pytest.mark.parametrize(
    ("usage", "units"),
    [
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 40,
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 5,
                "toolUsePromptTokenCount": 7,
                "totalTokenCount": 122,
            },
            {
                "input_tokens": 107,
                "output_tokens": 15,
                "cache_read_tokens": 40,
                "reasoning_tokens": 5,
                "tool_use_prompt_tokens": 7,
            },
        ),
        (
            {"promptTokenCount": 4, "totalTokenCount": 10, "thoughtsTokenCount": 2},
            {"input_tokens": 4, "output_tokens": 6, "reasoning_tokens": 2},
        ),
        ({"promptTokenCount": -4, "totalTokenCount": -9}, {"input_tokens": 0, "output_tokens": 0}),
    ],
)
def test_usage_in_the_ledgers_units(usage: dict[str, Any], units: dict[str, int]) -> None:
    told = usage_of_body(orjson.dumps({"candidates": [], "usageMetadata": usage}))
    assert told is not None
    assert dict(read_usage(told).items) == units


@pytest.mark.parametrize("usage", [{"promptTokenCount": "4"}, [], "x", None])
def test_usage_that_is_malformed_is_none(usage: Any) -> None:
    assert usage_of_body(orjson.dumps({"usageMetadata": usage})) is None


@pytest.mark.parametrize(
    ("base", "model", "url"),
    [
        ("https://g", "m", "https://g/v1beta/models/m"),
        ("https://g/v1", "m", "https://g/v1/models/m"),
        ("https://g/v1beta", "a/../b", "https://g/v1beta/models/a%2F..%2Fb"),
        ("https://v1.example/x", "m", "https://v1.example/x/v1beta/models/m"),
        ("https://g/v1/projects/p", "publishers/google/models/m",
         "https://g/v1/projects/p/publishers/google/models/m"),
        ("https://g", "tunedModels/ü", "https://g/v1beta/tunedModels/%C3%BC"),
    ],
)  # fmt: skip
def test_url_of_a_model(base: str, model: str, url: str) -> None:
    assert model_url(base, model) == url


def test_key_that_is_wrong_is_the_credentials_fault() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    body = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [info]}}
    error = errors.UpstreamError(400, body=orjson.dumps(body))
    explain(error, 0)
    assert error.scope is errors.FaultScope.CREDENTIAL


@pytest.mark.parametrize("details", ["x", [1], [{"@type": 5}], [{"@type": "QuotaFailure"}], None])
def test_details_that_are_garbage_change_nothing(details: Any) -> None:
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}
    error = errors.UpstreamError(429, body=orjson.dumps(body))
    explain(error, 0)
    assert (error.scope, error.retry_after) == (errors.FaultScope.MODEL, None)
