"""
Answers that come compressed although we ask for none: gzip and deflate are undone, all else is refused.

Nothing is taken for whole that is not: what is left to come when the answer ends is its truncation, and bytes
of an unknown coding are nobody's JSON. Not here: codings of connections (chunked), bodies of clients.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from patchbay import errors
from patchbay_gateway.executors.upstream import TRUNCATED

ENCODING: Final = "UPSTREAM_ENCODING"
"""Reason: the answer has a content encoding that is not understood, or is not what it says."""

_GZIP: Final = frozenset({b"gzip", b"x-gzip"})
# No coding at all; some servers name the charset here.
_PLAIN: Final = frozenset({b"", b"identity", b"none", b"utf-8"})
# What one piece of a compressed answer may become; more is a bomb.
_MAX_INFLATED: Final = 16 << 20


def decoder(value: bytes) -> Decoder | None:
    """Return what undoes a `content-encoding` of this value; None where it names none."""
    codings = [
        coding for part in value.split(b",") if (coding := part.strip().lower()) not in _PLAIN
    ]
    return Decoder(b", ".join(codings)) if codings else None


class Decoder:
    """
    Undoes the coding of one answer.

    Args:
        coding: Its name in lower case; one that is not understood is refused with the first bytes.
    """

    __slots__ = ("_coding", "_member", "_over")

    def __init__(self, coding: bytes) -> None:
        self._coding = coding
        self._member: Any = None
        self._over = False

    def decode(self, data: bytes) -> bytes:
        """
        Return what *data* adds, perhaps nothing yet.

        Raises:
            UpstreamError: 502; UPSTREAM_ENCODING: a coding that is not understood, or bytes that are not of
                it; UPSTREAM_TOO_LARGE: a bomb.
        """
        found: list[bytes] = []
        room = _MAX_INFLATED
        while data and not self._over:
            if self._member is None:
                self._member = self._begun(data)
            member = self._member
            try:
                plain: bytes = member.decompress(data, max(room, 1))
            except zlib.error as error:
                raise _refused(
                    f"the provider's answer is not the {self._name} that it says it is"
                ) from error
            if member.unconsumed_tail:
                raise errors.UpstreamError(
                    502,
                    "the provider's compressed answer is too large",
                    reason="UPSTREAM_TOO_LARGE",
                    sent=errors.Sent.YES,
                )
            found.append(plain)
            room -= len(plain)
            data = member.unused_data if member.eof else b""
            if member.eof:
                data = self._after(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def end(self) -> None:
        """
        Take the regular end of the answer.

        Raises:
            UpstreamError: 502 UPSTREAM_TRUNCATED, what was compressed had not ended. An answer without a
                byte is empty, whatever it says of itself.
        """
        if self._member is not None and not self._member.eof:
            raise errors.UpstreamError(
                502,
                "the provider's compressed answer ended before it was complete",
                reason=TRUNCATED,
                sent=errors.Sent.YES,
            )

    @property
    def _name(self) -> str:
        return self._coding[:40].decode("latin-1")

    def _begun(self, data: bytes) -> Any:
        if self._coding in _GZIP:
            return zlib.decompressobj(zlib.MAX_WBITS | 32)
        if self._coding == b"deflate":
            # Some servers leave out zlib's header, whose first byte ends in 8; no raw block begins so.
            raw = data[0] & 0x0F != 8 and data[0] != 0x1F
            return zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        raise _refused(
            f"the provider's answer has a content encoding that is not understood ({self._name})"
        )

    def _after(self, data: bytes) -> bytes:
        """Return the beginning of the next member of a gzip file; zeros and rubbish after it are nothing."""
        if self._coding not in _GZIP:
            self._over = True
            return b""
        data = data.lstrip(b"\0")
        if data[:1] == b"\x1f":
            self._member = None
        elif data:
            self._over = True
            return b""
        return data


def _refused(message: str) -> errors.UpstreamError:
    return errors.UpstreamError(502, message, reason=ENCODING, sent=errors.Sent.YES)
