"""Streams that fail before or after their first content, in virtual time: what is held, tried again, told."""

import orjson
import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual
from tests.unit.edge.provider_failures import DONE, ROLE, STREAM, TEXT, answered, kinds

from patchbay.errors import Sent, UpstreamError
from patchbay_gateway.plugins.snapshot import (
    SettingsEntry,
    StreamingEntry,
)


@virtual
async def test_stream_tells_of_its_address_when_it_begins() -> None:
    """An address that is tried again after a rest must not wait for the stream's end."""
    edge = Edge(Script(default=[TEXT, DONE]), pool("a"))
    await edge.ask(STREAM)
    assert edge.member.heard == 1


@virtual
async def test_empty_stream_goes_to_the_next_credential() -> None:
    script = Script(default=[TEXT, DONE])
    script.answers["a", "up"] = [[]]
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert client.answer == TEXT + DONE
    assert kinds(script) == ["TRANSIENT", "-"]


@virtual
async def test_error_inside_a_200_after_lifecycle_events_goes_to_the_next_credential() -> None:
    created = b'event: message_start\ndata: {"type":"message_start"}\n\n'
    failed = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    delta = b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    script = Script(default=[created, delta, stop])
    script.answers["a", "up"] = [[created, failed]]
    client = await Edge(script, pool("a", "b")).ask(STREAM, dialect="claude")
    assert client.answer == created + delta + stop
    assert kinds(script) == ["OVERLOADED", "-"]


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **more}) + b"\n\n"


BEGUN = {
    "claude": [
        event("message_start"),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
    ],
    "openai-response": [
        event("response.created"),
        event("response.output_item.added", item={"type": "message", "content": []}),
        event("response.content_part.added", part={"type": "output_text", "text": ""}),
    ],
}
WORDS = {
    "claude": [
        event("content_block_delta", delta={"type": "text_delta", "text": "hi"}),
        event("message_stop"),
    ],
    "openai-response": [
        event("response.output_text.delta", delta="hi"),
        event("response.completed"),
    ],
}
OVERLOADED = event("error", error={"type": "overloaded_error", "message": "x"})


@pytest.mark.parametrize("failure", [OVERLOADED, answered(529)], ids=["event", "failure"])
@pytest.mark.parametrize("dialect", BEGUN)
@virtual
async def test_error_after_an_empty_block_goes_to_the_next_credential(
    dialect: str, failure: bytes | UpstreamError
) -> None:
    begun, words = BEGUN[dialect], WORDS[dialect]
    script = Script(default=[*begun, 1.0, *words])
    script.answers["a", "up"] = [[*begun, 1.0, failure]]
    client = await Edge(script, pool("a", "b")).ask(STREAM, dialect=dialect)
    assert client.answer == b"".join(begun + words)
    assert kinds(script)[1:] == ["-"]
    assert len(script.called) == 2


@virtual
async def test_error_inside_a_200_after_content_is_the_clients_and_held_against_the_credential() -> (
    None
):
    failed = b'data: {"error":{"message":"x","type":"server_error"}}\n\n'
    script = Script(default=[TEXT, failed])
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert client.answer == TEXT + failed
    assert script.called == [("a", "up")]
    assert kinds(script) == ["TRANSIENT"]


@virtual
async def test_break_after_content_is_terminal_and_neutral() -> None:
    script = Script(default=[TEXT, UpstreamError(502, reason="UPSTREAM_TRUNCATED", sent=Sent.YES)])
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert client.answer.startswith(TEXT + b'data: {"error"')
    assert b"[DONE]" not in client.answer
    assert script.called == [("a", "up")]
    assert kinds(script) == ["CONNECTION"]


@virtual
async def test_lifecycle_events_are_held_ten_seconds_then_go_out() -> None:
    script = Script(default=[ROLE, 30.0, TEXT, DONE])
    client = await Edge(script, pool("a")).ask(STREAM)
    first_at, first = client.sent[0]
    assert (round(first_at), first) == (10, ROLE)
    assert client.status == 200
    assert client.headers[b"x-patchbay-attempts"] == b"1"
    assert client.answer.replace(b": keep-alive\n\n", b"") == ROLE + TEXT + DONE


PADDED = b'data: {"choices":[{"delta":{"role":"assistant"}}],"pad":"%b"}\n\n' % (b"x" * (300 << 10))


@pytest.mark.parametrize(
    "many", [PADDED, b": %b\n\n" % (b"x" * (300 << 10))], ids=["events", "comments"]
)
@virtual
async def test_lifecycle_events_beyond_a_mebibyte_go_out_at_once(many: bytes) -> None:
    script = Script(default=[many, many, many, many, 1.0, TEXT, DONE])
    edge = Edge(script, pool("a", "b"))
    client = await edge.ask(STREAM)
    assert [at for at, _ in client.sent[:2]] == pytest.approx([0, 1], abs=0.1)
    assert client.sent[0][1] == many * 4
    assert client.answer == many * 4 + TEXT + DONE


@virtual
async def test_failure_after_a_mebibyte_of_events_is_not_tried_again() -> None:
    script = Script(default=[*[PADDED] * 4, answered(500)])
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert script.called == [("a", "up")]
    assert client.answer.startswith(PADDED * 4)
    assert b'"error"' in client.answer


@virtual
async def test_failure_after_held_events_went_out_is_not_tried_again() -> None:
    script = Script(default=[ROLE, 30.0, answered(500)])
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert script.called == [("a", "up")]
    assert b'"error"' in client.answer
    assert client.finished


@virtual
async def test_failure_while_events_are_held_goes_to_the_next_credential() -> None:
    script = Script(default=[TEXT, DONE])
    script.answers["a", "up"] = [[ROLE, 9.0, answered(500)]]
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert client.answer == TEXT + DONE
    assert client.sent[0][0] == pytest.approx(9)


@virtual
async def test_comments_of_a_provider_commit_nothing() -> None:
    script = Script(default=[TEXT, DONE])
    comment = b": PROCESSING\n\n"
    script.answers["a", "up"] = [[comment, 15.0, comment, answered(503)]]
    client = await Edge(script, pool("a", "b")).ask(STREAM)
    assert client.answer == TEXT + DONE


@virtual
async def test_early_headers_then_all_fail_ends_with_the_dialects_terminal_event() -> None:
    script = Script(default=[25.0, answered(500, message="gone wrong")])
    limits = StreamingEntry(first_byte_grace=20, keepalive=15)
    edge = Edge(script, pool("a", "b"), settings=SettingsEntry(streaming=limits))
    client = await edge.ask(STREAM)
    assert client.status == 200
    assert script.called == [("a", "up"), ("b", "up")]
    assert b"gone wrong" in client.answer
    assert client.finished


# Rules of the configuration.
