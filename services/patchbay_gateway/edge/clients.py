"""
The edge's calls to the scheduler: one port, so that nothing else knows how many schedulers there are.

Not here: batching (leases.py, outbox.py), schedulers elsewhere (schedulers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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


class LocalCalls:
    """The scheduler of this process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """Return its answer."""
        return await self._channel.unary(method, request, deadline=deadline)


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
