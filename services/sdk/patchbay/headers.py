"""
Headers and queries of requests and answers, and the rule by which hooks change them.

Headers are pairs of bytes in order, names in lower case (`patchbay.errors.Headers`); queries are pairs of
strings. Not here: which headers go to a provider (`patchbay.upstream_headers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patchbay.errors import Headers

Query = list[tuple[str, str]]
"""Query parameters as pairs, values of one key in the order received."""


def header(headers: Iterable[tuple[bytes, bytes]], name: str) -> str:
    """Return the first value of *name*, an empty string if there is none."""
    wanted = name.lower().encode("latin-1")
    return next((value.decode("latin-1") for key, value in headers if key == wanted), "")


def parameter(query: Iterable[tuple[str, str]], name: str) -> str:
    """Return the first value of *name*, an empty string if there is none."""
    return next((value for key, value in query if key == name), "")


def merged(
    current: Iterable[tuple[bytes, bytes]],
    changes: Sequence[tuple[bytes, bytes]],
    clear: Iterable[str] = (),
) -> Headers:
    """
    Return *current* as a hook changes it.

    First the names in *clear* go, then each name in *changes* loses its values and gets the new ones, so a
    name in both ends up set.
    """
    gone = {name.lower().encode("latin-1") for name in clear}
    gone.update(name.lower() for name, _ in changes)
    kept = [(name, value) for name, value in current if name.lower() not in gone]
    return kept + [(name.lower(), value) for name, value in changes]
