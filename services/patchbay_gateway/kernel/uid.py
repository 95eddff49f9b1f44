"""
Request ids: ULIDs, sortable by time and unique without coordination (github.com/ulid/spec).

Not here: what they are used for; `request_uid` and `attempt_uid` are words of docs/architecture.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time: 13 look-ups a ULID instead of 26.
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
# One system call for so many ids.
_ENTROPY_BLOCK = 10 * 256


class UidSource:
    """Mints ULIDs: 48 bits of Unix milliseconds, 80 random bits, 26 characters."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entropy = b""
        self._used = 0

    def mint(self) -> str:
        """Return a new ULID."""
        if self._used >= len(self._entropy):
            self._entropy = os.urandom(_ENTROPY_BLOCK)
            self._used = 0
        start = self._used
        self._used += 10
        random = int.from_bytes(self._entropy[start : self._used], "big")
        value = (int(self._clock.now() * 1000) & 0xFFFFFFFFFFFF) << 80 | random
        pairs = _PAIRS
        return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])


def attempt_uid(request_uid: str, number: int) -> str:
    """Return the uid of attempt *number* (from 1; 0 names a refusal) of a request."""
    return f"{request_uid}-{number}"
