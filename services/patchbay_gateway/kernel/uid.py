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
# A random byte to a random digit: 256 is a multiple of 32, so all are equally likely.
_DIGIT = (_ALPHABET * 8).encode()
# One system call for so many ids.
_BLOCK_IDS = 256
_RANDOM_DIGITS = 16
_TIME_DIGITS = 10


class UidSource:
    """Mints ULIDs: 48 bits of Unix milliseconds, 80 random bits, 26 characters."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._random = ""
        self._used = 0
        self._millis = -1
        self._time = ""

    def mint(self) -> str:
        """Return a new ULID."""
        millis = int(self._clock.now() * 1000)
        if millis != self._millis:
            self._millis = millis
            self._time = "".join(
                [_ALPHABET[millis >> shift & 31] for shift in range(5 * _TIME_DIGITS - 5, -1, -5)]
            )
        start = self._used
        if start >= len(self._random):
            random = os.urandom(_RANDOM_DIGITS * _BLOCK_IDS)
            self._random = random.translate(_DIGIT).decode("ascii")
            start = 0
        self._used = start + _RANDOM_DIGITS
        return self._time + self._random[start : self._used]


def attempt_uid(request_uid: str, number: int) -> str:
    """Return the uid of attempt *number* (from 1; 0 names a refusal) of a request."""
    return f"{request_uid}-{number}"
