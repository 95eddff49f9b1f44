"""
What the edge counts for /metrics: requests, attempts, durations, open streams.

Labels are bounded: dialects and operations are ours, providers come from the configuration, kinds from the
table of outcomes. Children are kept, so a request costs a few look-ups and additions. Not here: tokens and
money (ledger).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.kernel.telemetry import Counter, Histogram, Metrics


class EdgeCounts:
    """The edge's instruments; one per process."""

    def __init__(self, metrics: Metrics) -> None:
        self._open = metrics.gauge("edge_open_streams", "Streamed answers under way.")
        self._requests = metrics.counter(
            "edge_requests_total",
            "Requests by what the client got; 499: it left.",
            ("dialect", "operation", "status"),
        )
        self._durations = metrics.histogram(
            "edge_request_duration_seconds",
            "From the request's head to the end of its answer.",
            ("dialect", "operation", "status"),
        )
        self._attempts = metrics.counter(
            "edge_attempts_total",
            "Attempts by how they ended: succeeded, cancelled, gateway (no provider's fault) or the kind.",
            ("provider", "outcome"),
        )
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._by_attempt: dict[tuple[str, str], Counter] = {}

    def begun(self, request: Request) -> None:
        """Count a request whose body is understood as under way."""
        if request.stream:
            self._open.inc()

    def over(self, request: Request, *, gone: bool) -> None:
        """Count a request that is over; *gone*: the client left before it had its answer."""
        if request.stream:
            self._open.dec()
        routed = request.routed
        status = request.status or (499 if gone else 500)
        key = (routed.dialect.name, routed.operation, status)
        found = self._by_request.get(key)
        if found is None:
            found = self._by_request[key] = (
                self._requests.labels(*key[:2], str(status)),
                # Whole classes, so that durations have few series.
                self._durations.labels(*key[:2], f"{status // 100}xx"),
            )
        found[0].inc()
        found[1].observe(request.clock.monotonic() - request.started)

    def attempt(self, provider: str, outcome: str) -> None:
        """Count an attempt that is over."""
        key = (provider, outcome)
        found = self._by_attempt.get(key)
        if found is None:
            found = self._by_attempt[key] = self._attempts.labels(provider, outcome)
        found.inc()
