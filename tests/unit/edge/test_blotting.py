"""What is blotted out of a provider's error, and what passes."""

import json
from typing import Any

import pytest

from patchbay_gateway.edge.dialects import blotting

SECRET = "abcdefghijkl0"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"Authorization: token {SECRET}",
        f"x-api-key: {SECRET}",
        f"client_secret={SECRET}&x=1",
        f"accessToken: '{SECRET}'",
        f'{{"api_key": "{SECRET}"}}',
        f'{{\\"api_key\\": \\"{SECRET}\\"}}',
        f"GET /models?key={SECRET}",
        f"Incorrect API key provided: {SECRET}.",
        f"sent sk-{SECRET} there",
        f"cannot connect to http://user:{SECRET}@10.0.0.1:3128",
        f"password = {SECRET}",
    ],
)
def test_secret_is_blotted_out_and_stays_so(text: str) -> None:
    seen = blotting.clean(text)
    assert SECRET not in seen
    assert "[REDACTED]" in seen
    assert blotting.clean(seen) == seen
    assert SECRET not in blotting.brief(text)
    assert not blotting.harmless(json.dumps({"error": {"message": text}}).encode(), None)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 1000000 is too large",
        "unknown key: frequency_penalty",
        "Unexpected token < in JSON",
        "see https://example.com/docs/keys#token",
        "no secret of yours was found",
        "Rate limit reached for tokens per min (TPM): Limit 30000000, Used 29999999",
    ],
)
def test_what_helps_a_person_stays(text: str) -> None:
    assert blotting.clean(text) == text
    assert blotting.harmless(json.dumps({"error": {"message": text}}).encode(), {"m": text})


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "no", "internal": {"api_key": SECRET}}},
        {"error": {"message": "no", "details": [{"headers": [f"bearer {SECRET}"]}]}},
        {"error": {"message": f"sent {json.dumps(json.dumps({'token': SECRET}))}"}},
    ],
)
def test_document_with_a_secret_anywhere_is_not_shown(document: Any) -> None:
    assert not blotting.harmless(json.dumps(document).encode(), document)


def test_secret_in_escapes_is_found() -> None:
    body = b'{"error":{"message":"\\u0041uthorization: Bea\\u0072er abcdefghijkl0"}}'
    assert not blotting.harmless(body, json.loads(body))


def test_document_of_great_depth_or_length_is_read_without_harm() -> None:
    deep: Any = f"bearer {SECRET}"
    for _ in range(5000):
        deep = [deep]
    assert not blotting.harmless(b"", deep)
    assert not blotting.harmless(b"x" * (65 << 10), {})


def test_fields_are_cut() -> None:
    assert blotting.field("x" * 300) == "x" * 256 + "…"
    assert blotting.clean("x" * 3000) == "x" * 2048 + "…"
