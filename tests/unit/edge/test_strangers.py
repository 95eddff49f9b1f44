"""Requests of nobody known are counted and leave no row; refusals of known clients are rows."""

from __future__ import annotations

import json

from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.errors import Unauthenticated
from patchbay_gateway.edge.counting import EdgeCounts
from patchbay_gateway.kernel.telemetry import PrometheusMetrics


@virtual
async def test_stranger_is_counted_by_why_and_not_reported() -> None:
    script, metrics = Script(), PrometheusMetrics()
    edge = Edge(script, pool("a"), metrics=metrics)
    for n in range(3):
        client = await edge.ask(key=b"Bearer made-up-%d" % n)
        assert client.status == 401
    assert (await edge.ask(key=b"")).status == 401
    assert script.reports == []
    page = metrics.render().decode()
    assert 'edge_refused_total{reason="unknown_key"} 3.0' in page
    assert 'edge_refused_total{reason="missing_key"} 1.0' in page
    assert 'edge_requests_total{dialect="openai",operation="chat",status="401"} 4.0' in page


@virtual
async def test_refusal_of_a_known_client_is_reported_and_not_counted_as_a_strangers() -> None:
    script, metrics = Script(), PrometheusMetrics()
    edge = Edge(script, pool("a"), metrics=metrics)
    assert (await edge.ask(b'{"model":"nope"}')).status == 404
    assert (await edge.ask(b"{")).status == 400
    assert [r.settlement.reason for r in script.reports] == ["MODEL_NOT_FOUND", "INVALID_JSON"]
    assert {r.attempt.client_key for r in script.reports} == {"k"}
    assert "edge_refused_total{" not in metrics.render().decode()


@virtual
async def test_name_that_can_be_no_model_is_refused_without_an_echo() -> None:
    script = Script()
    client = await Edge(script, pool("a")).ask(json.dumps({"model": "m" * 513}).encode())
    assert client.status == 400
    assert len(client.answer) < 300
    assert [r.attempt.model for r in script.reports] == [""]


def test_labels_are_of_our_own_making() -> None:
    metrics = PrometheusMetrics()
    counts = EdgeCounts(metrics)
    for n in range(50):
        counts.refused(Unauthenticated("no", reason=f"REASON_{n}"))
    assert 'edge_refused_total{reason="other"} 50.0' in metrics.render().decode()
