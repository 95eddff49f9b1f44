"""What tells a changed file from an unchanged one without reading it. Not here: when files are looked at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def file_signature(path: Path) -> tuple[str, object]:
    """Return the path, and what `stat` says of the file behind all links or why it says nothing."""
    try:
        found = path.stat()
        # The name behind all links: a swapped link shows even where inodes are used again.
        return str(path), (
            os.path.realpath(path),
            found.st_ino,
            found.st_dev,
            found.st_mtime_ns,
            # Whether it may be read is part of it.
            found.st_ctime_ns,
            found.st_size,
        )
    except OSError as error:
        return str(path), error.errno
