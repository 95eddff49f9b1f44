"""
Counters, gauges and histograms, or nothing: prometheus-client is imported only when metrics are switched on.

A process of its own counts with plain numbers (instruments.py): 0.1 µs for a counter, 0.4 for a histogram,
where prometheus-client's take 1 and 3; it only writes the page. On a hot path keep what `labels` returns.
What is cheaper to look up than to count is looked up before each page (`before_page`).

Several processes of one machine share a directory in which each keeps its numbers, with prometheus-client's
own instruments; one of them renders all.
Not here: which things are counted, and traces.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol, Self

from patchbay_gateway.kernel.instruments import Distribution, Number, PlainCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "patchbay_"
_SHARED_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"

LATENCY_BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
"""Seconds, from our own overhead to the longest answers of models."""


class Counter(Protocol):
    """Grows only."""

    def labels(self, *values: str) -> Self:
        """Return the one with these label values, in the order of the labels' names."""
        ...

    def inc(self, amount: float = 1) -> None:
        """Add *amount*."""


class Gauge(Protocol):
    """Goes up and down."""

    def labels(self, *values: str) -> Self:
        """Return the one with these label values."""
        ...

    def set(self, value: float) -> None:
        """Replace the value."""

    def inc(self, amount: float = 1) -> None:
        """Add *amount*."""

    def dec(self, amount: float = 1) -> None:
        """Take *amount* away."""


class Histogram(Protocol):
    """Counts observations by size."""

    def labels(self, *values: str) -> Self:
        """Return the one with these label values."""
        ...

    def observe(self, amount: float) -> None:
        """Count one of *amount*."""


class Metrics(Protocol):
    """Where instruments come from. Make each once; names are without the prefix `patchbay_`."""

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Make a counter; *name* ends in `_total`."""
        ...

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """Make a gauge; over several processes it is their sum."""
        ...

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS,
    ) -> Histogram:
        """Make a histogram; *name* ends in its unit, as `_seconds`."""
        ...

    def before_page(self, look: Callable[[], None]) -> None:
        """Call *look* before each page, to set what is cheaper to look up than to count."""

    def refresh(self) -> None:
        """Look all that up now; for processes whose page is another's to render."""

    def render(self) -> bytes:
        """Return all values in the text form of Prometheus (`CONTENT_TYPE`)."""
        ...


class _Nothing:
    """Every instrument of a process whose metrics are off."""

    __slots__ = ()

    def labels(self, *values: str) -> Self:
        return self

    def inc(self, amount: float = 1) -> None:
        pass

    def dec(self, amount: float = 1) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def observe(self, amount: float) -> None:
        pass


class NoMetrics:
    """Counts nothing."""

    _nothing: Final = _Nothing()

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Return an instrument that does nothing."""
        return self._nothing

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """Return an instrument that does nothing."""
        return self._nothing

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS,
    ) -> Histogram:
        """Return an instrument that does nothing."""
        return self._nothing

    def before_page(self, look: Callable[[], None]) -> None:
        """Never look."""

    def refresh(self) -> None:
        """Look nothing up."""

    def render(self) -> bytes:
        """Return an empty page."""
        return b""


class PrometheusMetrics:
    """
    Counts for prometheus-client, in a registry of its own.

    Args:
        shared: A directory on this machine, empty at the start of the first process, in which all processes
            that get it keep their numbers; `render` then shows the sum of all. It must be given before
            anything else in the process imports prometheus-client, which looks for it at import.
    """

    def __init__(self, shared: Path | None = None) -> None:
        if shared is not None:
            shared.mkdir(parents=True, exist_ok=True)
            os.environ[_SHARED_DIRECTORY] = str(shared)
        import prometheus_client  # noqa: PLC0415 - imported only when switched on
        from prometheus_client import multiprocess  # noqa: PLC0415 - the same

        self._client = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._page = self._registry
        self._looks: list[Callable[[], None]] = []
        self._plain: PlainCollector | None = None
        if shared is None:
            self._plain = PlainCollector()
            self._registry.register(self._plain)
            prometheus_client.ProcessCollector(registry=self._registry)
        else:
            self._page = prometheus_client.CollectorRegistry()
            multiprocess.MultiProcessCollector(self._page, str(shared))  # type: ignore[no-untyped-call]

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Make a counter."""
        if self._plain is not None:
            return self._number("counter", name, text, labels)
        made: Counter = self._client.Counter(PREFIX + name, text, labels, registry=self._registry)
        return made

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """Make a gauge."""
        if self._plain is not None:
            return self._number("gauge", name, text, labels)
        made: Gauge = self._client.Gauge(
            PREFIX + name, text, labels, registry=self._registry, multiprocess_mode="livesum"
        )
        return made

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS,
    ) -> Histogram:
        """Make a histogram."""
        if self._plain is not None:
            plain = Distribution(buckets, labels)
            self._plain.add("histogram", PREFIX + name, text, labels, plain)
            return plain
        made: Histogram = self._client.Histogram(
            PREFIX + name, text, labels, registry=self._registry, buckets=buckets
        )
        return made

    def _number(self, kind: str, name: str, text: str, labels: Sequence[str]) -> Number:
        assert self._plain is not None
        made = Number(labels)
        self._plain.add(kind, PREFIX + name, text, labels, made)
        return made

    def before_page(self, look: Callable[[], None]) -> None:
        """Call *look* before each page."""
        self._looks.append(look)

    def refresh(self) -> None:
        """Look up what is looked up."""
        for look in self._looks:
            look()

    def render(self) -> bytes:
        """Return the page."""
        self.refresh()
        page: bytes = self._client.generate_latest(self._page)
        return page


def make_metrics(*, enabled: bool, shared: Path | None = None) -> Metrics:
    """Return metrics that count, or ones that do not and import nothing."""
    return PrometheusMetrics(shared) if enabled else NoMetrics()
