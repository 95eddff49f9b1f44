"""What is below the services fails over, or is several: Sentinel with its Redis, the ledger on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
import redis
from tests.harness import redis_server
from tests.harness.load import Load, Verdict
from tests.harness.observing import NOWHERE, until, until_meanwhile
from tests.harness.postgres import running_postgres
from tests.harness.processes import Process, free_port
from tests.harness.scaled import Scaled, run
from tests.harness.topology import make_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.harness.name_server import NameServer

PATIENCE = 60.0
MASTER = "patchbay"


@contextlib.asynccontextmanager
async def load_on(gateway: Scaled) -> AsyncIterator[Load]:
    """Short streams and plain answers, all the time."""
    headers = {**gateway.headers(), "x-echo-chunks": "5", "x-echo-delay-ms": "20"}
    load = Load(gateway.running("edge")[0].base_url, headers, model="echo", clients=4)
    async with load.running():
        await until_meanwhile(lambda: load.verdicts[Verdict.COMPLETE] > 8, "the load begins")
        yield load


async def more(load: Load) -> None:
    """Wait until some more answers are complete."""
    before = load.verdicts[Verdict.COMPLETE]
    await until_meanwhile(lambda: load.verdicts[Verdict.COMPLETE] > before + 20, "it goes on")


def booked(gateway: Scaled) -> dict[str, int]:
    """Return the ledger's sums; nothing while the usage service is away."""
    found = gateway.managed(gateway.running("edge")[0], "usage")
    if not isinstance(found, list):
        return {"requests": 0, "attempts": 0, "lost": 0}
    return {key: sum(row[key] for row in found) for key in ("requests", "attempts", "lost")}


class Sentinels:
    """A master, a replica and one Sentinel: as much as a failover needs."""

    def __init__(self, directory: Path) -> None:
        self.ports = [free_port(), free_port()]
        self.port = free_port()
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 3000\n"
        )
        self.stores = [self._store(directory, port) for port in self.ports]
        argv = [str(redis_server.server()), str(configuration), "--sentinel"]
        self.sentinel = Process("sentinel", argv, env={}, directory=directory)

    @property
    def url(self) -> str:
        """For REDIS_URL."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{MASTER}"

    def start(self) -> None:
        """Start, and wait until a failover is possible."""
        for store in self.stores:
            store.start()
        until(lambda: self._says(self.ports[1], "master_link_status", "up"), PATIENCE)
        self.sentinel.start()
        until(lambda: self._known_replicas() == 1, PATIENCE)

    def stop(self) -> None:
        """Kill them: nothing of them is wanted."""
        for process in (self.sentinel, *self.stores):
            if process.running:
                process.kill()

    def master(self) -> int:
        """Return the port of the master as Sentinel has it."""
        with redis.Redis(port=self.port) as client:
            return int(client.sentinel_get_master_addr_by_name(MASTER)[1])

    def _known_replicas(self) -> int:
        with contextlib.suppress(redis.RedisError), redis.Redis(port=self.port) as client:
            return int(client.sentinel_master(MASTER)["num-slaves"])
        return 0

    @staticmethod
    def _says(port: int, key: str, value: str) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis(port=port) as client:
            return bool(client.info("replication").get(key) == value)
        return False

    def _store(self, directory: Path, port: int) -> Process:
        argv = [
            *(str(redis_server.server()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(directory), "--save", "", "--dbfilename", f"{port}.rdb"),
            *("--repl-diskless-sync-delay", "0"),
        ]
        if port != self.ports[0]:
            argv += ["--replicaof", f"127.0.0.1 {self.ports[0]}"]
        return Process(f"redis-{port}", argv, env={}, directory=directory)


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    made = Sentinels(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def behind_sentinels(sentinels: Sentinels, names: NameServer, tmp_path: Path) -> Iterator[Scaled]:
    made = Scaled(tmp_path, make_config(NOWHERE), names, redis_url=sentinels.url)
    made.start()
    yield made
    made.stop()


async def test_master_of_redis_dies_no_request_fails_and_all_are_booked(
    behind_sentinels: Scaled, sentinels: Sentinels
) -> None:
    gateway = behind_sentinels
    async with load_on(gateway) as load:
        await more(load)
        await asyncio.to_thread(sentinels.stores[0].kill)
        await until_meanwhile(
            lambda: sentinels.master() == sentinels.ports[1], "Sentinel fails over"
        )
        scheduler = gateway.running("scheduler")[0]
        assert scheduler.ready_url is not None
        await asyncio.to_thread(scheduler.wait_ready, PATIENCE)
        await more(load)
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses, load.lies)
    answered = load.verdicts[Verdict.COMPLETE]
    await until_meanwhile(
        lambda: booked(gateway)["requests"] >= answered, f"{answered} answers are booked"
    )
    assert (await asyncio.to_thread(booked, gateway))["requests"] == answered


@pytest.fixture
def on_postgres(names: NameServer, tmp_path: Path) -> Iterator[Scaled]:
    """Two usage services that start at once on an empty database."""
    with running_postgres() as url:
        config = make_config(NOWHERE, usage={"database_url": url})
        made = Scaled(tmp_path, config, names)
        made.make("usage")
        made.start()
        yield made
        made.stop()


async def test_two_usage_services_on_postgres_one_killed_every_request_is_booked_once(
    on_postgres: Scaled,
) -> None:
    gateway = on_postgres
    asked, other = gateway.running("usage")
    async with load_on(gateway) as load:
        await more(load)
        await asyncio.to_thread(other.kill)
        await more(load)
        await asyncio.to_thread(run, [other])
        # The one that is asked for reports ends well; the other goes on alone.
        asked.signal(signal.SIGTERM)
        assert await asyncio.to_thread(asked.wait, 90) == 0
        await more(load)
        await asyncio.to_thread(run, [asked])
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses, load.lies)
    answered = load.verdicts[Verdict.COMPLETE]
    await until_meanwhile(
        lambda: booked(gateway)["requests"] >= answered, f"{answered} answers are booked"
    )
    sums = await asyncio.to_thread(booked, gateway)
    assert sums == {"requests": answered, "attempts": answered, "lost": 0}
