"""Providers that quote the gateway's key in an error, over the whole pipeline in virtual time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.errors import Sent, UpstreamError
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.plugins.snapshot import SettingsEntry, StreamingEntry

STREAM = b'{"model":"m","stream":true}'
QUOTES = "sent Authorization: Bearer abcdefghijkl"
TEXT = {
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n',
    "openai-response": b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":3}\n\n',
    "claude": b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n',
    "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"hi"}]}}]}\n\n',
}
INNER: dict[str, Any] = {
    "message": QUOTES,
    "type": "rate_limit_error",
    "code": 429,
    "status": "INTERNAL",
    "internal": {"api_key": "abcdefghijkl"},
}
ERROR: dict[str, tuple[bytes, dict[str, Any]]] = {
    "openai": (b"", {"error": INNER | {"status": 429}}),
    "openai-response": (b"event: error\n", {"type": "error", "sequence_number": 4, **INNER}),
    "claude": (b"event: error\n", {"type": "error", "error": INNER}),
    "gemini": (b"", {"error": INNER}),
}
HIDDEN = b"abcdefghijkl"


def event(dialect: str) -> bytes:
    name, document = ERROR[dialect]
    return name + b"data: " + json.dumps(document).encode() + b"\n\n"


def after_content(answer: bytes, dialect: str) -> dict[str, Any]:
    assert answer.startswith(TEXT[dialect])
    rest = answer.removeprefix(TEXT[dialect])
    assert rest.endswith(b"\n\n")
    found: dict[str, Any] = json.loads(rest[rest.index(b"{") :])
    return found


@pytest.mark.parametrize("dialect", TEXT)
@virtual
async def test_secret_in_an_error_event_after_content_is_taken_out(dialect: str) -> None:
    script = Script(default=[TEXT[dialect], event(dialect)])
    client = await Edge(script, pool("a")).ask(STREAM, dialect=dialect)
    assert client.finished
    assert HIDDEN not in client.answer
    seen = after_content(client.answer, dialect)
    inner = seen.get("error", seen)
    assert inner["message"] == "sent Authorization: Bearer [REDACTED]"
    assert "internal" not in inner
    if dialect == "openai-response":
        assert seen["sequence_number"] == 4
    [report] = script.reports
    assert report.settlement.outcome == journal_pb2.OUTCOME_FAILED
    assert report.fault.error.http_status == 429, "judged by what it said, not by what is shown"


@pytest.mark.parametrize("dialect", TEXT)
@virtual
async def test_error_event_without_secrets_passes_as_it_is(dialect: str) -> None:
    name, document = ERROR[dialect]
    harmless = json.loads(json.dumps(document).replace(QUOTES, "no").replace("api_key", "place"))
    chunk = name + b"data: " + json.dumps(harmless).encode() + b"\n\n"
    client = await Edge(Script(default=[TEXT[dialect], chunk]), pool("a")).ask(
        STREAM, dialect=dialect
    )
    assert client.answer == TEXT[dialect] + chunk


@virtual
async def test_text_that_speaks_of_errors_and_keys_is_content() -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"error: \\"error\\" api_key=abcdefgh"}}]}\n\n'
    client = await Edge(Script(default=[TEXT["openai"], chunk]), pool("a")).ask(STREAM)
    assert client.answer == TEXT["openai"] + chunk


@pytest.mark.parametrize("dialect", TEXT)
@pytest.mark.parametrize("early", [False, True])
@virtual
async def test_secret_in_a_failure_reaches_no_client(dialect: str, early: bool) -> None:
    """As the answer itself, and as the terminal event where headers had gone out."""
    body = json.dumps(ERROR[dialect][1] if dialect != "openai-response" else ERROR["openai"][1])
    failure = UpstreamError(500, body=body.encode(), content_type="application/json", sent=Sent.YES)
    script = Script(default=[5.0, failure])
    settings = SettingsEntry(streaming=StreamingEntry(first_byte_grace=1.0 if early else 20.0))
    client = await Edge(script, pool("a"), settings=settings).ask(STREAM, dialect=dialect)
    assert client.status == (200 if early else 500)
    assert HIDDEN not in client.answer
    assert b"Bearer [REDACTED]" in client.answer


@pytest.mark.parametrize("breaks", [b"\n", b"\r\n", b"\r"])
@virtual
async def test_secret_in_a_stream_that_nobody_asked_for_is_taken_out(breaks: bytes) -> None:
    text = TEXT["openai"].replace(b"\n", breaks)
    whole = text + event("openai").replace(b"\n", breaks) + text
    script = Script(default=whole, content_type="text/event-stream")
    client = await Edge(script, pool("a")).ask(b'{"model":"m"}')
    assert HIDDEN not in client.answer
    assert client.answer.startswith(text + b'data: {"error"')
    assert client.answer.endswith(text)
    assert client.headers[b"content-length"] == b"%d" % len(client.answer)
