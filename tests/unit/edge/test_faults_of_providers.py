"""Which neutral fault a provider's failure is, how long it is waited for, and what is told of it."""

import pytest
from tests.unit.edge.fault_tables import CREDENTIAL, NOW, TABLES, UNSAID, K, Row, failure, openai

from patchbay import errors
from patchbay.errors import FaultScope, Sent, UpstreamError
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.kernel.outcomes import FaultKind


@pytest.mark.parametrize(
    ("dialect", "case"), [(name, case) for name, rows in TABLES.items() for case in rows]
)
def test_fault_of_an_answer(dialect: str, case: str) -> None:
    row = TABLES[dialect][case]
    fault = dialects()[dialect].fault(failure(row), NOW)
    assert (fault.kind, fault.scope) == (row.kind, row.scope)
    assert fault.retry_after == row.retry_after
    assert fault.http_status == row.status


@pytest.mark.parametrize("dialect", TABLES)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UpstreamError(502, sent=Sent.NO), K.CONNECTION),
        (UpstreamError(502, reason="UPSTREAM_CONNECTION"), K.CONNECTION),
        (UpstreamError(502, reason="UPSTREAM_TRUNCATED", sent=Sent.YES), K.CONNECTION),
        (UpstreamError(502, reason="UPSTREAM_EMPTY", sent=Sent.YES), K.TRANSIENT),
        (UpstreamError(504), K.TRANSIENT),
    ],
)
def test_fault_without_an_answer_has_no_status(
    dialect: str, error: UpstreamError, kind: FaultKind
) -> None:
    fault = dialects()[dialect].fault(error, NOW)
    assert (fault.kind, fault.http_status) == (kind, 0)


@pytest.mark.parametrize(
    ("dialect", "chunk", "kind"),
    [
        (
            "openai",
            b'data: {"error":{"message":"slow down","type":"rate_limit_error","code":"429"}}\n\n',
            K.QUOTA,
        ),
        ("openai", b'data: {"error":{"message":"x","type":"server_error"}}\n\n', K.TRANSIENT),
        ("openai", b'data: {"error":{"message":"x"}}\n\n', K.TRANSIENT),
        (
            "openai-response",
            b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}\n\n',
            K.QUOTA,
        ),
        (
            "openai-response",
            b'data: {"type":"error","code":"context_length_exceeded","message":"x"}\n\n',
            K.REQUEST,
        ),
        (
            "claude",
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n',
            K.OVERLOADED,
        ),
        (
            "gemini",
            b'data: {"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}\n\n',
            K.QUOTA,
        ),
    ],
)
def test_fault_inside_a_200_is_judged_like_a_status(
    dialect: str, chunk: bytes, kind: FaultKind
) -> None:
    found = dialects()[dialect].in_stream_error(chunk)
    assert isinstance(found, UpstreamError)
    assert dialects()[dialect].fault(found, NOW).kind is kind


def test_fault_executors_word_counts_where_the_status_alone_decides() -> None:
    dialect = dialects()["openai"]
    error = UpstreamError(500, scope=FaultScope.REQUEST, sent=Sent.YES)
    assert dialect.fault(error, NOW).kind is K.REQUEST
    error = UpstreamError(429, scope=FaultScope.REQUEST, sent=Sent.YES)
    assert dialect.fault(error, NOW).kind is K.QUOTA
    error = UpstreamError(503, scope=FaultScope.CREDENTIAL, sent=Sent.YES)
    assert dialect.fault(error, NOW).scope is CREDENTIAL


def test_fault_should_not_retry_is_noted() -> None:
    error = UpstreamError(503, headers=[(b"x-should-retry", b"false")], sent=Sent.YES)
    assert dialects()["openai"].fault(error, NOW).no_retry


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "5"}, 5),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "864000"}, 864_000),
        ({"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, 60),
        ({"retry-after": "Fri, 15 Jan 2021 08:01:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Fri, 99 Foo 2027"}, None),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9", "retry-after-ms": "x"}, 9),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2m59.56s"}, 179.56),
        ({"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
        ({"x-ratelimit-reset-tokens": "6m0s"}, None),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW * 1000) + 20_000)},
            20,
        ),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW) + 20)}, 20),
    ],
)
def test_wait_of_headers(headers: dict[str, str], expected: float | None) -> None:
    row = Row(429, openai("slow"), K.QUOTA, UNSAID, headers)
    assert dialects()["openai"].fault(failure(row), NOW).retry_after == pytest.approx(expected)


def test_wait_of_the_executor_counts_where_headers_say_nothing() -> None:
    error = UpstreamError(429, retry_after=3, sent=Sent.YES)
    assert dialects()["openai"].fault(error, NOW).retry_after == 3


def test_wait_of_a_refused_credential_is_none() -> None:
    error = UpstreamError(401, retry_after=3, sent=Sent.YES)
    assert dialects()["openai"].fault(error, NOW).retry_after is None


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: abcdefghij1234567890",
        "sent Authorization: Bearer abcdefghij1234567890",
        "called https://x.test/v1?key=abcdefghij1234567890&alt=sse",
        'bad {"api_key": "abcdefghij1234567890"}',
        "the key AIzaabcdefghij1234567890 is bad",
        "token eyJabcdefghij1234567890.x is bad",
    ],
)
def test_message_of_a_fault_shows_no_secret(text: str) -> None:
    row = Row(401, openai(text), K.UNAUTHORIZED, CREDENTIAL)
    assert "abcdefghij1234567890" not in dialects()["openai"].fault(failure(row), NOW).message


def test_message_of_a_fault_is_one_line_of_two_kibibytes() -> None:
    row = Row(500, openai("äö\n" * 9000), K.TRANSIENT, UNSAID)
    message = dialects()["openai"].fault(failure(row), NOW).message
    assert len(message.encode()) <= 2048
    assert "\n" not in message


def test_fault_of_garbage_is_sound() -> None:
    """Whatever a provider sends, there is a kind and no exception."""
    bodies = (
        b"\xff\xfe",
        b"[]",
        b"[1]",
        b"null",
        b'"x"',
        b"{",
        b'{"error":[]}',
        b'{"error":{"details":3}}',
    )
    for body in bodies:
        for dialect in dialects().values():
            error = errors.UpstreamError(500, body=body, sent=Sent.YES)
            assert dialect.fault(error, NOW).kind is K.TRANSIENT
