"""Readers that wait in the server, seen from another connection to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.kernel.redis import Store


async def until_blocked(store: Store, *, blocked: bool = True) -> None:
    """Wait until somebody waits in the server, or nobody does."""
    async with asyncio.timeout(60):
        while (b"flags=b" in await store.call("CLIENT", "LIST")) is not blocked:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
