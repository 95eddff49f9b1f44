"""What is remembered holds for one snapshot and one state of the plugins."""

from __future__ import annotations

from patchbay_gateway.edge import remembered
from patchbay_gateway.edge.remembered import Remembered
from patchbay_gateway.plugins.snapshot import Snapshot


class Plugins:
    """Counts changes, as the registry does."""

    def __init__(self) -> None:
        self.generation = 0


def test_answers_are_kept_until_the_snapshot_changes() -> None:
    known = Remembered[str, int](Plugins())
    first, second = Snapshot(version=1), Snapshot(version=2)
    known.of(first)["a"] = 1
    assert known.of(first) == {"a": 1}
    assert known.of(second) == {}
    # A request pinned to the old one is answered, and finds nothing of the new one.
    known.of(second)["a"] = 2
    assert known.of(first) == {}


def test_answers_are_void_once_a_plugin_changes() -> None:
    plugins = Plugins()
    known = Remembered[str, int](plugins)
    snapshot = Snapshot(version=1)
    known.of(snapshot)["a"] = 1
    plugins.generation += 1
    assert known.of(snapshot) == {}


def test_answers_never_fill_memory() -> None:
    known = Remembered[int, int](Plugins())
    snapshot = Snapshot(version=1)
    for n in range(3 * remembered.MOST):
        known.of(snapshot)[n] = n
        assert len(known.of(snapshot)) <= remembered.MOST
