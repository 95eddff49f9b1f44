"""Compressed answers: whole, in pieces, half, of several members, of codings that are not understood."""

from __future__ import annotations

import gzip
import zlib

import pytest

from patchbay import errors
from patchbay_gateway.executors.content_coding import Decoder, decoder

TEXT = b'{"answer":"' + b"word " * 200 + b'"}'


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeezer.compress(data) + squeezer.flush()


def zipped(data: bytes) -> bytes:
    # Without the time of day: data are in the names of tests, which are the same in each worker.
    return gzip.compress(data, mtime=0)


FORMS = [
    (b"gzip", zipped(TEXT)),
    (b"gzip", zipped(TEXT[:40]) + zipped(TEXT[40:])),
    (b"gzip", zipped(TEXT) + b"\0" * 9),
    (b"gzip", zipped(TEXT[:40]) + b"\0" * 9 + zipped(TEXT[40:])),
    (b"gzip", zipped(TEXT) + b"rubbish"),
    (b"x-gzip", zipped(TEXT)),
    (b"deflate", zlib.compress(TEXT)),
    (b"deflate", raw_deflate(TEXT)),
    (b"deflate", zipped(TEXT)),
]


def make(coding: bytes) -> Decoder:
    made = decoder(coding)
    assert made is not None
    return made


def decoded(coding: bytes, data: bytes, size: int) -> bytes:
    made = make(coding)
    plain = b"".join(made.decode(data[at : at + size]) for at in range(0, len(data), size))
    made.end()
    return plain


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("coding", "data"), FORMS)
def test_whole_answer_is_decoded(coding: bytes, data: bytes, size: int) -> None:
    assert decoded(coding, data, size) == TEXT


@pytest.mark.parametrize("cut", [1, 5, 20])
@pytest.mark.parametrize(("coding", "data"), [FORMS[0], FORMS[1], FORMS[6], FORMS[7]])
def test_half_an_answer_is_truncated(coding: bytes, data: bytes, cut: int) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        decoded(coding, data[:-cut], 1 << 20)
    assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_TRUNCATED")


@pytest.mark.parametrize("value", [b"", b"identity", b"Identity, ", b"utf-8"])
def test_no_coding_needs_no_decoder(value: bytes) -> None:
    assert decoder(value) is None


@pytest.mark.parametrize("value", [b"br", b"zstd", b"gzip, gzip", b"br, identity", b"\xff"])
def test_coding_that_is_not_understood_is_refused_by_name(value: bytes) -> None:
    made = make(value)
    with pytest.raises(errors.UpstreamError, match="content encoding") as caught:
        made.decode(TEXT)
    assert (caught.value.http_status, caught.value.reason) == (502, "UPSTREAM_ENCODING")
    assert value.split(b",")[0].decode("latin-1") in str(caught.value)


@pytest.mark.parametrize("value", [b"gzip", b"deflate", b"br"])
def test_answer_without_a_byte_is_empty(value: bytes) -> None:
    make(value).end()


@pytest.mark.parametrize("value", [b"gzip", b"deflate"])
def test_answer_that_is_not_what_it_says_is_refused(value: bytes) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        make(value).decode(TEXT)
    assert caught.value.reason == "UPSTREAM_ENCODING"


@pytest.mark.parametrize("members", [1, 40])
def test_bomb_is_refused(members: int) -> None:
    bomb = gzip.compress(b"0" * ((32 << 20) // members)) * members
    with pytest.raises(errors.UpstreamError) as caught:
        make(b"gzip").decode(bomb)
    assert caught.value.reason == "UPSTREAM_TOO_LARGE"
