"""
Which process a directory belongs to: the one that holds flock on the file `lock` in it.

The lock goes with the process, however it ends. A directory may be moved or removed by its holder; whoever
opened the file just before then holds a lock that says nothing, so it is looked at again once it is held.
Not here: what is in the directory (appendlog.py), directories that many use at once (the credentials').
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition

if TYPE_CHECKING:
    from pathlib import Path

# Who looks whether somebody holds it (`try_lock`) holds it himself for a moment.
_PATIENCE: Final = 0.5
_PAUSE: Final = 0.02


def lock_directory(directory: Path) -> int:
    """
    Make *directory* if it is missing; return the descriptor that holds it. Blocks for half a second at most.

    Raises:
        FailedPrecondition: Another process uses it, or its file system has no flock.
        OSError: It cannot be made.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except FileExistsError:
            if directory.exists():
                raise  # no directory; else it was removed while this looked
        if (descriptor := try_lock(directory)) is not None:
            return descriptor
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"{directory} is in use by another process; give each process a directory of its own",
                reason="DATA_DIR_IN_USE",
            )
        time.sleep(_PAUSE)


def try_lock(directory: Path) -> int | None:
    """Return the descriptor that holds *directory*; None when another process has it or it is gone."""
    path = directory / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
