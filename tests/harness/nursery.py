"""
Programs forked from one that has imported everything, which start in a tenth of the time.

One nursery a test run, made when it is first asked and ended with the run. Not for programs whose environment
tells the interpreter or the C library something at their start, and not at full length
(PATCHBAY_TEST_FULL_LENGTH=1): those are started from nothing, as users do. Not here: what forks
(nursery_process.py).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROGRAM: Final = Path(__file__).with_name("nursery_process.py")
# Read before the first line of a program runs; what was forked has read the nursery's.
_EARLY: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "SSL_", "TZ")


class Running(Protocol):
    """What is asked of a process; subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, when there is one; raises subprocess.TimeoutExpired."""


class Forked:
    """A process of the nursery."""

    def __init__(self, pid: int, argv: Sequence[str], status: int) -> None:
        """
        Args:
            pid: Its id.
            argv: For errors.
            status: The descriptor on which its exit status will be told; from now on this object's.
        """
        self.pid = pid
        self._argv = argv
        self._status = status
        self._ended: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """
        Return the exit status, when there is one.

        Raises:
            subprocess.TimeoutExpired: Not within *timeout* seconds.
        """
        if self._ended is None:
            # Not `select`: a run that holds a thousand ports has descriptors beyond what that can name.
            waiting = select.poll()
            waiting.register(self._status, select.POLLIN)
            if not waiting.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(list(self._argv), timeout or 0)
            # Nothing: the nursery was killed, and what it had forked is nobody's.
            self._ended = int(os.read(self._status, 16) or -signal.SIGKILL)
            os.close(self._status)
        return self._ended


class Nursery:
    """The process that forks; it is started here."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._socket = ours
        self._lock = threading.Lock()

    def start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        output: IO[bytes],
        errors: IO[bytes],
    ) -> Forked:
        """
        Start a program.

        Args:
            argv: `patchbay` or a Python file, and arguments.
            environment: All of it.
            directory: Where it runs.
            output: A file.
            errors: A file.
        """
        asked = {"argv": argv, "environment": environment, "directory": str(directory)}
        told, tell = os.pipe()
        try:
            with self._lock:
                files = [output.fileno(), errors.fileno(), tell]
                socket.send_fds(self._socket, [json.dumps(asked).encode()], files)
                pid = self._socket.recv(32)
        finally:
            os.close(tell)
        assert pid, "the nursery ended; its last words are above"
        return Forked(int(pid), argv, told)

    def close(self) -> None:
        """End it, and whatever it forked that still runs."""
        self._socket.close()
        self._process.wait()


@functools.cache
def nursery() -> Nursery:
    """Return this run's."""
    made = Nursery()
    atexit.register(made.close)
    return made


def takes(environment: Mapping[str, str]) -> bool:
    """Whether a program with this environment may be forked."""
    if os.environ.get("PATCHBAY_TEST_FULL_LENGTH") == "1" or sys.platform != "linux":
        return False
    early = [name for name in {*environment, *os.environ} if name.startswith(_EARLY)]
    return all(environment.get(name) == os.environ.get(name) for name in early)
