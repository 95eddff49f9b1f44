"""Metrics, on and off, of one process and of several."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchbay_gateway.kernel.telemetry import make_metrics


@pytest.mark.parametrize("enabled", [False, True])
def test_instruments_work_the_same_on_and_off(enabled):
    metrics = make_metrics(enabled=enabled)
    metrics.counter("requests_total", "Requests.", ["dialect"]).labels("openai").inc()
    gauge = metrics.gauge("streams", "Open streams.")
    gauge.inc(3)
    gauge.dec()
    gauge.set(5)
    metrics.histogram("overhead_seconds", "Own time.").observe(0.02)
    page = metrics.render().decode()
    assert ('patchbay_requests_total{dialect="openai"} 1.0' in page) is enabled
    assert ("patchbay_streams 5.0" in page) is enabled
    assert ('patchbay_overhead_seconds_bucket{le="0.025"} 1.0' in page) is enabled


def test_two_registries_do_not_meet():
    first, second = make_metrics(enabled=True), make_metrics(enabled=True)
    first.counter("a_total", "A.").inc()
    second.counter("a_total", "A.").inc(2)
    assert "patchbay_a_total 1.0" in first.render().decode()


def test_switched_off_imports_no_library():
    code = (
        "import sys; from patchbay_gateway.kernel.telemetry import make_metrics;"
        "make_metrics(enabled=False).counter('a_total', 'A.').inc();"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_processes_with_a_shared_directory_are_summed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from patchbay_gateway.kernel.telemetry import make_metrics;"
        "m = make_metrics(enabled=True, shared=Path(sys.argv[1]));"
        "m.counter('a_total', 'A.', ['k']).labels('x').inc(int(sys.argv[2]));"
        "sys.stdout.write(m.render().decode())"
    )
    pages = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), n],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for n in ("1", "10")
    ]
    assert 'patchbay_a_total{k="x"} 11.0' in pages[-1]
