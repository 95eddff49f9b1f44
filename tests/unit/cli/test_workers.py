"""The supervisor of `patchbay up --workers N`, without its processes (workers.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay_gateway import workers
from patchbay_gateway.edge.running import LAST_REPORTS
from patchbay_gateway.kernel.config import ProcessSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("drain", [1.0, 25.0, 600.0])
def test_data_processes_get_their_drain_and_more_before_the_rest_ends(
    tmp_path: Path, drain: float
) -> None:
    """Control and Valkey end after them, and take the usage of their last answers."""
    settings = ProcessSettings(data_dir=tmp_path, drain=drain)
    assert workers._patience(settings) > drain + LAST_REPORTS + 5.0
