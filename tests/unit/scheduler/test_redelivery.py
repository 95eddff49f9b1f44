"""The keeper of the journal's position, and its end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Literal, cast

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.scheduler.redelivery import LOOK_EVERY, Redelivery


class Quiet(Redelivery):
    """Finds nothing to do."""

    async def look(self) -> None:
        await asyncio.sleep(0)


class Behind(asyncio.Event):
    """Does *then* in the moment in which nobody wants to wait for it any more."""

    def then(self) -> None: ...

    async def wait(self) -> Literal[True]:
        try:
            return await super().wait()
        except asyncio.CancelledError:
            self.then()
            raise


async def test_keeper_that_is_cancelled_as_its_pause_ends_has_ended() -> None:
    """Else a process that stops waits ten seconds for it, now and then."""
    clock, behind = ManualClock(), Behind()
    keeper = Quiet(
        cast("Any", None),
        cast("Any", SimpleNamespace(live=True, backlog=0)),
        cast("Any", None),
        clock=clock,
        behind=behind,
        nudge=lambda: None,
        metrics=NoMetrics(),
    )
    running = asyncio.create_task(keeper.run())
    for _ in range(5):
        await asyncio.sleep(0)
    behind.then = lambda: cast("None", running.cancel())  # type: ignore[method-assign] # from here on
    await clock.advance(LOOK_EVERY)
    for _ in range(5):
        await asyncio.sleep(0)
    ended = running.cancelled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended
