"""
What the edge counts for /metrics: requests, attempts, tokens, durations, open streams.

Labels are bounded: dialects and operations are ours, providers come from the configuration, kinds from the
table of outcomes; models are the names of providers, of which routers of plugins may invent any number, so
those beyond `MODELS` are `other`; why strangers are refused is one of `_REFUSALS`. Children are kept: a
request costs a few look-ups and additions. Not here: money, and what single clients did (ledger).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.kernel.instruments import OTHER

if TYPE_CHECKING:
    from patchbay.errors import PatchbayError
    from patchbay.type.v1 import usage_pb2
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.kernel.telemetry import Counter, Histogram, Metrics

MODELS: Final = 200
"""Models, each of one provider, that are told apart."""

_REFUSALS: Final = frozenset(
    {
        "MISSING_KEY",
        "UNKNOWN_KEY",
        "FOREIGN_HOST",
        "FOREIGN_ORIGIN",
        "UNSUPPORTED_MEDIA",
        "FRONTEND_AUTH_UNAVAILABLE",
        "BODY_TOO_LARGE",
        "BODY_TIMEOUT",
        "IN_FLIGHT_LIMIT",
    }
)
"""Why a request of nobody known is refused; the body's among them where plugins would have been asked."""
_UNITS: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_creation_tokens",
        "reasoning_tokens",
    }
)


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
        self._overhead = metrics.histogram(
            "edge_overhead_seconds", "What of a complete, not streamed answer's time was our own."
        )
        self._refused = metrics.counter(
            "edge_refused_total",
            "Requests refused before their client was known, by why; they are in no ledger.",
            ("reason",),
        )
        self._attempts = metrics.counter(
            "edge_attempts_total",
            "Attempts by how they ended: succeeded, cancelled, gateway (no provider's fault) or the kind.",
            ("provider", "outcome"),
        )
        self._attempt_durations = metrics.histogram(
            "edge_attempt_duration_seconds", "From the lease to the end.", ("provider",)
        )
        self._first_bytes = metrics.histogram(
            "edge_first_byte_seconds",
            "From the lease to the first of the answer, of attempts that came so far.",
            ("provider",),
        )
        self._tokens = metrics.counter(
            "edge_tokens_total",
            "What attempts consumed, as providers say or by estimate.",
            ("provider", "model", "unit"),
        )
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._by_attempt: dict[tuple[str, str], tuple[Counter, Histogram, Histogram]] = {}
        self._by_model: dict[tuple[str, str], dict[str, Counter]] = {}

    def begun(self, request: Request) -> None:
        """Count a request whose body is understood as under way."""
        if request.stream:
            self._open.inc()

    def refused(self, error: PatchbayError) -> None:
        """Count a request that was refused before its client was known: all that is kept of it."""
        reason = error.reason
        self._refused.labels(reason.lower() if reason in _REFUSALS else OTHER).inc()

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
        seconds = request.clock.monotonic() - request.started
        found[1].observe(seconds)
        if status == 200 and not request.stream:
            self._overhead.observe(seconds - request.waited)

    def attempt(
        self,
        provider: str,
        model: str,
        outcome: str,
        *,
        seconds: float,
        first_byte: float | None,
        usage: usage_pb2.Usage | None,
    ) -> None:
        """
        Count an attempt that is over.

        Args:
            provider: Whose.
            model: As the provider calls it.
            outcome: Of `edge_attempts_total`.
            seconds: How long it took.
            first_byte: Seconds until the first of its answer; None if there was none.
            usage: What it consumed; None where that is counted elsewhere, or unknown.
        """
        found = self._by_attempt.get((provider, outcome))
        if found is None:
            found = self._by_attempt[provider, outcome] = (
                self._attempts.labels(provider, outcome),
                self._attempt_durations.labels(provider),
                self._first_bytes.labels(provider),
            )
        counter, durations, first_bytes = found
        counter.inc()
        durations.observe(seconds)
        if first_byte is not None:
            first_bytes.observe(first_byte)
        if usage is not None:
            self._count_tokens(provider, model, usage)

    def _count_tokens(self, provider: str, model: str, usage: usage_pb2.Usage) -> None:
        counters = self._by_model.get((provider, model))
        if counters is None:
            key = (provider, model if len(self._by_model) < MODELS else OTHER)
            counters = self._by_model.setdefault(key, {})
            model = key[1]
        for item in usage.items:
            unit = item.unit
            counter = counters.get(unit)
            if counter is None:
                if unit not in _UNITS:
                    continue
                counter = counters[unit] = self._tokens.labels(provider, model, unit)
            counter.inc(item.quantity)
