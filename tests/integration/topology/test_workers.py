"""`patchbay up --workers 2`: a supervisor, a control process and two data processes on one port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.harness.observing import (
    NOWHERE,
    alive,
    ask,
    connections,
    descendants,
    get,
    open_stream,
    read_whole,
    until,
)
from tests.harness.topology import Up, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("proc")


@pytest.fixture(scope="module")
def made_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two data processes, not yet started."""
    config = make_config(NOWHERE)
    config["providers"][0]["models"].append({"name": "echo", "alias": "counted"})
    gateway = Up(tmp_path_factory.mktemp("workers"), config, workers=2)
    yield gateway
    gateway.stop()


@pytest.fixture
def workers(made_workers: Up) -> Up:
    """Two data processes, started again if an earlier test ended them."""
    made_workers.start()
    # Started already, it may still miss a process that a test killed.
    made_workers.processes["up"].wait_ready()
    return made_workers


def named(gateway: Up, name: str) -> int:
    """Return the pid of the process *name*, 0 when there is none."""
    for pid, line in descendants(gateway.processes["up"].pid).items():
        if line.endswith(f"patchbay_gateway.workers {name}"):
            return pid
    return 0


async def test_each_data_process_takes_traffic(workers: Up) -> None:
    """The kernel spreads connections: of 24, one gets none once in eight million runs."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(open_stream(workers, words=4, delay_ms=10))
            for _ in range(24)
        ]
        held = [connections(named(workers, name), workers.port) for name in ("data-1", "data-2")]
        assert sum(held) == 24
        assert all(held)
        for chunks in streams:
            assert (await read_whole(chunks)).endswith(b"data: [DONE]\n\n")


def test_management_stands_for_all(workers: Up) -> None:
    answer = get(f"{workers.management_url}/readyz")
    assert answer.status_code == 200
    assert "workers" in answer.json()["checks"]
    assert get(f"{workers.management_url}/livez").status_code == 200
    for _ in range(8):
        assert ask(workers, "counted").status_code == 200
    until(
        lambda: [r["requests"] for r in workers.usage() if r["model"] == "counted"] == [8],
        what="the ledger has what both data processes served",
    )


def test_metrics_are_those_of_all_processes(workers: Up) -> None:
    """Requests on any data process are counted on the control process's page."""

    def counted() -> float:
        page = get(f"{workers.management_url}/metrics").text
        # No other test asks for this operation: theirs may be counted late.
        line = (
            'patchbay_edge_requests_total{dialect="openai",operation="completions",status="200"} '
        )
        return sum(float(each[len(line) :]) for each in page.splitlines() if each.startswith(line))

    before = counted()
    for _ in range(8):
        answer = httpx.post(
            f"{workers.base_url}/v1/completions",
            json={"model": "echo", "prompt": "hello"},
            headers=workers.headers(),
            timeout=60,
            trust_env=False,
            verify=False,
        )
        assert answer.status_code == 200, answer.text
    until(lambda: counted() == before + 8, what="all eight are counted")


@pytest.mark.parametrize("name", ["data-1", "data-2", "control"])
def test_killed_process_is_started_again(workers: Up, name: str) -> None:
    """The others serve meanwhile."""
    pid = named(workers, name)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert [ask(workers).status_code for _ in range(10)] == [200] * 10
    again = until(lambda: named(workers, name))
    assert again != pid
    workers.processes["up"].wait_ready()
    if name != "control":
        until(lambda: _listens(again, workers.port), what=f"{name} listens again")
    assert [ask(workers).status_code for _ in range(20)] == [200] * 20


def test_greeting_comes_when_it_serves(workers: Up) -> None:
    process = workers.processes["up"]
    process.stop()
    before = process.log.stat().st_size
    process.start(wait=0)
    greeting = f"Patchbay listens on {workers.base_url}".encode()
    until(lambda: greeting in process.log.read_bytes()[before:], what="it greets")
    assert ask(workers).status_code == 200
    assert get(f"{workers.management_url}/livez").status_code == 200


def _listens(pid: int, port: int) -> bool:
    """Whether *pid* gets connections to *port*."""
    with httpx.Client(trust_env=False, verify=False) as http:
        http.get(f"http://127.0.0.1:{port}/healthz", timeout=60)
        return connections(pid, port) > 0


def test_killed_supervisor_leaves_nobody(workers: Up) -> None:
    process = workers.processes["up"]
    family = descendants(process.pid)
    assert len(family) >= 4
    process.kill()
    until(lambda: not any(alive(pid) for pid in family), 60, f"somebody outlives it: {family}")


async def test_sigterm_lets_streams_end(workers: Up) -> None:
    process = workers.processes["up"]
    family = descendants(process.pid)
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(open_stream(workers, words=20, delay_ms=50))
            for _ in range(6)
        ]
        process.signal(signal.SIGTERM)
        rests = [await read_whole(chunks) for chunks in streams]
    assert [rest[-14:] for rest in rests] == [b"data: [DONE]\n\n"] * 6
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert [line for pid, line in family.items() if alive(pid)] == []
    assert "Traceback" not in process.tail(100_000)
