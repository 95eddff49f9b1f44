"""
Content-Encoding of request bodies: gzip, deflate, br, zstd, each with a cap on what comes out.

Everything is decompressed piece by piece, so that a bomb costs no more than the cap; what is large is
decompressed in a thread, so that the loop serves others meanwhile. Not here: reading.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Final

import brotli  # type: ignore[import-untyped]
import zstandard

from patchbay.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from patchbay.errors import Headers

_STEP: Final = 256 << 10
# More than so many bytes, in or out, are left to a thread, so many at a time.
_BATCH: Final = 1 << 20
# RFC 8878 §3.1.1.1.2 recommends decoders to support 8 MiB; more is memory that a stranger chooses.
_ZSTD_WINDOW: Final = 8 << 20
_ZSTD_STEP: Final = 128


def content_encoding(headers: Headers) -> str:
    """
    Return the one encoding of a body, '' for none.

    Raises:
        InvalidRequest: reason UNSUPPORTED_MEDIA: an unknown one, or several on top of each other.
    """
    named: list[str] = []
    for name, value in headers:
        if name == b"content-encoding":
            named += [part.strip() for part in value.decode("latin-1").lower().split(",")]
    named = [name for name in named if name not in {"", "identity"}]
    if not named:
        return ""
    encoding = {"x-gzip": "gzip"}.get(named[0], named[0])
    if len(named) > 1 or encoding not in _DECODERS:
        raise InvalidRequest(
            f"content-encoding {', '.join(named)[:100]!r} is not supported; use one of "
            + ", ".join(sorted(_DECODERS)),
            reason="UNSUPPORTED_MEDIA",
        )
    return encoding


async def decompress(
    data: bytes, encoding: str, limit: int, charge: Callable[[int], None] | None = None
) -> bytes:
    """
    Return *data* decompressed.

    Args:
        data: The whole body.
        encoding: From `content_encoding`, not ''.
        limit: Most bytes that may come out.
        charge: Told of each piece before it is kept.

    Raises:
        InvalidRequest: reason BODY_TOO_LARGE, or INVALID_ENCODING for a broken or truncated body.
    """
    parts: list[bytes] = []
    size = 0
    try:
        pieces = _DECODERS[encoding](data)
        batch = _some(pieces) if len(data) <= _BATCH else await asyncio.to_thread(_some, pieces)
        while batch:
            part = b"".join(batch)
            size += len(part)
            if size > limit:
                raise InvalidRequest(
                    f"the decompressed request body is larger than {limit} bytes",
                    reason="BODY_TOO_LARGE",
                )
            if charge is not None:
                charge(len(part))
            parts.append(part)
            # Charged here and not there: the account belongs to the loop.
            batch = await asyncio.to_thread(_some, pieces) if size >= _BATCH else _some(pieces)
    except (zlib.error, brotli.error, zstandard.ZstdError, EOFError) as error:
        raise InvalidRequest(
            f"the request body is not valid {encoding}: {error}", reason="INVALID_ENCODING"
        ) from None
    return b"".join(parts)


def _some(pieces: Iterator[bytes]) -> list[bytes]:
    """Return about `_BATCH` bytes of *pieces*; none at their end."""
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH:
            break
    return batch


def _zlib(data: bytes, wbits: int) -> Iterator[bytes]:
    while data:
        inflater = zlib.decompressobj(wbits)
        while not inflater.eof:
            part = inflater.decompress(data, _STEP)
            if part:
                yield part
            data = inflater.unconsumed_tail
            if not part and not data and not inflater.eof:
                raise EOFError("the end is missing")
        # gzip files may be joined (RFC 1952 §2.2).
        data = inflater.unused_data


def _gzip(data: bytes) -> Iterator[bytes]:
    return _zlib(data, zlib.MAX_WBITS | 16)


def _deflate(data: bytes) -> Iterator[bytes]:
    # HTTP means the zlib format (RFC 9110 §8.4.1.2); some clients send the bare stream.
    wrapped = len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return _zlib(data, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)


def _brotli(data: bytes) -> Iterator[bytes]:
    decoder = brotli.Decompressor()
    part = decoder.process(data, output_buffer_limit=_STEP)
    while True:
        if part:
            yield part
        if decoder.is_finished():
            return
        # With the buffer just full, it wants more before it has seen its own end.
        if not part and decoder.can_accept_more_data():
            raise EOFError("the end is missing")
        part = decoder.process(b"", output_buffer_limit=_STEP)


def _zstd(data: bytes) -> Iterator[bytes]:
    # The reader of this library takes a truncated frame for a short one; its plain object tells the end
    # but cannot bound what a call returns, so what goes in is bounded: 4 bytes make at most 128 KiB.
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    at = 0
    while at < len(data):
        frame = decoder.decompressobj()
        while not frame.eof:
            if at >= len(data):
                raise EOFError("the end is missing")
            if part := frame.decompress(data[at : at + _ZSTD_STEP]):
                yield part
            at += _ZSTD_STEP
        at = min(at, len(data)) - len(frame.unused_data)


_DECODERS: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
