"""
Durations and sizes as people write them: `15s`, `1h30m`, `250ms`; `64MiB`, `10MB`.

Annotated types for the configuration model and the functions behind them. Not here: which key has which
default (model.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b)", re.IGNORECASE)


def parse_duration(value: object) -> float:
    """
    Return *value* in seconds.

    Args:
        value: `250ms`, `15s`, `5m`, `1h`, `1h30m`, `2d`, or a bare 0.

    Raises:
        ValueError: Anything else; a bare number has no unit and is refused.
    """
    text = str(value).strip() if not isinstance(value, bool) else ""
    if text in {"0", "0.0"}:
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{value!r} is no duration; write it like 250ms, 15s, 5m or 1h")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def parse_size(value: object) -> int:
    """
    Return *value* in bytes.

    Args:
        value: `64MiB`, `10MB`, `512KiB`, or an integer of bytes.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        return int(text)
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{value!r} is no size; write it like 512KiB, 32MiB or 1GiB")
    return int(float(found[1]) * _SIZE_UNITS[found[2].lower()])


def format_duration(seconds: float) -> str:
    """Return *seconds* as `parse_duration` reads it, in the largest unit that divides it."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def format_size(size: int) -> str:
    """Return *size* bytes as `parse_size` reads it, in the largest binary unit that divides it."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "pattern": r"^((\d+(\.\d+)?)(ms|s|m|h|d))+$",
            "maximum": 0,
            "minimum": 0,
            "description": "Duration with a unit, such as 250ms, 15s, 5m, 1h.",
        }
    ),
]
"""Seconds in Python, a string with a unit in the file."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "pattern": r"^\d+(\.\d+)?\s*([kKmMgG]?[iI]?[bB])?$",
            "minimum": 0,
            "description": "Size with a unit, such as 512KiB, 32MiB.",
        }
    ),
]
"""Bytes in Python, a string with a unit in the file."""


def duration(default: str) -> Any:
    """Return a model field of type `Duration` whose default is *default*, shown as written."""
    return Field(default=parse_duration(default), json_schema_extra={"default": default})


def size(default: str) -> Any:
    """Return a model field of type `Size` whose default is *default*, shown as written."""
    return Field(default=parse_size(default), json_schema_extra={"default": default})
