"""
What an attempt cost: quantities times the prices of the snapshot that the request was pinned to.

Integers only: Σ quantity x nano-units per 10^6, divided once at the end, half to even. A part of a
quantity (cached input, reasoning in the output) is taken out of the whole only where the entry names a
price for the part; without one it costs what the whole costs. Not here: the file (plugins/prices.py) and
who keeps old books (ledger.py).
"""

from __future__ import annotations

import bisect
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay_gateway.plugins.snapshot import PriceEntry
    from patchbay_gateway.usage.events import Info, Usage

_PER: Final = 10**6
_REMEMBERED: Final = 4096
# Nine million units of currency for one attempt: a wrong price, kept from overflowing the sums.
_MAX_COST: Final = 1 << 53


def cost_nano(prices: Mapping[str, int], usage: Usage) -> int:
    """Return the cost of *usage* in nano-units, given unit → nano-units per 10^6."""
    whole_in, whole_out = usage.input_tokens or 0, usage.output_tokens or 0
    total = 0
    price = prices.get("cache_read_tokens")
    if price is not None and usage.cache_read_tokens:
        total += usage.cache_read_tokens * price
        whole_in -= usage.cache_read_tokens
    price = prices.get("cache_creation_tokens")
    if price is not None and usage.cache_creation_tokens:
        total += usage.cache_creation_tokens * price
        whole_in -= usage.cache_creation_tokens
    price = prices.get("reasoning_tokens")
    if price is not None and usage.reasoning_tokens:
        total += usage.reasoning_tokens * price
        whole_out -= usage.reasoning_tokens
    # A provider whose parts exceed the whole contradicts itself; nobody is paid back for that.
    total += max(0, whole_in) * prices.get("input_tokens", 0)
    total += max(0, whole_out) * prices.get("output_tokens", 0)
    for unit, quantity in usage.other:
        total += quantity * prices.get(unit, 0)
    return min(_rounded(total), _MAX_COST)


def _rounded(total: int) -> int:
    whole, rest = divmod(total, _PER)
    if rest * 2 > _PER or (rest * 2 == _PER and whole & 1):
        return whole + 1
    return whole


class PriceBook:
    """
    Prices by snapshot version: each list of entries holds from its version until the next one.

    Args:
        books: (version, entries) as they were kept.
    """

    def __init__(self, books: Iterable[tuple[int, tuple[PriceEntry, ...]]] = ()) -> None:
        self._books = dict(books)
        self._versions = sorted(self._books)
        self._found: dict[tuple[int, str, str], Mapping[str, int]] = {}
        """By the version whose list it is, which never changes."""

    @property
    def newest(self) -> int:
        """The newest version at which prices changed; 0 when there is none."""
        return self._versions[-1] if self._versions else 0

    def add(self, version: int, entries: tuple[PriceEntry, ...]) -> bool:
        """Take the prices of snapshot *version*; False when they are those that held already."""
        at = bisect.bisect_right(self._versions, version)
        if at and self._books[self._versions[at - 1]] == entries:
            return False
        if version in self._books:
            return False  # a version never changes its content; what was billed by it stays
        # In this order, and a new list: the ledger's thread may be looking for a price.
        self._books[version] = entries
        self._versions = [*self._versions[:at], version, *self._versions[at:]]
        return True

    def price(self, info: Info, usage: Usage) -> int:
        """Return what an attempt cost, nano-units; 0 where no entry matches."""
        prices = self._prices(
            info.snapshot_version, info.provider, info.upstream_model or info.model
        )
        return cost_nano(prices, usage) if prices else 0

    def _prices(self, version: int, provider: str, model: str) -> Mapping[str, int]:
        versions = self._versions
        if not versions:
            return {}
        # Older than all we know: the oldest is nearest.
        book = versions[max(0, bisect.bisect_right(versions, version) - 1)]
        key = (book, provider, model)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[key] = next(
                (
                    entry.per_million
                    for entry in self._books[book]
                    if fnmatchcase(provider, entry.provider) and fnmatchcase(model, entry.model)
                ),
                {},
            )
        return found
