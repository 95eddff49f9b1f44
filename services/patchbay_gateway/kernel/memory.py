"""
Memory of a long-lived process: what a peak took goes back, and the collector leaves alone what stays.

glibc's defaults suit programs with many threads and steady sizes: an arena per thread, and a trim
threshold that grows with each large block that is freed. A gateway has one busy thread, bodies of
megabytes and peaks of a thousand streams. Measured after such a peak: 131 MB kept instead of 141.
Python's collector walks the whole wiring again and again for garbage that is not there. Measured on
`patchbay up` at 32 connections: 510 µs of CPU an answer instead of 638. Not here: bounds on what is taken
(edge/budget.py).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8

_TRIM_BYTES: Final = 128 << 10
_ARENAS: Final = 2

# Allocations before a collection, and how many of one generation before the next. Python's default of 700
# was made for scripts: here each turn of the loop makes that many objects, and nearly all die by reference.
_COLLECT: Final = (10_000, 20, 20)


def settle() -> None:
    """Apply the settings; call it once, before the process has threads."""
    gc.set_threshold(*_COLLECT)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def freeze() -> None:
    """Spare the collector all that exists now, modules and wiring; call it when the process is built."""
    gc.collect()
    gc.freeze()
