"""What an OpenAI stream shows: its end, its errors, its consumption."""

from __future__ import annotations

import orjson
import pytest

from patchbay import errors
from patchbay.executor import Usage
from patchbay_gateway.executors.openai_choices import several_asked
from patchbay_gateway.executors.openai_stream import OpenAIStream

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"word"},"finish_reason":null}],"usage":null}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"no","type":"server_error","code":null}}\n\n'


def make_chat(*, several: bool = False) -> OpenAIStream:
    return OpenAIStream(responses=False, completions=False, payload=40, several=several)


def make_responses() -> OpenAIStream:
    return OpenAIStream(responses=True, completions=False, payload=40)


def choice(index: int, word: str = "", finish: str | None = None) -> bytes:
    delta = {"content": word} if word else {}
    document = {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}
    return b"data: " + orjson.dumps(document) + b"\n\n"


def event(**document: object) -> bytes:
    kind = str(document["type"]).encode()
    return b"event: " + kind + b"\ndata: " + orjson.dumps(document) + b"\n\n"


def test_chat_whole_stream_usage_is_the_providers() -> None:
    stream = make_chat()
    batch = stream.take(ROLE + WORD)
    assert batch is not None
    assert list(batch.chunks) == [ROLE, WORD]
    assert batch.usage_so_far == Usage((("input_tokens", 10), ("output_tokens", 1)), estimated=True)
    last = stream.take(FINISH + USAGE + DONE)
    assert last is not None
    assert last.usage_so_far == Usage((("input_tokens", 3), ("output_tokens", 1)))
    assert stream.end() is None
    assert stream.usage == last.usage_so_far


def test_chat_without_usage_is_estimated() -> None:
    stream = make_chat()
    stream.take(WORD * 10 + FINISH + DONE)
    stream.end()
    assert stream.usage == Usage((("input_tokens", 10), ("output_tokens", 10)), estimated=True)


def test_usage_so_far_only_when_there_is_news() -> None:
    stream = make_chat()
    stream.take(WORD)
    batch = stream.take(b": ping\n\n")
    assert batch is not None
    assert batch.usage_so_far is None


@pytest.mark.parametrize("end", [FINISH, DONE, FINISH + DONE, b"data: [DONE]", b"data: [DONE]\n"])
def test_chat_end_with_finish_or_done_is_complete(end: bytes) -> None:
    stream = make_chat()
    batches = [stream.take(WORD), stream.take(end), stream.end()]
    assert b"".join(c for batch in batches if batch for c in batch.chunks) == WORD + end


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ROLE,
        ROLE + WORD,
        WORD + FINISH[: len(FINISH) // 2],
        b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"stop\\" [DONE]"}}]}\n\n',
        b"data: [DONE",
    ],
)
def test_chat_end_without_either_is_truncated(data: bytes) -> None:
    stream = make_chat()
    if data:
        stream.take(data)
    with pytest.raises(errors.UpstreamError) as caught:
        stream.end()
    assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_TRUNCATED")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "events",
    [
        [choice(0, "half", "")],
        [choice(0, "half", ""), choice(0, "", "")],
        [choice(0, "half", "").replace(b":", b" : ")],
        [choice(0, "one"), choice(0, finish="stop"), choice(1, "half")],
        [choice(0, "one"), choice(0, finish="stop") + choice(1, "half") + USAGE],
        [choice(0, finish="stop"), choice(1, "half"), USAGE],
    ],
)
def test_chat_end_before_every_choice_ended_is_truncated(
    events: list[bytes], several: bool
) -> None:
    stream = make_chat(several=several)
    for data in events:
        stream.take(data)
    with pytest.raises(errors.UpstreamError) as caught:
        stream.end()
    assert caught.value.reason == "UPSTREAM_TRUNCATED"


def test_chat_choice_seen_only_before_the_first_end_counts_where_several_were_asked() -> None:
    stream = make_chat(several=True)
    for data in (choice(0, "a"), choice(1, "b"), choice(1, finish="stop")):
        stream.take(data)
    with pytest.raises(errors.UpstreamError):
        stream.end()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "events",
    [
        [choice(0, "a"), choice(1, "b"), choice(0, finish="stop"), choice(1, finish="length")],
        [choice(0, "a", ""), choice(0, finish="stop"), USAGE],
        [choice(0, "a"), choice(0, finish="stop"), choice(0)],
        [choice(0, "a"), choice(0, finish="stop").replace(b":", b" : ")],
        [choice(0, "a"), choice(0, finish="stop").replace(b'"delta":{}', b'"logprob":NaN')],
        [choice(0, "a"), b'data: {"choices":[{"index":null,"finish_reason":"stop"}]}\n\n'],
        [choice(0, finish="stop"), choice(1, "half"), DONE],
        [choice(0, "a", ""), DONE],
    ],
)
def test_chat_end_after_every_choice_ended_is_complete(events: list[bytes], several: bool) -> None:
    stream = make_chat(several=several)
    for data in events:
        stream.take(data)
    assert stream.end() is None


