"""The four services: each stops without harm to what runs, tells its health, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
from tests.harness.observing import ask, get, open_stream, read_whole, until

if TYPE_CHECKING:
    from tests.harness.topology import Services

SERVICES = ["edge", "scheduler0", "usage", "executor0"]


@pytest.mark.parametrize("name", SERVICES)
async def test_sigterm_drains(services: Services, name: str) -> None:
    """Streams that run end whole, whichever service is told to stop; it exits with 0."""
    process = services.processes[name]
    # An earlier test may have restarted the replica that is to take over.
    await asyncio.to_thread(services.wait_registered)
    try:
        async with contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(open_stream(services, words=20, delay_ms=50))
                for _ in range(4)
            ]
            process.signal(signal.SIGTERM)
            if name != "edge":
                assert (await asyncio.to_thread(ask, services)).status_code == 200
            rests = [await read_whole(chunks) for chunks in streams]
        assert [rest[-14:] for rest in rests] == [b"data: [DONE]\n\n"] * 4
        assert await asyncio.to_thread(process.wait, 60) == 0
        assert "Traceback" not in process.tail(100_000)
    finally:
        if process.running:
            process.kill()
        process.start()
        services.processes["edge"].wait_ready()
    until(lambda: ask(services).status_code == 200)


def test_every_service_tells_its_health(services: Services) -> None:
    for name in [*SERVICES, "scheduler1", "executor1"]:
        # An earlier test may have taken from it what it needs.
        services.processes[name].wait_ready()
        url = services.processes[name].ready_url
        assert url is not None
        assert get(url).json()["ready"] is True
        for path in ("/livez", "/metrics"):
            assert get(url.replace("/readyz", path)).status_code == 200


def test_edge_is_not_ready_without_its_services(services: Services) -> None:
    """Probed, not guessed: it says which one is missing, stays alive, and is ready again by itself."""
    edge = services.processes["edge"]
    executors = [services.processes[f"executor{i}"] for i in range(2)]
    for process in executors:
        process.stop()
    try:
        answer = until(
            lambda: (a := ask(services)).status_code == 503 and a, what="no executor is left"
        )
        assert answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert edge.ready_url is not None
        assert get(edge.ready_url.replace("/readyz", "/livez")).status_code == 200
    finally:
        for process in executors:
            process.start()
    until(lambda: ask(services).status_code == 200, what="it serves again")
    edge.wait_ready()
