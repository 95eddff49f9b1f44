"""Headers between executor and provider."""

from __future__ import annotations

import math

import pytest

from patchbay.type.v1.headers_pb2 import StringList
from patchbay.upstream_headers import answer_headers, forwarded, header, parse_retry_after

NOW = 1_700_000_000.0


def test_forwarded_only_the_allow_list() -> None:
    headers = {
        "openai-organization": StringList(values=["a", "b"]),
        "idempotency-key": StringList(values=["k"]),
        "authorization": StringList(values=["Bearer test-key"]),
        "x-openai-thing": StringList(values=["no"]),
    }
    assert forwarded(headers, names={"idempotency-key"}, prefixes=("openai-",)) == [
        (b"openai-organization", b"a"),
        (b"openai-organization", b"b"),
        (b"idempotency-key", b"k"),
    ]


def test_answer_headers_drops_the_connections_own() -> None:
    raw = [
        (b"X-Request-Id", b"r"),
        (b"X-Hop", b"1"),
        (b"Connection", b"keep-alive, x-hop"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"5"),
        (b"Content-Encoding", b"gzip"),
        (b"Content-Type", b"application/json"),
    ]
    found = answer_headers(raw)
    assert found == [(b"x-request-id", b"r"), (b"content-type", b"application/json")]
    assert header(found, b"content-type") == b"application/json"
    assert header(found, b"etag") == b""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b" 0.5 ", 0.5),
        (b"0", 0.0),
        (b"99999", 3600.0),
        (b"Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        (b"Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        (b"", None),
        (b"-5", None),
        (b"nan", None),
        (b"inf", None),
        (b"soon", None),
        (b"Tue, 99 Nov 2023", None),
        (b"\xff\xfe", None),
    ],
)
def test_parse_retry_after(value: bytes, seconds: float | None) -> None:
    found = parse_retry_after(value, NOW)
    assert found == seconds or (found is not None and math.isclose(found, seconds or 0, abs_tol=1))
