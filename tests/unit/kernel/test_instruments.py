"""Plain instruments: bounded children, buckets, and a page that prometheus-client's own parser reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from patchbay_gateway.kernel.instruments import CHILDREN, OTHER, Distribution, Number
from patchbay_gateway.kernel.telemetry import make_metrics


def test_number_labels_beyond_the_bound_are_other() -> None:
    number = Number(["model"])
    for n in range(CHILDREN + 50):
        number.labels(f"invented-{n}").inc()
    assert len(number.children()) == CHILDREN + 1
    assert number.labels("another").value == 50
    assert number.labels("another") is number.labels(OTHER)
    assert number.labels("invented-0").value == 1


def test_number_wrong_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels are"):
        Number(["a", "b"]).labels("x")


def test_distribution_bucket_holds_its_bound() -> None:
    seconds = Distribution((0.1, 1.0))
    for amount in (0.05, 0.1, 0.5, 1.0, 7.0):
        seconds.observe(amount)
    assert seconds.buckets() == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert seconds.total == pytest.approx(8.65)


def test_page_parses_with_all_kinds() -> None:
    metrics = make_metrics(enabled=True)
    metrics.counter("calls_total", "Calls.", ["code"]).labels("ok").inc(2)
    metrics.gauge("open", "Open.").set(3)
    metrics.histogram("took_seconds", "Took.", ["by"]).labels("x").observe(0.2)
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert families["patchbay_calls"].type == "counter"
    assert families["patchbay_open"].samples[0].value == 3
    took = {s.name: s.value for s in families["patchbay_took_seconds"].samples}
    assert took["patchbay_took_seconds_count"] == 1
    assert took["patchbay_took_seconds_sum"] == pytest.approx(0.2)


def test_same_name_twice_is_a_mistake() -> None:
    metrics = make_metrics(enabled=True)
    metrics.counter("calls_total", "Calls.")
    with pytest.raises(ValueError, match="twice"):
        metrics.counter("calls_total", "Calls.")


def test_looks_happen_before_each_page() -> None:
    metrics = make_metrics(enabled=True)
    backlog = metrics.gauge("backlog", "Backlog.")
    waiting = [1]
    metrics.before_page(lambda: backlog.set(len(waiting)))
    assert "patchbay_backlog 1.0" in metrics.render().decode()
    waiting.append(2)
    assert "patchbay_backlog 2.0" in metrics.render().decode()
