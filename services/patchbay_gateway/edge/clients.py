"""
The edge's calls to the scheduler: one port, so that nothing else knows how many schedulers there are.

Not here: batching (leases.py, outbox.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay_gateway.kernel.channels.port import Channel, Method, Req, Res


class SchedulerCalls(Protocol):
    """Calls that any scheduler may answer; all methods are idempotent."""

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """
        Return some scheduler's answer within *deadline* seconds.

        Raises:
            Unavailable: None answers.
        """
        ...


class ChannelCalls:
    """
    A fixed list of schedulers, tried in turn from the one that answered last.

    A single channel may be a name with several schedulers behind it, of which one has just gone: it is
    tried once more after Unavailable.
    """

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        self._next = 0

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """Try each scheduler once; only failures of the way there lead to the next."""
        if len(self._channels) == 1:
            return await self._alone(self._channels[0], method, request, deadline)
        now = asyncio.get_running_loop().time
        end = now() + deadline
        last: errors.PatchbayError | None = None
        # Taken once: calls that fail side by side must not move each other past the one that answers.
        start, count = self._next, len(self._channels)
        for tried in range(count):
            index = (start + tried) % count
            # One that is silent uses up its share of what is left and no more.
            share = (end - now()) / (count - tried)
            if share <= 0:
                break
            try:
                answer = await self._channels[index].unary(method, request, deadline=share)
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                last = error
            else:
                self._next = index
                return answer
        raise last or errors.Unavailable("no scheduler is configured", reason="NO_SCHEDULER")

    @staticmethod
    async def _alone(
        channel: Channel, method: Method[Req, Res], request: Req, deadline: float
    ) -> Res:
        now = asyncio.get_running_loop().time
        end = now() + deadline
        try:
            return await channel.unary(method, request, deadline=deadline)
        except errors.Unavailable:
            left = end - now()
            if left <= 0:
                raise
        return await channel.unary(method, request, deadline=left)


class SchedulerKeys:
    """Channel keys of plugins, asked of the scheduler and kept."""

    def __init__(self, scheduler: SchedulerCalls) -> None:
        self._scheduler = scheduler

    async def keys(self, plugin_id: str) -> list[bytes]:
        """
        Return the channel keys of *plugin_id*, newest first.

        Raises:
            PatchbayError: No scheduler answers.
        """
        request = scheduler_pb2.ListChannelKeysRequest(plugin_ids=[plugin_id])
        response = await self._scheduler.call(methods.LIST_CHANNEL_KEYS, request, deadline=5.0)
        return [entry.key for entry in response.keys if entry.plugin_id == plugin_id]
