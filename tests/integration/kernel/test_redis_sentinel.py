"""The Store behind Sentinels: it finds the master, and the new one after a failover."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.ports import free_port

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.valkey import find_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def spawn(tmp_path: Path):
    """Start servers that end with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(find_server()), *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def answer(store: Store, *command: str, until: Callable[[Any], bool] = lambda _: True) -> Any:
    """
    The reply, once it is as wanted, of a server that may be starting or changing its role.

    A Sentinel that was kept from the processor for two seconds does nothing for the next thirty.
    """
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(Unavailable):
                reply = await store.call(*command)
                if until(reply):
                    return reply
            await asyncio.sleep(0.05)


async def test_master_is_found_and_followed_over_a_failover(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
):
    first, second, sentinel, dead = (free_port() for _ in range(4))
    common = ("--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0")
    master = spawn("--port", str(first), "--dbfilename", "1.rdb", *common)
    spawn(
        "--port", str(second), "--dbfilename", "2.rdb", *common, "--replicaof", f"127.0.0.1 {first}"
    )
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {sentinel}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n"
    )
    replica = Store(
        f"redis://127.0.0.1:{second}", installation="x", clock=SystemClock(), timeout=5.0
    )
    await answer(replica, "INFO", "replication", until=lambda text: b"link_status:up" in text)
    spawn(str(configuration), "--sentinel")

    # The first Sentinel named does not answer: the next is asked.
    url = f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{sentinel}/main"
    store = Store(url, installation="x", clock=SystemClock(), timeout=5.0)
    await answer(store, "SET", "a", "1")
    # Sentinel reads the list of replicas from the master every ten seconds, the first time at once.
    watching = Store(
        f"redis://127.0.0.1:{sentinel}", installation="x", clock=SystemClock(), timeout=5.0
    )
    await answer(watching, "SENTINEL", "REPLICAS", "main", until=bool)
    await answer(replica, "GET", "a", until=lambda value: value == b"1")
    master.kill()
    assert await answer(store, "SET", "a", "2") == b"OK"
    assert await answer(replica, "GET", "a") == b"2"
    for each in (store, replica, watching):
        await each.aclose()


async def test_unknown_service_is_named():
    port = free_port()

    async def sentinel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"*-1\r\n")
        await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(sentinel, "127.0.0.1", port)
    store = Store(
        f"redis+sentinel://127.0.0.1:{port}/other",
        installation="x",
        clock=SystemClock(),
        timeout=5.0,
    )
    with pytest.raises(Unavailable, match="does not know other"):
        await store.call("PING")
    await store.aclose()
    server.close()
    await server.wait_closed()
