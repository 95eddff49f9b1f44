"""Headers that plugins and executors say, as they may be used."""

from __future__ import annotations

import pytest

from patchbay import status
from patchbay.plugin.v1 import request_interceptor_pb2
from patchbay_gateway.plugins.header_merge import for_client, told
from patchbay_gateway.plugins.response_headers import for_pages


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ((b"X-Team", b"a"), [(b"x-team", b"a")]),
        ((b"x-team", b"a\r\nx-evil: 1"), [(b"x-team", b"a  x-evil: 1")]),
        ((b"x-team", b"a\0b"), [(b"x-team", b"a b")]),
        ((b"x-team", bytes(range(0x80, 0x100))), [(b"x-team", bytes(range(0x80, 0x100)))]),
        ((b"x team", b"a"), []),
        ((b"x-evil: 1\r\nx-team", b"a"), []),
        ((b"x-\xfc", b"a"), []),
        ((b"", b"a"), []),
    ],
)
def test_header_is_a_name_and_one_line(
    said: tuple[bytes, bytes], used: list[tuple[bytes, bytes]]
) -> None:
    assert told([said]) == used
    assert for_client([said]) == used
    assert for_pages([said]) == used


def test_hosts_own_headers_are_kept_back_however_they_are_written() -> None:
    said = [(b"Set-Cookie", b"a=b"), (b"X-Patchbay-Model", b"x"), (b"Content-Length", b"3")]
    assert for_client(said) == []


def test_text_that_no_header_can_hold_is_a_question_mark() -> None:
    message = request_interceptor_pb2.RequestInterceptResponse()
    message.response_headers["x-price"].values.append("3 \u20ac")
    message.response_headers["x-\u20ac"].values.append("1")
    found = status.headers_from_map(message.response_headers)
    assert sorted(found) == [(b"x-?", b"1"), (b"x-price", b"3 ?")]
