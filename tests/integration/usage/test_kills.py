"""The usage service as a process that is killed at random instants: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.conftest import pick_port
from tests.fakes import ledger_check
from tests.fakes.journal_events import make_bytes
from tests.integration.usage.conftest import Bench, eventually

from patchbay.tokens import TokenSource
from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.kernel.channels.methods import QUERY
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.keys import load_roots, service_key
from patchbay_gateway.plugins.distribution import SnapshotPublisher
from patchbay_gateway.plugins.snapshot import Snapshot
from patchbay_gateway.usage.main import SERVICE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess

ATTEMPTS = 900
TOKENS = {"input_tokens": 10, "output_tokens": 5}


class Service:
    """One usage service after the other, on one data directory."""

    def __init__(
        self,
        url: str,
        installation: str,
        directory: Path,
        ports: tuple[int, int],
        database_url: str = "",
    ) -> None:
        self.grpc_port, self.health_port = ports
        self._env = {
            **os.environ,
            "REDIS_URL": url,
            "PATCHBAY_INSTALLATION": installation,
            "PATCHBAY_DATA_DIR": str(directory),
            "PATCHBAY_HOST": "127.0.0.1",
            "PATCHBAY_GRPC_PORT": str(self.grpc_port),
            "PATCHBAY_HEALTH_PORT": str(self.health_port),
        }
        if database_url:
            self._env["PATCHBAY_USAGE__DATABASE_URL"] = database_url
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        program = (
            "import os, sys; from patchbay_gateway.kernel.config import ProcessSettings, load;"
            "from patchbay_gateway.usage.main import run;"
            "sys.exit(run(load(None, os.environ), ProcessSettings.load('usage')))"
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env=self._env, stderr=asyncio.subprocess.DEVNULL
        )

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return await self._process.wait()

    async def asked(self, path: str) -> httpx.Response | None:
        """Return the health port's answer; None while nobody listens."""
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            with contextlib.suppress(httpx.HTTPError):
                return await client.get(f"http://127.0.0.1:{self.health_port}{path}")
        return None

    async def ready(self) -> bool:
        answer = await self.asked("/readyz")
        return answer is not None and answer.status_code == 200


@pytest.fixture
async def service(bench: Bench, valkey: ValkeyProcess, tmp_path: Path) -> AsyncIterator[Service]:
    await SnapshotPublisher(bench.store, clock=SystemClock()).publish(Snapshot(version=1))
    installation = bench.store.prefix.partition("{")[2].partition("}")[0]
    made = Service(valkey.url, installation, tmp_path, (pick_port(), pick_port()))
    yield made
    await made.kill()


async def test_killed_at_random_instants_nothing_is_lost_or_doubled(
    bench: Bench, service: Service, tmp_path: Path
) -> None:
    chance = random.Random(secrets.randbits(32))
    events: list[bytes] = []
    for i in range(ATTEMPTS):
        more: dict[str, Any] = {"request": i, "writer": f"w{i % 2}"}
        events.append(make_bytes("opened", sequence=i // 2 * 2 + 1, **more))
        events.append(make_bytes("settled", sequence=i // 2 * 2 + 2, usage=TOKENS, **more))

    async def write() -> None:
        for start in range(0, len(events), 60):
            await bench.send(events[start : start + 60])
            await asyncio.sleep(0.05)  # the load's pace

    writing = asyncio.create_task(write())
    for _ in range(2):
        await service.start()
        await eventually(service.ready, within=90)
        await asyncio.sleep(chance.uniform(0.0, 0.3))  # a random instant is the point
        await service.kill()
    await writing
    # A scheduler sends again what the watermark did not cover.
    await bench.send(chance.sample(events, 200))
    await service.start()
    await bench.reaches(ATTEMPTS, "w0", within=90)
    await bench.reaches(ATTEMPTS, "w1", within=90)

    async def drained() -> bool:
        return int(await bench.store.call("XLEN", bench.store.key("journal"))) == 0

    await eventually(drained)
    key = service_key(load_roots({}, ["cluster"], tmp_path).cluster[0])
    token = TokenSource(key, SERVICE, "test")
    channel = RemoteChannel(f"127.0.0.1:{service.grpc_port}", metadata=token.metadata)
    asked = usage_pb2.QueryRequest(by=usage_pb2.GROUP_BY_MODEL)
    (row,) = (await channel.unary(QUERY, asked, deadline=60)).rows
    await channel.close()
    assert (row.requests, row.attempts, row.input_tokens) == (ATTEMPTS, ATTEMPTS, 10 * ATTEMPTS)
    assert await service.stop() == 0
    uids = [f"01J{i:023d}-1" for i in range(ATTEMPTS)]
    log = [{"attempt_uid": uid, "completed": True, **TOKENS} for uid in uids]
    report = ledger_check.check(log, tmp_path / "ledger.db")
    assert report.ok, report


async def test_service_is_alive_and_not_ready_until_its_database_answers(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """It is not killed for waiting, and ends on request."""
    nobody = f"postgresql://ledger@127.0.0.1:{pick_port()}/ledger"
    waiting = Service(valkey.url, "waiting", tmp_path, (pick_port(), pick_port()), nobody)
    await waiting.start()
    try:

        async def alive() -> bool:
            answer = await waiting.asked("/livez")
            return answer is not None and answer.status_code == 200

        await eventually(alive, within=90)
        answer = await waiting.asked("/readyz")
        assert answer is not None
        assert answer.status_code == 503
        assert answer.json()["failing"] == {"journal": "waits for the database"}
        assert await waiting.stop() == 0
    finally:
        await waiting.kill()
