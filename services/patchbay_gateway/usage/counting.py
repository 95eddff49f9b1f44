"""What the usage service counts for /metrics, looked up before each page. Not here: the ledger's sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.usage.consumer import Consumer
    from patchbay_gateway.usage.sweeper import Sweeper


class UsageCounts:
    """One per process."""

    def __init__(
        self, metrics: Metrics, consumer: Consumer, sweeper: Sweeper, *, clock: Clock
    ) -> None:
        self._consumer = consumer
        self._sweeper = sweeper
        self._clock = clock
        self._counters = (
            metrics.counter("usage_events_total", "Events of the journal that were taken."),
            metrics.counter("usage_dead_letters_total", "Events that cannot be counted."),
            metrics.counter("usage_lost_total", "Attempts that ended without a report."),
        )
        self._behind = metrics.gauge(
            "usage_behind_seconds", "Age of the oldest moment that may not be in the ledger."
        )
        self._told = (0, 0, 0)
        self._known = clock.now()
        metrics.before_page(self.look)

    def look(self) -> None:
        """Bring the instruments up to date."""
        now = (self._consumer.taken, self._consumer.dead, self._sweeper.lost)
        for counter, new, old in zip(self._counters, now, self._told, strict=True):
            counter.inc(new - old)
        self._told = now
        # None after an outage: what was known last grows older.
        self._known = self._consumer.caught_up_at or self._known
        self._behind.set(max(0.0, self._clock.now() - self._known))
