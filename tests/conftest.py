"""Fixtures that several levels share: a real Valkey, a Store on it, ports, a clock, leaked tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.harness import ports, redis_server

from patchbay_gateway.kernel.clock import ManualClock, SystemClock
from patchbay_gateway.kernel.redis import Store

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Iterator

# Named requirements, and the list of what was not run; an API server where there is one; who runs what.
pytest_plugins = ("tests.requirements", "tests.harness.apiserver_fixtures", "tests.harness.workers")


def pytest_configure() -> None:
    """How long an example takes, or takes to be made, is the machine's business. CI stays derandomized."""
    slow = [HealthCheck.too_slow]
    settings.register_profile("patchbay", settings(), deadline=None, suppress_health_check=slow)
    settings.load_profile("patchbay")
    # Each port that a run takes is a descriptor until its end (harness/ports.py); 1,024 is a usual limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (enough := 8_192 if hard == resource.RLIM_INFINITY else min(hard, 8_192)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: modules and thousands of tests, walked each time else."""
    gc.collect()
    gc.freeze()


class ValkeyProcess:
    """A server of the tests' own on a port of 127.0.0.1, without persistence; may be hurt."""

    def __init__(self, port: int, directory: Path, *options: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        fixed = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(
            [str(redis_server.server()), *fixed, "--dir", str(self._directory), *self._options],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            time.sleep(0.01)  # a start-up, not a behaviour: nothing tells when it listens
        raise AssertionError("the test's Valkey did not start")

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP makes it hang, SIGCONT ends that."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill -9 and wait; a second time does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def pick_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    return ports.free_port()


@pytest.fixture
def free_port() -> int:
    """Return a port that nobody listens on."""
    return pick_port()


@pytest.fixture(scope="session")
def valkey_directory() -> Iterator[Path]:
    """Make a directory with a short name: Unix sockets allow 100 characters."""
    directory = Path(tempfile.mkdtemp(prefix="pbt-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey(valkey_directory: Path) -> Iterator[ValkeyProcess]:
    """The session's server. Do not hurt it; take `own_valkey` for that."""
    server = ValkeyProcess(pick_port(), valkey_directory)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """Start one test's own server, to stop, kill and flush."""
    server = ValkeyProcess(pick_port(), tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(valkey: ValkeyProcess) -> AsyncIterator[Store]:
    """A Store on an installation that no other test sees. Real time: its timeouts are the loop's."""
    # Generous, for a busy machine; tests of the timeout itself make their own.
    made = Store(
        valkey.url, installation=f"t-{secrets.token_hex(6)}", clock=SystemClock(), timeout=20.0
    )
    yield made
    await made.aclose()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that only the test moves."""
    return ManualClock()


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[Callable[[], set[asyncio.Task[object]]]]:
    """Fail the test if a task that it started still runs at its end; calling it lists them now."""
    before = asyncio.all_tasks()

    def leaked() -> set[asyncio.Task[object]]:
        return {
            task
            for task in asyncio.all_tasks() - before
            if not task.done() and task is not asyncio.current_task()
        }

    yield leaked
    if ending := leaked():
        # gRPC's own tasks end a moment after the call that they served.
        await asyncio.wait(ending, timeout=60)
    assert not leaked(), f"tasks still run: {[task.get_name() for task in leaked()]}"
