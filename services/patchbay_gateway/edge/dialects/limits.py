"""
What a provider's headers say of its limits: `x-ratelimit-*` and `anthropic-ratelimit-*`.

Cheap to ask: `low` looks at two headers; only `parse` takes all apart. Pure. Not here: how often somebody
asks (edge/sampling.py), what is done with it (scheduler).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay_gateway.edge.dialects import waits

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNIT: Final = re.compile(r"[a-z0-9_]{1,48}")
_MAX_UNITS: Final = 8
_MAX_NUMBER: Final = 2**53


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit."""

    unit: str
    limit: int = 0
    """0 when not said."""
    remaining: int = -1
    """-1 when not said."""
    reset: float | None = None
    """Seconds until it is whole again."""


def parse(headers: Iterable[tuple[str, str]], now: float) -> list[Limit]:
    """
    Return the limits of *headers*, at most eight, in order of appearance.

    Args:
        headers: Names in lower case, with their values.
        now: Unix seconds.
    """
    found: dict[str, dict[str, str]] = {}
    for name, value in headers:
        unit, what = _split(name)
        if unit and _UNIT.fullmatch(unit) and (unit in found or len(found) < _MAX_UNITS):
            found.setdefault(unit, {})[what] = value.strip()
    limits = []
    for unit, parts in found.items():
        limit, remaining = _whole(parts.get("limit")), _whole(parts.get("remaining"))
        reset = waits.until(parts["reset"], now) if "reset" in parts else None
        if limit is not None or remaining is not None or reset is not None:
            limits.append(Limit(unit, limit or 0, -1 if remaining is None else remaining, reset))
    return limits


def _split(name: str) -> tuple[str, str]:
    """Return (unit, `limit` | `remaining` | `reset`) of a header's name, else two empty strings."""
    if name.startswith("x-ratelimit-"):
        what, _, unit = name[12:].partition("-")
        unit = unit or "requests"
    elif name.startswith("anthropic-ratelimit-"):
        unit, _, what = name[20:].rpartition("-")
    else:
        return "", ""
    if what not in {"limit", "remaining", "reset"}:
        return "", ""
    return unit.replace("-", "_"), what


def _whole(text: str | None) -> int | None:
    found = waits.number(text) if text else None
    return min(int(found), _MAX_NUMBER) if found is not None else None
