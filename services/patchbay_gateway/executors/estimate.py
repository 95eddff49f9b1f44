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

MOST: Final = 1 << 53
"""A number of tokens above it, where JSON's numbers lose their units, is none; ledgers hold 64 bits."""


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
        before = self.total
        find = block.find
        for name in self._fields:
            at = find(name)
            while at >= 0:
                at += len(name)
                # A string follows, perhaps after a blank; null, lists and objects do not count.
                start = at + (block[at : at + 1] == b" ")
                if block[start : start + 1] == b'"':
                    start += 1
                    at = find(b'"', start)
                    while at > start and block[at - 1] == 0x5C and _escaped(block, start, at):
                        at = find(b'"', at + 1)
                    if at < 0:
                        at = len(block)
                    self.total += at - start
                at = find(name, at)
        # Some serializers have a blank before the colon.
        if self.total == before and find(b'" :') >= 0:
            self.add(block.replace(b'" :', b'":'))


def _escaped(block: bytes, start: int, quote: int) -> bool:
    """Whether an odd number of backslashes stands before *quote* in the string that begins at *start*."""
    before = block[start:quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


class Estimate:
    """
    The estimates of one call while its output grows.

    Args:
        payload: Bytes of the request's body.
        factor: The provider's, for languages and tokenizers that differ from the rule.
    """

    __slots__ = ("_input", "_share")

    def __init__(self, payload: int, factor: float = 1.0) -> None:
        self._share = factor / BYTES_PER_TOKEN
        self._input = ("input_tokens", round(payload * self._share))

    def usage(self, output: int) -> Usage:
        """Return the estimate after *output* bytes that the model produced."""
        return Usage((self._input, ("output_tokens", round(output * self._share))), True)


def estimate(payload: int, output: int, factor: float = 1.0) -> Usage:
    """Return the estimate of a call that produced *output* bytes; for the rest see `Estimate`."""
    return Estimate(payload, factor).usage(output)
