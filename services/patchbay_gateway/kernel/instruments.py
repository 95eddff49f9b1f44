"""
Instruments that are plain numbers, read when somebody looks: counting costs an addition, not a lock.

They are this process's alone and counted on one thread, the event loop's. An instrument with labels keeps one
child per combination of values, at most `CHILDREN`: what comes beyond them counts under `other`, so that
nobody's invention can fill memory or a time series database. Not here: how a page is written (telemetry.py).
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CHILDREN: Final = 1000
"""Combinations of label values of one instrument."""
OTHER: Final = "other"


class _Labelled:
    """What all instruments share: children by label values."""

    __slots__ = ("_children", "_names")

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._children: dict[tuple[str, ...], Self] = {}

    def labels(self, *values: str) -> Self:
        """Return the child with these label values, in the order of the labels' names."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._names):
                raise ValueError(f"labels are {self._names}, not {values}")
            if len(self._children) >= CHILDREN:
                values = (OTHER,) * len(values)
                child = self._children.get(values)
            if child is None:
                child = self._children[values] = self._child()
        return child

    def children(self) -> Mapping[tuple[str, ...], Self]:
        """Return label values → instrument; itself under () when it has no labels."""
        return self._children if self._names else {(): self}

    def _child(self) -> Self:
        raise NotImplementedError


class Number(_Labelled):
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__(names)
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Add *amount*."""
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        """Take *amount* away."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def _child(self) -> Self:
        return type(self)()


class Distribution(_Labelled):
    """A histogram; *bounds* are the upper ends of its buckets, ascending."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float], names: Sequence[str] = ()) -> None:
        super().__init__(names)
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0
        """Sum of what was observed."""

    def observe(self, amount: float) -> None:
        """Count one of *amount*."""
        self._counts[bisect.bisect_left(self._bounds, amount)] += 1
        self.total += amount

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper end → how many were at most so large, `+Inf` last."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            found.append((bound, below))
        return found

    def _child(self) -> Self:
        return type(self)(self._bounds)


class PlainCollector:
    """Gives prometheus-client what the instruments hold, at each page."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str, tuple[str, ...], Number | Distribution]] = {}

    def add(
        self,
        kind: str,
        name: str,
        text: str,
        labels: Sequence[str],
        instrument: Number | Distribution,
    ) -> None:
        """
        Show *instrument* as *name*; *kind* is `counter`, `gauge` or `histogram`.

        Raises:
            ValueError: There is one of this name.
        """
        if name in self._known:
            raise ValueError(f"{name} is counted twice")
        self._known[name] = (kind, text, tuple(labels), instrument)

    def collect(self) -> Iterator[Any]:
        """Yield prometheus-client's families."""
        from prometheus_client import core  # noqa: PLC0415 - imported only when switched on

        for name, (kind, text, labels, instrument) in self._known.items():
            if isinstance(instrument, Distribution):
                family: Any = core.HistogramMetricFamily(name, text, labels=labels)
                for values, child in instrument.children().items():
                    family.add_metric(values, buckets=child.buckets(), sum_value=child.total)
            else:
                make = core.CounterMetricFamily if kind == "counter" else core.GaugeMetricFamily
                family = make(name, text, labels=labels)
                for values, number in instrument.children().items():
                    family.add_metric(values, number.value)
            yield family
