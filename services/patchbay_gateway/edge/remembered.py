"""
Answers that hold as long as nobody publishes a snapshot and no plugin comes, changes or goes.

What depends on these two and on a few words of a request is worked out once, not for every request. Only
the snapshot asked for last is remembered: while a new one takes over, requests that are pinned to the old
one cost what they would without. Not here: what is remembered (targets.py, asking.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import Snapshot

K = TypeVar("K")
V = TypeVar("V")

MOST: Final = 4096
"""Entries; beyond it remembering begins anew."""


class Plugins(Protocol):
    """What is known of plugins: the registry's part of it."""

    generation: int
    """Grows whenever anything about them changes."""


class Remembered(Generic[K, V]):
    """
    Answers by what was asked.

    Args:
        plugins: Whose changes make answers void.
    """

    __slots__ = ("_generation", "_kept", "_plugins", "_snapshot")

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._snapshot: Snapshot | None = None
        self._generation = -1
        self._kept: dict[K, V] = {}

    def of(self, snapshot: Snapshot) -> dict[K, V]:
        """Return what is remembered for *snapshot*; fill it at once, before anything is awaited."""
        if (
            snapshot is not self._snapshot
            or self._generation != self._plugins.generation
            or len(self._kept) >= MOST
        ):
            self._snapshot, self._generation = snapshot, self._plugins.generation
            self._kept = {}
        return self._kept
