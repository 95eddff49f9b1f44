"""
The prices file: what providers ask per million of a unit, read exactly.

A list of `{provider, model, currency, per_million: {unit: price}}`; provider and model are globs with
default `*`, model over the provider's own name; the first entry that matches wins. Prices are decimals in
units of the currency and become integer nano-units; quoted or not, they are read as they are written,
never as floating point. All entries share one currency, because the ledger adds them up. Here because the
snapshot's builder and the ledger both need it. Not here: costs (usage/pricing.py).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

import yaml

from patchbay.errors import InvalidRequest
from patchbay_gateway.plugins.snapshot import PriceEntry

if TYPE_CHECKING:
    from pathlib import Path

NANO: Final = Decimal(10**9)
_KEYS: Final = frozenset({"provider", "model", "currency", "per_million"})
_LARGEST: Final = Decimal(10**6)  # currency units per million: a unit each; more is a mistake


def load_prices(path: Path | str) -> tuple[PriceEntry, ...]:
    """
    Return the entries of the prices file *path*, in its order.

    Raises:
        InvalidRequest: It cannot be read or is wrong; the text names file, entry and remedy.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - str or Path
            text = file.read()
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _wrong(path, "is not text") from error
    return parse_prices(text, source=str(path))


def parse_prices(text: str, *, source: str = "prices") -> tuple[PriceEntry, ...]:
    """
    Return the entries in *text*.

    Raises:
        InvalidRequest: As `load_prices`; *source* names the text.
    """
    try:
        # BaseLoader leaves every scalar a string: 2.50 must not become a float on its way.
        data = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds strings only
    except yaml.YAMLError as error:
        raise _wrong(source, f"is not YAML: {error}") from error
    if data in (None, ""):
        return ()
    if not isinstance(data, list):
        raise _wrong(source, "must be a list of entries")
    entries, currencies = [], set()
    for number, item in enumerate(data, 1):
        entry, currency = _entry(item, f"{source}: entry {number}")
        entries.append(entry)
        currencies.add(currency)
    if len(currencies - {""}) > 1:
        named = ", ".join(sorted(currencies - {""}))
        raise _wrong(source, f"has several currencies ({named}); convert them to one")
    return tuple(entries)


def _entry(item: Any, where: str) -> tuple[PriceEntry, str]:
    if not isinstance(item, dict):
        raise _wrong(where, "must be a mapping with provider, model and per_million")
    if unknown := sorted(set(item) - _KEYS):
        raise _wrong(where, f"has the unknown key {unknown[0]}; known: {', '.join(sorted(_KEYS))}")
    per_million = item.get("per_million")
    if not isinstance(per_million, dict) or not per_million:
        raise _wrong(where, "needs per_million: {unit: price}")
    prices = {str(unit): _nano(price, f"{where}: {unit}") for unit, price in per_million.items()}
    names = [item.get(key) or "*" for key in ("provider", "model")]
    currency = item.get("currency", "")
    if not all(isinstance(value, str) for value in (*names, currency)):
        raise _wrong(where, "provider, model and currency must be text")
    return PriceEntry(names[0], names[1], prices), currency


def _nano(price: Any, where: str) -> int:
    try:
        value = Decimal(price)
    except (InvalidOperation, TypeError, ValueError) as error:
        raise _wrong(where, f"{price!r} is not a decimal like 2.50") from error
    if not value.is_finite() or not 0 <= value <= _LARGEST:
        raise _wrong(where, f"{price} must be between 0 and {_LARGEST}")
    nano = value * NANO
    if nano != nano.to_integral_value():
        raise _wrong(where, f"{price} has more than nine decimals")
    return int(nano)


def _wrong(where: object, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {what}", reason="INVALID_PRICES")