@pytest.mark.parametrize(
    ("payload", "several"),
    [
        (b'{"messages":[]}', False),
        (b'{"n":1}', False),
        (b'{"n":null}', False),
        (b'{"n" : 2}', True),
        (b'{"n":[]}', True),
        (b'{"tools":[{"properties":{"n":2}}]}', False),
        (b'{"prompt":"one"}', False),
        (b'{"prompt":["one"]}', False),
        (b'{"prompt":["one","two"]}', True),
        (b'{"n":', False),
    ],
)
def test_several_asked(payload: bytes, several: bool) -> None:
    assert several_asked(payload) is several


def test_chat_half_frame_after_the_finish_is_dropped() -> None:
    stream = make_chat()
    stream.take(WORD + FINISH + USAGE[:20])
    assert stream.end() is None


@pytest.mark.parametrize("before", [b"", b": hello\n\n", ROLE])
def test_chat_error_before_content_is_raised(before: bytes) -> None:
    stream = make_chat()
    with pytest.raises(errors.UpstreamError, match="no") as caught:
        stream.take(before + ERROR)
    assert caught.value.http_status == 502
    assert caught.value.sent is errors.Sent.YES
    assert orjson.loads(caught.value.body)["error"]["message"] == "no"


def test_chat_error_after_content_is_delivered_and_ends() -> None:
    stream = make_chat()
    stream.take(WORD)
    batch = stream.take(ERROR)
    assert batch is not None
    assert list(batch.chunks) == [ERROR]
    assert stream.done


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m", "code": 429}, 429),
        ({"message": "m", "code": "503"}, 503),
        ({"message": "m", "code": "rate_limit_exceeded"}, 429),
        ({"message": "m", "type": "authentication_error"}, 401),
        ({"message": "m", "type": "something"}, 502),
        ("just a text", 502),
    ],
)
def test_chat_error_status_is_read_from_the_event(error: object, status: int) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        make_chat().take(b"data: " + orjson.dumps({"error": error}) + b"\n\n")
    assert caught.value.http_status == status
    assert caught.value.body


def test_chat_words_of_the_model_are_no_error() -> None:
    text = orjson.dumps({"choices": [{"delta": {"content": '{"error":{"message":"x"}}'}}]})
    assert make_chat().take(b"data: " + text + b"\n\n") is not None


def test_responses_whole_stream() -> None:
    stream = make_responses()
    created = event(type="response.created", response={"error": None, "usage": None})
    delta = event(type="response.output_text.delta", delta="word")
    completed = event(
        type="response.completed",
        response={"error": None, "usage": {"input_tokens": 3, "output_tokens": 1}},
    )
    assert stream.take(created + delta) is not None
    assert stream.usage.estimated
    assert stream.take(completed) is not None
    assert stream.end() is None
    assert stream.usage == Usage((("input_tokens", 3), ("output_tokens", 1)))


def test_responses_without_terminal_event_is_truncated() -> None:
    stream = make_responses()
    stream.take(event(type="response.output_text.delta", delta="word"))
    with pytest.raises(errors.UpstreamError):
        stream.end()


@pytest.mark.parametrize(
    "failure",
    [
        {"type": "error", "code": "rate_limit_exceeded", "message": "slow down"},
        {
            "type": "response.failed",
            "response": {"error": {"code": "rate_limit_exceeded", "message": "slow down"}},
        },
    ],
)
def test_responses_failure_before_content_is_raised(failure: dict[str, object]) -> None:
    stream = make_responses()
    stream.take(event(type="response.created", response={"error": None}))
    with pytest.raises(errors.UpstreamError, match="slow down") as caught:
        stream.take(event(**failure))
    assert caught.value.http_status == 429
    assert orjson.loads(caught.value.body)["error"]["code"] == "rate_limit_exceeded"


def test_responses_failure_after_content_ends_the_stream() -> None:
    stream = make_responses()
    stream.take(event(type="response.output_text.delta", delta="word"))
    stream.take(event(type="response.failed", response={"error": {"message": "m"}}))
    assert stream.done
    assert stream.end() is None


def test_oversize_event_is_refused() -> None:
    stream = make_chat()
    for _ in range(16):
        assert stream.take(b"x" * (1 << 20)) is None
    with pytest.raises(errors.UpstreamError) as caught:
        stream.take(b"x")
    assert caught.value.reason == "UPSTREAM_TOO_LARGE"
