"""Each page of metrics has the names of docs/operations.md and no other of ours, and charts use these."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.harness.observing import BODY, until

if TYPE_CHECKING:
    from tests.harness.scaled import Replica, Scaled

_ROOT = Path(__file__).resolve().parents[3]
_NAME = re.compile(r"patchbay_[a-z0-9_]+")
_SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def documented() -> dict[str, set[str]]:
    """Return process → names of docs/operations.md, "What to watch"."""
    found: dict[str, set[str]] = {}
    for line in (_ROOT / "docs/operations.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `patchbay_"):
            for process in cells[1].split(", "):
                found.setdefault(process, set()).update(_NAME.findall(cells[0]))
    return found


def shown(replica: Replica) -> set[str]:
    """Return the names of ours on the page, also of series that have no value yet."""
    url = f"http://{replica.host}:{replica.ports['health']}/metrics"
    page = httpx.get(url, trust_env=False, verify=False, timeout=60).text
    typed = dict(re.findall(r"^# TYPE (patchbay_\S+) (\S+)$", page, re.MULTILINE))
    return set(typed)


def ask(
    gateway: Scaled, edge: Replica, *, stream: bool = False, model: str = "echo", status: int = 200
) -> None:
    answer = httpx.post(
        f"{edge.base_url}/v1/chat/completions",
        json={**BODY, "stream": stream, "model": model},
        headers=gateway.headers(),
        timeout=60,
        trust_env=False,
        verify=False,
    )
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("kind", "process"),
    [("edge", "edge"), ("scheduler", "scheduler"), ("executor", "executors"), ("usage", "usage")],
)
def test_page_has_the_documented_names(gateway: Scaled, kind: str, process: str) -> None:
    ask(gateway, gateway.running("edge")[0])
    assert shown(gateway.running(kind)[0]) == documented()[process]


def test_charts_use_documented_names() -> None:
    used = set()
    for path in (_ROOT / "charts").rglob("*"):
        if path.suffix in {".yaml", ".json", ".tpl", ".md"}:
            used |= {_SUFFIXES.sub("", name) for name in _NAME.findall(path.read_text())}
    known = set().union(*documented().values())
    # The package of that name is no series.
    assert used - {"patchbay_operator"} <= known


def quiet(gateway: Scaled, edge: Replica) -> dict[str, float]:
    """Return what *edge* has counted, once that is all which other tests asked: it comes after the answer."""
    refused = 'patchbay_edge_requests_total{dialect="openai",operation="chat",status="404"}'
    before = edge.metrics().get(refused, 0)
    # What was answered earlier is counted before a request that comes later.
    ask(gateway, edge, model="nobody", status=404)

    def nothing_runs() -> dict[str, float] | None:
        found: dict[str, float] = edge.metrics()
        running = (
            found["patchbay_edge_open_streams"]
            or found.get('patchbay_plugin_in_flight{plugin="echo"}', 0)
            or found.get(refused, 0) <= before
        )
        return None if running else found

    counted: dict[str, float] = until(nothing_runs, 60, "the edge is not quiet")
    return counted


def test_edge_counts_requests_tokens_and_calls(gateway: Scaled) -> None:
    edge = gateway.running("edge")[0]
    before = quiet(gateway, edge)
    for stream in (False, True):
        ask(gateway, edge, stream=stream)
    now = quiet(gateway, edge)

    def grown(series: str) -> float:
        return now[f"patchbay_{series}"] - before.get(f"patchbay_{series}", 0)

    assert grown('edge_requests_total{dialect="openai",operation="chat",status="200"}') == 2
    assert grown('edge_attempts_total{outcome="succeeded",provider="echo"}') == 2
    assert grown('edge_first_byte_seconds_count{provider="echo"}') == 2
    assert grown("edge_overhead_seconds_count") == 1
    assert grown('edge_tokens_total{model="echo",provider="echo",unit="output_tokens"}') >= 2
    assert grown('plugin_calls_total{plugin="echo"}') == 2


def test_usage_counts_what_it_took(gateway: Scaled) -> None:
    before = gateway.usage.metrics()["patchbay_usage_events_total"]
    ask(gateway, gateway.running("edge")[0])
    # Opened and settled.
    until(lambda: gateway.usage.metrics()["patchbay_usage_events_total"] >= before + 2, 60)
    assert gateway.usage.metrics()["patchbay_usage_dead_letters_total"] == 0


async def test_executor_counts_open_streams(gateway: Scaled) -> None:
    (edge, *_), executors = gateway.running("edge"), gateway.running("executor")

    def streams() -> float:
        return sum(e.metrics()["patchbay_plugin_open_streams"] for e in executors)

    body = {**BODY, "stream": True}
    headers = {**gateway.headers(), "x-echo-chunks": "1000", "x-echo-delay-ms": "100"}
    url = f"{edge.base_url}/v1/chat/completions"
    async with (
        httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client,
        client.stream("POST", url, json=body, headers=headers) as answer,
    ):
        await anext(answer.aiter_raw())
        # Those of other tests have ended, and are counted so in a moment.
        until(lambda: streams() == edge.metrics()["patchbay_edge_open_streams"] == 1, 60)
    # The client has left: the stream ends everywhere.
    until(lambda: not streams() and not edge.metrics()["patchbay_edge_open_streams"], 60)
    method = "plugin.v1.ExecutorService/ExecuteStream"
    ended = f'patchbay_plugin_served_total{{method="{method}",code="cancelled"}}'
    until(lambda: sum(e.metrics().get(ended, 0) for e in executors) >= 1, 60)
