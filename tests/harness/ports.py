"""
Ports for processes that tests start.

A port is this run's until it ends: a lock on a file in the machine's directory of temporary files says so
to other runs at the same time. Ports come from below the range that the kernel gives to outgoing
connections, which would else take one between its choice and its use.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

# Linux gives 32768 and up to connections, macOS 49152 and up.
_RANGE: Final = range(20_000, 32_000)
_LOCKS: Final = Path(tempfile.gettempdir()) / f"patchbay-test-ports-{os.getuid()}"

# Descriptors, not files: they are to stay open until the process ends.
_held: list[int] = []


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on and that is nobody else's until this run ends."""
    _LOCKS.mkdir(exist_ok=True)
    for port in random.sample(_RANGE, len(_RANGE)):
        lock = os.open(_LOCKS / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _held.append(lock)
        return port
    raise AssertionError("no free port is left")
