"""
Estimates of what an answer consumed, for providers that do not say it.

Nothing is parsed: the fields that hold what a model produced are looked for, and the lengths of their strings
are added as they stand in the JSON (an escape counts as its characters, so it is a little high) and divided
by 4. Runs on whole blocks of events. Not here: which fields a dialect has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.executor import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES_PER_TOKEN: Final = 4
"""Rule of thumb for text in English; the provider's factor corrects it."""


class OutputCounter:
    """
    Counts the bytes that a model produced in a stream.

    Args:
        fields: Which fields hold them.
    """

    __slots__ = ("_fields", "total")

    def __init__(self, fields: Sequence[bytes]) -> None:
        self._fields = fields
        self.total = 0
        """UTF-8 bytes so far."""

    def add(self, block: bytes) -> None:
        """Count *block*: whole events, joined."""
        for name in self._fields:
            if name in block:
                for piece in block.split(name)[1:]:
                    # A string follows, perhaps after a blank; null, lists and objects do not count.
                    start = 1 if piece.startswith(b'"') else 2 if piece.startswith(b' "') else 0
                    if start:
                        self.total += _end_of_string(piece, start) - start


def _end_of_string(piece: bytes, start: int) -> int:
    end = piece.find(b'"', start)
    while end > 0 and piece[end - 1] == 0x5C and _escaped(piece, end):
        end = piece.find(b'"', end + 1)
    return end if end >= 0 else len(piece)


def _escaped(piece: bytes, quote: int) -> bool:
    """Whether an odd number of backslashes stands before *quote*."""
    before = piece[:quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def estimate(payload: int, output: int, factor: float = 1.0) -> Usage:
    """
    Return the estimate of a call.

    Args:
        payload: Bytes of the request's body.
        output: Bytes that the model produced.
        factor: The provider's, for languages and tokenizers that differ from the rule.
    """
    share = factor / BYTES_PER_TOKEN
    return Usage(
        (("input_tokens", round(payload * share)), ("output_tokens", round(output * share))),
        estimated=True,
    )
