"""What each dialect sees in the chunks of a stream."""

import orjson
import pytest

from patchbay import errors
from patchbay_gateway.edge.dialects.port import ChunkKind, StreamState
from patchbay_gateway.edge.dialects.table import dialects

C, L, E, T = ChunkKind.CONTENT, ChunkKind.LIFECYCLE, ChunkKind.ERROR, ChunkKind.TERMINAL


def delta(inner: str) -> bytes:
    return b'data: {"id":"x","choices":[{"index":0,"delta":%s}]}\n\n' % inner.encode()


@pytest.mark.parametrize(
    ("name", "chunk", "kind"),
    [
        ("openai", b": keep-alive\n\n", L),
        ("openai", delta('{"role":"assistant","content":""}'), L),
        ("openai", delta('{"role":"assistant","content":null}'), L),
        ("openai", delta('{"content":"hi"}'), C),
        ("openai", delta('{"content":"an \\"error\\" occurred"}'), C),
        ("openai", delta('{"reasoning_content":"hm"}'), C),
        ("openai", delta('{"tool_calls":[{"index":0,"function":{"name":"error"}}]}'), C),
        ("openai", b'data: {"choices":[{"text":"hi"}]}\n\n', C),
        ("openai", b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', C),
        ("openai", b'data: {"choices":[],"prompt_filter_results":[]}\n\n', L),
        ("openai", b'data: {"error":null,"choices":[{"delta":{"content":"a"}}]}\n\n', C),
        ("openai", b'data: {"error":{"message":"no","type":"server_error"}}\n\n', E),
        ("openai", b"data: [DONE]\n\n", T),
        ("openai", b"data:[DONE]\n\n", T),
        ("openai-response", b'event: response.created\ndata: {"type":"response.created"}\n\n', L),
        ("openai-response", b'data: {"type":"response.in_progress","sequence_number":1}\n\n', L),
        ("openai-response", b'data: {"sequence_number":1,"type":"response.queued"}\n\n', L),
        ("openai-response", b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n', C),
        ("openai-response", b'data: {"type":"response.output_text.delta"}\n\n', C),
        ("openai-response", b"event: response.completed\ndata: {}\n\n", T),
        ("openai-response", b"event: response.incomplete\ndata: {}\n\n", T),
        ("openai-response", b"event: response.failed\ndata: {}\n\n", E),
        ("openai-response", b"event: error\ndata: {}\n\n", E),
        ("openai-response", b'data: {"error":{"message":"no"}}\n\n', E),
        ("claude", b'event: message_start\ndata: {"type":"message_start"}\n\n', L),
        ("claude", b'event: ping\ndata: {"type": "ping"}\n\n', L),
        ("claude", b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n', C),
        ("claude", b'data: {"type":"content_block_delta"}\n\n', C),
        ("claude", b'event: message_stop\ndata: {"type":"message_stop"}\n\n', T),
        ("claude", b'event: error\ndata: {"type":"error","error":{}}\n\n', E),
        ("gemini", b'data: {"candidates":[{"content":{"parts":[{"text":"hi"}]}}]}\n\n', C),
        ("gemini", b'data: {"candidates":[{"finishReason":"STOP"}]}\n\n', T),
        ("gemini", b'data: {"promptFeedback":{"blockReason":"SAFETY"}}\n\n', T),
        ("gemini", b'data: {"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}\n\n', E),
        ("gemini-json", b'[{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}]', E),
    ],
)
def test_classify(name: str, chunk: bytes, kind: ChunkKind) -> None:
    state = StreamState()
    assert dialects()[name].classify(chunk, state) is kind
    assert state.terminal == (kind is T)


def claude(kind: str, **more: object) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **more}) + b"\n\n"


def block(**content_block: object) -> bytes:
    return claude("content_block_start", index=0, content_block=content_block)


def block_delta(**delta: object) -> bytes:
    return claude("content_block_delta", index=0, delta=delta)


def item(**item: object) -> bytes:
    return claude("response.output_item.added", output_index=0, item={"id": "i", **item})


def part(kind: str, **part: object) -> bytes:
    return claude(kind, item_id="i", content_index=0, part=part)


PART = "response.content_part.added"
SUMMARY = "response.reasoning_summary_part.added"


@pytest.mark.parametrize(
    ("name", "chunk", "kind"),
    [
        ("claude", block(type="text", text=""), L),
        ("claude", block(type="text", text="", citations=None), L),
        ("claude", block(type="thinking", thinking="", signature=""), L),
        ("claude", block(type="text", text="hi"), C),
        ("claude", block(type="tool_use", id="t", name="search", input={}), C),
        ("claude", block(type="server_tool_use", id="t", name="web_search", input={}), C),
        ("claude", block(type="redacted_thinking", data="abc"), C),
        ("claude", block(type="new_kind"), C),
        ("claude", block(type=["text"]), C),
        ("claude", claude("content_block_start"), C),
        ("claude", claude("content_block_stop", index=0), L),
        ("claude", block_delta(type="text_delta", text=""), L),
        ("claude", block_delta(type="text_delta", text="hi"), C),
        ("claude", block_delta(type="signature_delta", signature="abc"), C),
        ("claude", claude("content_block_delta"), C),
        ("claude", claude("message_delta", delta={"stop_reason": "end_turn"}), C),
        ("openai-response", item(type="message", role="assistant", content=[]), L),
        ("openai-response", item(type="message", content=[{"text": "hi"}]), C),
        ("openai-response", item(type="reasoning", summary=[]), L),
        ("openai-response", item(type="reasoning", summary=[], encrypted_content="abc"), C),
        ("openai-response", item(type="function_call", name="search", arguments=""), C),
        ("openai-response", item(type="web_search_call", status="in_progress"), C),
        ("openai-response", item(), C),
        ("openai-response", item(type=["message"]), C),
        ("openai-response", claude("response.output_item.added"), C),
        ("openai-response", part(PART, type="output_text", text="", annotations=[]), L),
        ("openai-response", part(PART, type="output_text", text="hi"), C),
        ("openai-response", part(SUMMARY, type="summary_text", text=""), L),
        ("openai-response", claude("response.output_text.delta", delta="hi"), C),
        ("openai-response", claude("response.output_item.done", item={"type": "reasoning"}), C),
    ],
)
def test_classify_beginnings_without_content(name: str, chunk: bytes, kind: ChunkKind) -> None:
    state = StreamState()
    assert dialects()[name].classify(chunk, state) is kind
    assert state.content == (kind is C)
    state.content = True
    assert dialects()[name].classify(chunk, state) is C


def test_classify_after_content_takes_role_chunks_as_content() -> None:
    dialect, state = dialects()["openai"], StreamState()
    dialect.classify(delta('{"content":"hi"}'), state)
    assert dialect.classify(delta('{"content":""}'), state) is C


@pytest.mark.parametrize(
    ("name", "chunk", "status", "message"),
    [
        ("openai", b'data: {"error":{"message":"no","code":429}}\n\n', 429, "no"),
        ("openai", b'data: {"error":{"message":"no","code":"rate_limit_exceeded"}}\n\n', 429, "no"),
        ("openai", b'data: {"error":"it broke"}\n\n', 502, "it broke"),
        (
            "openai-response",
            (
                b'event: response.failed\ndata: {"type":"response.failed","response":'
                b'{"error":{"code":"server_error","message":"no"}}}\n\n'
            ),
            500,
            "no",
        ),
        (
            "openai-response",
            b'data: {"type":"error","code":"rate_limit_exceeded","message":"no","sequence_number":3}\n\n',
            429,
            "no",
        ),
        (
            "claude",
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n',
            529,
            "no",
        ),
        ("gemini", b'data: {"error":{"code":503,"message":"no"}}\n\n', 503, "no"),
        ("gemini-json", b'[{"error":{"code":503,"message":"no"}}]', 503, "no"),
        ("claude", b"event: error\ndata: garbage\n\n", 502, "the provider reported an error"),
    ],
)
def test_in_stream_error_becomes_an_upstream_error(
    name: str, chunk: bytes, status: int, message: str
) -> None:
    dialect = dialects()[name]
    error = dialect.in_stream_error(chunk)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.sent) == (status, errors.Sent.YES)
    assert error.message.startswith(message)
    assert message.encode() in dialect.error(error, "r").body


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1}}\n\n', True),
        (
            b'data: {"id": "x", "choices": [ ], "usage": {"prompt_tokens": 1}}\n\n'.replace(
                b"[ ]", b"[]"
            ),
            True,
        ),
        (b'data: {"choices":[{"delta":{"content":"[]"}}],"usage":{"a":1}}\n\n', False),
        (b'data: {"choices" : [ ], "usage" : { "a" : 1 }}\n\n', True),
        (b'data: {"choices":[],"usage":null}\n\n', False),
        (b'data: {"choices":[],"prompt_filter_results":[]}\n\n', False),
        (delta('{"content":"\\"usage\\" []"}'), False),
        (b"data: [DONE]\n\n", False),
    ],
)
def test_is_usage_only(chunk: bytes, *, expected: bool) -> None:
    assert dialects()["openai"].is_usage_only(chunk) is expected


