"""
What an Anthropic answer consumed, in the ledger's units.

Anthropic counts cached input beside `input_tokens`, the ledger inside of it; thinking is a part of the output
for both. Writes to the cache that live an hour cost more than those of five minutes, so besides
`cache_creation_tokens` there are its parts `cache_creation_5m_tokens` and `cache_creation_1h_tokens`; tools
that run at the provider are units of their own, as `web_search_requests`. Numbers of a stream are cumulative
and repeated in part, so of each the largest counts. Not here: prices, estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.executor import Usage
from patchbay_gateway.executors.estimate import MOST

if TYPE_CHECKING:
    from collections.abc import Iterable

OUTPUT_FIELDS: Final = (b'"text":', b'"partial_json":', b'"thinking":')
"""Fields of a stream event that hold what the model produced."""

_DIRECT: Final = {
    "input_tokens": "uncached",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "cache_creation_input_tokens": "cache_creation_tokens",
}
_INSIDE: Final = {
    "cache_creation": {
        "ephemeral_5m_input_tokens": "cache_creation_5m_tokens",
        "ephemeral_1h_input_tokens": "cache_creation_1h_tokens",
    },
    "output_tokens_details": {"thinking_tokens": "reasoning_tokens"},
}
_PARTS: Final = (
    "cache_read_tokens",
    "cache_creation_tokens",
    "cache_creation_5m_tokens",
    "cache_creation_1h_tokens",
    "reasoning_tokens",
)
_OWN: Final = frozenset({"uncached", "output_tokens", *_PARTS})


class _Body(msgspec.Struct):
    """The part of a body or event that can hold usage; the decoder skips the rest."""

    usage: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def has_usage(block: bytes) -> bool:
    """Whether *block* may hold a usage object; of a stream the first and the last events do."""
    return block.find(b'"usage"') >= 0


def usage_object(body: bytes) -> dict[str, Any] | None:
    """Return the `usage` of a JSON body, or of the `message` in it; None without one or if malformed."""
    try:
        document = _decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    usage = document.usage
    if not isinstance(usage, dict) and isinstance(document.message, dict):
        usage = document.message.get("usage")
    return usage if isinstance(usage, dict) else None


class Counts:
    """The largest number seen of each kind."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    @property
    def known(self) -> bool:
        """Whether the provider has said anything."""
        return bool(self._counts)

    def add(self, usage: dict[str, Any]) -> None:
        """Take a `usage` object."""
        for name, unit in _DIRECT.items():
            self._take(unit, usage.get(name))
        for name, units in _INSIDE.items():
            inside = usage.get(name)
            if isinstance(inside, dict):
                for key, unit in units.items():
                    self._take(unit, inside.get(key))
        tools = usage.get("server_tool_use")
        if isinstance(tools, dict):
            for key, value in tools.items():
                if key not in _OWN:
                    self._take(key, value)

    def usage(self, output: int = 0, *, estimated: bool = False) -> Usage:
        """
        Return the units.

        Args:
            output: Output tokens that were counted by ourselves; the larger number counts.
            estimated: Whether the provider has yet to say its last numbers.
        """
        counts = self._counts
        created = max(
            counts.get("cache_creation_tokens", 0),
            counts.get("cache_creation_5m_tokens", 0) + counts.get("cache_creation_1h_tokens", 0),
        )
        items = [
            (
                "input_tokens",
                counts.get("uncached", 0) + counts.get("cache_read_tokens", 0) + created,
            ),
            ("output_tokens", max(counts.get("output_tokens", 0), output)),
        ]
        for unit in _PARTS:
            quantity = created if unit == "cache_creation_tokens" else counts.get(unit, 0)
            if quantity:
                items.append((unit, quantity))
        items += ((unit, n) for unit, n in counts.items() if n and unit not in _OWN)
        return Usage(tuple(items), estimated=estimated)

    def _take(self, unit: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST:
            self._counts[unit] = max(self._counts.get(unit, 0), int(value))


def whole_usage(objects: Iterable[dict[str, Any] | None]) -> Usage | None:
    """Return the usage of a complete answer; None when nothing is known."""
    counts = Counts()
    for usage in objects:
        if usage is not None:
            counts.add(usage)
    return counts.usage() if counts.known else None
