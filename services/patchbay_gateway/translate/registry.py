"""
Which translations exist.

A registry is filled once and then only read. Requests go client → executor, answers executor → client; both
are registered under the client's and the executor's format. Not here: plugins, which may translate where
nothing here does (plugins/translation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchbay_gateway.translate.port import (
        AnswerTranslator,
        CountTranslator,
        RequestTranslator,
        StreamOpener,
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """The translations between one client format and one executor format."""

    request: RequestTranslator | None = None
    whole: AnswerTranslator | None = None
    stream: StreamOpener | None = None
    count: CountTranslator | None = None


_NONE = Pair()


class Registry:
    """The pairs by (client format, executor format)."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], Pair] = {}

    def register(self, client: str, executor: str, pair: Pair) -> None:
        """
        Add a pair.

        Raises:
            ValueError: There is one already, or the two are the same format.
        """
        key = (client, executor)
        if client == executor or key in self._pairs:
            raise ValueError(f"{client} to {executor} is registered already or no translation")
        self._pairs[key] = pair

    def pair(self, client: str, executor: str) -> Pair:
        """Return what exists between the two; a pair of nothing when nothing does."""
        return self._pairs.get((client, executor), _NONE)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterate over the (client, executor) keys."""
        return iter(self._pairs)
