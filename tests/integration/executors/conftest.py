"""A provider that does what a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fakes.script import Script
from tests.fakes.upstream import FakeUpstream, running_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with running_upstream(Script(chunks=4)) as upstream:
        yield upstream
