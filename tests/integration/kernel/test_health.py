"""The health server over real HTTP."""

from __future__ import annotations

import httpx
import pytest

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.health import serve_health
from patchbay_gateway.kernel.telemetry import make_metrics


@pytest.mark.usefixtures("no_leaked_tasks")
async def test_health_paths_answer_and_readiness_follows_the_checks():
    metrics = make_metrics(enabled=True)
    metrics.counter("probes_total", "Probes.").inc()
    state: dict[str, str | None] = {"redis": "Redis is not available"}
    checks = {"redis": lambda: state["redis"], "snapshot": lambda: None}
    async with (
        serve_health("127.0.0.1", 0, checks, metrics) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False, timeout=60) as http,
    ):
        assert (await http.get("/livez")).status_code == 200
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {
            "ready": False,
            "failing": {"redis": "Redis is not available"},
            "checks": ["redis", "snapshot"],
        }
        state["redis"] = None
        assert (await http.get("/readyz")).status_code == 200
        page = await http.get("/metrics")
        assert "patchbay_probes_total 1.0" in page.text
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert (await http.get("/other")).status_code == 404
        assert (await http.post("/livez")).status_code == 405
        assert (await http.head("/readyz")).content == b""


async def test_health_port_in_use_is_refused_with_its_address():
    async with serve_health("127.0.0.1", 0, {}, make_metrics(enabled=False)) as port:
        with pytest.raises(FailedPrecondition, match=f"127.0.0.1:{port}"):
            async with serve_health("127.0.0.1", port, {}, make_metrics(enabled=False)):
                pass
