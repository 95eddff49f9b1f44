"""
Which Redis the tests run on: the one of the wheel, or the program that PATCHBAY_TEST_REDIS names.

    PATCHBAY_TEST_REDIS=/usr/bin/redis-server make test-integration

Not here: starting it (tests/conftest.py, topology.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from patchbay_gateway.kernel.valkey import find_server


def server() -> Path:
    """Return the program."""
    named = os.environ.get("PATCHBAY_TEST_REDIS")
    return Path(named) if named else find_server()
