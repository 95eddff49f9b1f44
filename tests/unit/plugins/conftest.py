"""A registry over processes of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.plugins.registry_world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patchbay_gateway.kernel.clock import ManualClock


@pytest.fixture
async def world(
    clock: ManualClock,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after the registry is closed
) -> AsyncIterator[World]:
    made = World(clock)
    yield made
    await made.registry.aclose()
