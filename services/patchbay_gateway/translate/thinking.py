"""
How much a model is asked to think: the suffix of a model name, levels and budgets.

`name(high)` and `name(8192)` ask for a level or a budget of tokens; the tables between the two are those of
CLIProxyAPI, so that clients who come from there see a model behave alike. Not here: which model can think
at all, and plugins that apply it (plugins/translation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LEVEL_BUDGETS: Final = {
    "none": 0,
    "auto": -1,
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 32768,
    "max": 128000,
}
"""Level → budget in tokens; -1 leaves it to the provider."""
_STEPS: Final = ((512, "minimal"), (1024, "low"), (8192, "medium"), (24576, "high"))

CLAUDE_LEAST: Final = 1024
"""Smallest budget that Claude takes (Anthropic, extended thinking)."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """What was asked for; one of the two, or neither."""

    level: str = ""
    budget: int | None = None

    @property
    def tokens(self) -> int | None:
        """The budget that it means; None when nothing was asked."""
        if self.budget is not None:
            return self.budget
        return LEVEL_BUDGETS.get(self.level)


def split_suffix(model: str) -> tuple[str, str]:
    """Return the name without the parenthesis at its end, and what stands in it; empty without one."""
    if not model.endswith(")"):
        return model, ""
    name, opened, inside = model[:-1].rpartition("(")
    if not opened or not name:
        return model, ""
    return name, inside.strip()


def parse_suffix(inside: str) -> Thinking | None:
    """Return what the text in the parenthesis asks for; None when it is no such thing."""
    lowered = inside.lower()
    if lowered == "-1":
        return Thinking(level="auto")
    if lowered in LEVEL_BUDGETS:
        return Thinking(level=lowered)
    if lowered.isascii() and lowered.isdigit():
        budget = int(lowered)
        return Thinking(level="none") if budget == 0 else Thinking(budget=budget)
    return None


def level_of(budget: int) -> str:
    """
    Return the level that *budget* means.

    Raises:
        ValueError: It is below -1.
    """
    if budget < -1:
        raise ValueError(f"a budget of {budget} tokens means nothing; -1 leaves it to the provider")
    if budget <= 0:
        return "auto" if budget else "none"
    for most, level in _STEPS:
        if budget <= most:
            return level
    return "xhigh"
