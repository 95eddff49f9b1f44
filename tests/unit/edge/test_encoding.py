"""Decompression of request bodies: each encoding, broken ones, bombs."""

import asyncio
import gzip
import tracemalloc
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge.encoding import content_encoding, decompress

TEXT = b'{"model":"echo","messages":[]}' * 5000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("name", PACKERS)
async def test_decompress_round_trip(name: str) -> None:
    assert await decompress(PACKERS[name](TEXT), name.strip(), len(TEXT)) == TEXT


@pytest.mark.parametrize("name", PACKERS)
async def test_decompress_truncated_is_refused(name: str) -> None:
    packed = PACKERS[name](TEXT)
    with pytest.raises(InvalidRequest) as caught:
        await decompress(packed[: len(packed) // 2], name.strip(), len(TEXT))
    assert caught.value.reason == "INVALID_ENCODING"


@pytest.mark.parametrize("name", ["gzip", "br", "zstd", "deflate"])
async def test_decompress_garbage_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        await decompress(b"this is no compressed data at all", name, 1 << 20)


@pytest.mark.parametrize("name", PACKERS)
async def test_decompress_one_byte_over_the_cap_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await decompress(PACKERS[name](TEXT), name.strip(), len(TEXT) - 1)
    assert caught.value.reason == "BODY_TOO_LARGE"


@pytest.mark.parametrize("name", PACKERS)
async def test_decompress_bomb_costs_no_more_than_the_cap(name: str) -> None:
    bomb = PACKERS[name](bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            await decompress(bomb, name.strip(), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", PACKERS)
async def test_decompress_large_body_leaves_the_loop_free(name: str) -> None:
    """The loop takes turns with the decompression: what was put to it meanwhile has run."""
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    loop.call_soon(turn)
    body = bytes(8 << 20)
    packed = PACKERS[name](body)
    turns = 0
    assert await decompress(packed, name.strip(), len(body)) == body
    assert turns >= 2


async def test_decompress_joined_members_are_one_body() -> None:
    assert await decompress(gzip.compress(b"ab") + gzip.compress(b"cd"), "gzip", 10) == b"abcd"
    pack = zstandard.ZstdCompressor().compress
    assert await decompress(pack(b"ab") + pack(b"cd" * 300), "zstd", 1000) == b"ab" + b"cd" * 300


async def test_decompress_charges_what_comes_out() -> None:
    charged: list[int] = []
    await decompress(gzip.compress(TEXT), "gzip", len(TEXT), charged.append)
    assert sum(charged) == len(TEXT)


def test_content_encoding_names() -> None:
    assert content_encoding([]) == ""
    assert content_encoding([(b"content-encoding", b"identity")]) == ""
    assert content_encoding([(b"content-encoding", b"X-GZIP")]) == "gzip"
    assert content_encoding([(b"content-encoding", b"br")]) == "br"


@pytest.mark.parametrize("value", [b"gzip, br", b"compress", b"gzip,gzip"])
def test_content_encoding_stacked_or_unknown_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        content_encoding([(b"content-encoding", value)])
    assert caught.value.reason == "UNSUPPORTED_MEDIA"


def test_content_encoding_two_headers_are_stacked() -> None:
    with pytest.raises(InvalidRequest):
        content_encoding([(b"content-encoding", b"gzip"), (b"content-encoding", b"br")])
