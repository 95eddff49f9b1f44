"""Watches that end (watching.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest

from patchbay_operator.watching import build_settings, watch


async def test_watches_that_just_end_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator without them hears of no change, and its process would not end."""

    async def ended(**_: Any) -> None: ...

    monkeypatch.setattr(kopf, "operator", ended)
    with pytest.raises(RuntimeError, match="ended"):
        await watch(kopf.OperatorRegistry(), build_settings("patchbay"), "gateway")


async def test_watches_end_with_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def until_stopped(**given: Any) -> None:
        loop.call_soon_threadsafe(began.set)
        await asyncio.to_thread(given["stop_flag"].wait)

    monkeypatch.setattr(kopf, "operator", until_stopped)
    watching = asyncio.create_task(
        watch(kopf.OperatorRegistry(), build_settings("patchbay"), "gateway")
    )
    async with asyncio.timeout(60):
        await began.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
