"""
What is wrong with a configuration: a list of places and sentences.

Not here: finding it (file.py, model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchbay.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    path: str
    """Dotted path of the key, as `providers.0.base_url`; empty for the whole."""
    message: str
    """What is wrong and what to write instead."""
    line: int | None = None
    """Line in the file, from 1; None when it did not come from a file."""
    source: str = ""
    """File or environment variable."""

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.source, self.line) if p)
        return ": ".join(p for p in (place, self.path, self.message) if p)


class ConfigError(InvalidRequest):
    """The configuration cannot be used; `problems` says why, all of it at once."""

    default_reason = "INVALID_CONFIGURATION"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)
