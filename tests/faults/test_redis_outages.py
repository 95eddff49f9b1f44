"""Redis hung, stopped and flushed under load; the usage service away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from tests.faults.test_kills import make_load
from tests.harness.load import Verdict
from tests.harness.observing import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.conftest import Lengths
    from tests.harness.judge import Judge
    from tests.harness.topology import Services, Up

    Served = Callable[[], Awaitable[None]]


async def hang(gateway: Services, seconds: float, served: Served) -> None:
    """SIGSTOP: connections stay, nothing answers."""
    server = gateway.processes["valkey"]
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
        await served()
    finally:
        server.signal(signal.SIGCONT)


async def stop(gateway: Services, seconds: float, served: Served) -> None:
    """Killed, and started again from its append-only file."""
    server = gateway.processes["valkey"]
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds)
    await served()
    await asyncio.to_thread(server.start)


async def flush(gateway: Services, seconds: float, served: Served) -> None:
    """Everything gone, twice."""
    for _ in range(2):
        await gateway.flush_redis()
        await asyncio.sleep(min(seconds, 3.0) / 2)
    await served()


@pytest.mark.parametrize("outage", [hang, stop, flush], ids=["hung", "stopped", "flushed"])
async def test_redis_outage_traffic_goes_on_and_ledger_agrees(
    outage: Callable[[Services, float, Served], Awaitable[None]],
    make_services: Callable[..., Services],
    judge: Callable[..., Judge],
    lengths: Lengths,
) -> None:
    """No client sees anything of it, as the manual promises, and every attempt is in the ledger."""
    gateway = make_services()
    verdict = judge(gateway)
    load = make_load(gateway)
    async with load.running():
        await asyncio.sleep(1.0)
        verdict.remember_memory()
        before = load.verdicts[Verdict.COMPLETE]

        async def served() -> None:
            """Wait until clients were served; on a busy machine that takes longer than the outage."""
            deadline = time.monotonic() + 60
            while load.verdicts[Verdict.COMPLETE] - before <= 20:
                assert time.monotonic() < deadline, (load.verdicts, load.statuses)
                await asyncio.sleep(0.1)  # others' progress

        await outage(gateway, lengths.outage, served)
        await asyncio.sleep(1.5)
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses)
    verdict.check_answers()
    verdict.check_ledger()
    verdict.check_memory()


async def test_usage_service_away_ledger_catches_up(
    make_services: Callable[..., Services], judge: Callable[..., Judge], lengths: Lengths
) -> None:
    gateway = make_services()
    verdict = judge(gateway)
    load = make_load(gateway)
    async with load.running():
        await asyncio.sleep(1.0)
        verdict.remember_memory(but=["usage"])
        await asyncio.to_thread(gateway.processes["usage"].kill)
        await asyncio.sleep(lengths.usage_away)
        await asyncio.to_thread(gateway.processes["usage"].start)
        await asyncio.sleep(0.5)
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses)
    report = verdict.check_ledger()
    assert report.unknown == 0
    verdict.check_memory()


def servers_of(gateway: Up) -> list[int]:
    """Return the pids of the Valkeys that `up` has started and not buried."""
    parent = str(gateway.processes["up"].pid)
    lines = subprocess.run(
        ["ps", "--ppid", parent, "-o", "pid=,comm="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if "valkey" in line or "redis" in line]


async def test_up_redis_killed_comes_back(
    make_up: Callable[..., Up], judge: Callable[..., Judge]
) -> None:
    """The embedded server is started again by the process that owns it."""
    gateway = make_up()
    verdict = judge(gateway)
    load = make_load(gateway)
    async with load.running():
        await asyncio.sleep(1.0)
        verdict.remember_memory()
        (server,) = servers_of(gateway)
        os.kill(server, signal.SIGKILL)
        await asyncio.sleep(3)
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses)
    verdict.check_answers()
    verdict.check_ledger()
    until(lambda: len(servers_of(gateway)) == 1, 60, "its server does not come back")
    verdict.check_memory()