@pytest.mark.parametrize("name", ["openai-response", "claude", "gemini"])
def test_is_usage_only_elsewhere_never(name: str) -> None:
    assert not dialects()[name].is_usage_only(b'data: {"choices":[],"usage":{"a":1}}\n\n')


def test_responses_error_continues_the_numbers_of_a_batch() -> None:
    """Strict clients count: the number follows the highest that went out, also in joined events."""
    state = StreamState(
        last=b'event: a\ndata: {"type":"a","sequence_number":41}\n\n'
        b'event: b\ndata: {"sequence_number": 42,"type":"b","x":"\\"sequence_number\\":99"}\n\n'
    )
    event = dialects()["openai-response"].stream_error(errors.Unavailable("x"), state, "r")
    assert b'"sequence_number":43' in event
    first = dialects()["openai-response"].stream_error(errors.Unavailable("x"), StreamState(), "r")
    assert b'"sequence_number":0' in first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai", b": keep-alive\n\n"),
        ("openai-response", b": keep-alive\n\n"),
        ("claude", b'event: ping\ndata: {"type": "ping"}\n\n'),
        ("gemini", b"\n\n"),
        ("gemini-json", b""),
    ],
)
def test_keepalive(name: str, expected: bytes) -> None:
    assert dialects()[name].keepalive() == expected
