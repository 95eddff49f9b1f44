"""
How far each writer's journal is committed: a sequence below which nothing is missing, and what lies beyond.

A writer truncates its write-ahead file at the watermark, so a gap must hold it back: two consumers of one
group commit out of order, and one of them may die with its share. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Progress(msgspec.Struct, frozen=True):
    """Progress of one writer."""

    sequence: int = 0
    """All events up to it are committed."""
    ahead: tuple[tuple[int, int], ...] = ()
    """Committed ranges above it, ascending, ends included, none touching another."""

    def committed(self, sequences: Iterable[int]) -> Progress:
        """Return the progress after *sequences* were committed too; order and repetition are no matter."""
        ranges = list(self.ahead)
        for sequence in sorted({s for s in sequences if s > self.sequence}):
            if ranges and ranges[-1][1] + 1 == sequence:
                ranges[-1] = (ranges[-1][0], sequence)
            else:
                ranges.append((sequence, sequence))
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if merged and merged[0][0] <= self.sequence + 1:
            return Progress(max(self.sequence, merged[0][1]), tuple(merged[1:]))
        return Progress(self.sequence, tuple(merged))

    def without_gaps(self) -> Progress:
        """Return the progress as if what is missing had never been: for gaps that nobody will fill."""
        return Progress(self.ahead[-1][1]) if self.ahead else self
