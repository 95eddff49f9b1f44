"""A scheduler as a process of its own: over gRPC, killed and started again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.harness.processes import PATCHBAY, Process, free_port
from tests.integration.scheduler.conftest import FILE, ROOTS, acquire, events, eventually, report

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.tokens import TokenSource
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.keys import service_key
from patchbay_gateway.scheduler.main import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess
    from tests.integration.scheduler.conftest import Gateway


class Scheduler(Process):
    """The process, and how to call it."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        directory.mkdir()
        file = directory / "patchbay.yaml"
        file.write_text(FILE)
        self.port, health = free_port(), free_port()
        self.health = f"http://127.0.0.1:{health}"
        super().__init__(
            "scheduler",
            [PATCHBAY, "scheduler", "--config", file],
            env={
                "REDIS_URL": gateway.url,
                "PATCHBAY_INSTALLATION": gateway.installation,
                "PATCHBAY_DATA_DIR": str(directory / "data"),
                "PATCHBAY_HOST": "127.0.0.1",
                "PATCHBAY_GRPC_PORT": str(self.port),
                "PATCHBAY_HEALTH_PORT": str(health),
                "PATCHBAY_STORE_KEY": ROOTS.store[0].hex(),
                "PATCHBAY_PLUGINS_KEY": ROOTS.plugins[0].hex(),
                "PATCHBAY_CLUSTER_KEY": ROOTS.cluster[0].hex(),
            },
            directory=directory,
            ready_url=f"{self.health}/readyz",
        )

    def channel(self, key: bytes | None = None) -> RemoteChannel:
        """Return a channel with a token made of *key*."""
        key = key or service_key(ROOTS.cluster[0])
        tokens = TokenSource(key, SERVICE, "edge-1")
        return RemoteChannel(f"127.0.0.1:{self.port}", metadata=tokens.metadata)


@pytest.fixture
def process(own_gateway: Gateway, tmp_path: Path) -> Iterator[Scheduler]:
    made = Scheduler(own_gateway, tmp_path / "process")
    made.start()
    yield made
    made.kill()


async def test_killed_scheduler_sends_what_redis_had_not_got(
    process: Scheduler, own_gateway: Gateway, own_valkey: ValkeyProcess
):
    store = own_gateway.store()
    published = int(await store.call("GET", store.key("snapshot", "version")))
    channel = process.channel()
    leases = []
    for uid in ("A-1", "B-1"):
        response = await channel.unary(methods.ACQUIRE, acquire(published, uid), deadline=60)
        leases.append(response.results[0].lease)
    own_valkey.signal(signal.SIGSTOP)
    await channel.unary(methods.REPORT, report(*leases), deadline=60)
    away = await channel.unary(methods.ACQUIRE, acquire(published, "C-1"), deadline=60)
    assert away.results[0].HasField("lease")
    await channel.close()
    process.kill()
    own_valkey.signal(signal.SIGCONT)
    process.start()

    async def complete() -> bool:
        found = {(e.attempt.attempt_uid, e.kind) for e in await events(store)}
        return found == {("A-1", 1), ("B-1", 1), ("C-1", 1), ("A-1", 3), ("B-1", 3)}

    await eventually(complete)
    # The same file and the same roots make the same snapshot.
    assert int(await store.call("GET", store.key("snapshot", "version"))) == published


async def test_stranger_is_refused_and_drain_ends_well(process: Scheduler):
    stranger = process.channel(b"x" * 32)
    with pytest.raises(errors.Unauthenticated):
        await stranger.unary(methods.LIST_MODELS, scheduler_pb2.ListModelsRequest(), deadline=60)
    await stranger.close()
    channel = process.channel()
    listed = await channel.unary(
        methods.LIST_MODELS, scheduler_pb2.ListModelsRequest(), deadline=60
    )
    assert [m.id for m in listed.models] == ["m"]
    await channel.close()
    assert process.stop() == 0, process.tail()
