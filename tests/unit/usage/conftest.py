"""A ledger on a SQLite file of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.usage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    made = await Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield made
    await made.aclose()
