"""
What a process counts of its calls to plugins, for /metrics: looked up before each page, nothing per call.

Labels are plugin ids of the configuration and the states of addresses. Not here: what a plugin's own process
counts (patchbay/metrics.py).
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.registry import PluginRegistry


class PluginCounts:
    """One per process."""

    def __init__(self, metrics: Metrics, registry: PluginRegistry) -> None:
        self._registry = registry
        self._totals = (
            metrics.counter(
                "plugin_calls_total", "Calls that ended, whatever their end.", ["plugin"]
            ),
            metrics.counter(
                "plugin_call_errors_total", "Calls that ended without an answer.", ["plugin"]
            ),
            metrics.counter(
                "plugin_call_seconds_total",
                "Time until plugins answered, streams for the first time.",
                ["plugin"],
            ),
        )
        self._in_flight = metrics.gauge("plugin_in_flight", "Calls under way.", ["plugin"])
        self._addresses = metrics.gauge(
            "plugin_addresses", "Addresses of a plugin by their state.", ["plugin", "state"]
        )
        self._told: dict[str, tuple[float, float, float]] = {}
        self._shown: set[tuple[str, str]] = set()
        metrics.before_page(self.look)

    def look(self) -> None:
        """Bring the instruments up to date."""
        states: Tally[tuple[str, str]] = Tally()
        for plugin_id, seen in self._registry.totals().items():
            now = (seen.calls, seen.errors, seen.seconds)
            before = self._told.get(plugin_id, (0, 0, 0.0))
            for counter, new, old in zip(self._totals, now, before, strict=True):
                counter.labels(plugin_id).inc(new - old)
            self._told[plugin_id] = now
            self._in_flight.labels(plugin_id).set(seen.in_flight)
            for state in seen.states:
                states[plugin_id, state] += 1
        for key in self._shown - set(states):
            self._addresses.labels(*key).set(0)
        for key, count in states.items():
            self._addresses.labels(*key).set(count)
        self._shown = set(states)
