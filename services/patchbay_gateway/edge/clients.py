"""
The edge's calls to the scheduler: one port, so that nothing else knows how many schedulers there are.

Not here: batching (leases.py, outbox.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from patchbay import errors

if TYPE_CHECKING:
    from patchbay_gateway.kernel.channels.port import Channel, Method, Req, Res


class SchedulerCalls(Protocol):
    """Calls that any scheduler may answer; all methods are idempotent."""

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """
        Return some scheduler's answer.

        Raises:
            Unavailable: None answers.
        """
        ...


class ChannelCalls:
    """A fixed list of schedulers, tried in turn from the one that answered last."""

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        self._next = 0

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """Try each scheduler once; only failures of the way there lead to the next."""
        last: errors.PatchbayError | None = None
        for _ in range(len(self._channels)):
            channel = self._channels[self._next % len(self._channels)]
            try:
                return await channel.unary(method, request, deadline=deadline)
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                last = error
                self._next += 1
        raise last or errors.Unavailable("no scheduler is configured", reason="NO_SCHEDULER")
