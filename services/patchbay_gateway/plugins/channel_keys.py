"""
Channel keys of plugins for processes that have no root key: asked of the schedulers.

Not here: deriving them (kernel/keys.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay.keys import channel_key
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.registry import ChannelKeys

_DEADLINE: Final = 5.0
_PATIENCE: Final = 15.0
_AGAIN: Final = 0.25


def derived(roots: Sequence[bytes]) -> ChannelKeys:
    """Return where a process that has the `plugins` roots, newest first, gets channel keys from."""

    async def keys(plugin_id: str) -> list[bytes]:
        return [channel_key(plugin_key(root, plugin_id)) for root in roots]

    return keys


def listed(schedulers: Sequence[Channel], *, clock: Clock) -> ChannelKeys:
    """
    Return where a process without roots gets them from: the first of *schedulers* that answers.

    Services start side by side, so a scheduler that is not there yet is waited for a while.
    """

    async def keys(plugin_id: str) -> list[bytes]:
        request = scheduler_pb2.ListChannelKeysRequest(plugin_ids=[plugin_id])
        last: PatchbayError = Unavailable("no scheduler is configured", reason="NO_SCHEDULER")
        until = clock.monotonic() + _PATIENCE
        while True:
            for scheduler in schedulers:
                try:
                    answer = await scheduler.unary(
                        methods.LIST_CHANNEL_KEYS, request, deadline=_DEADLINE
                    )
                except PatchbayError as error:
                    last = error
                else:
                    return [entry.key for entry in answer.keys if entry.plugin_id == plugin_id]
            if clock.monotonic() >= until:
                raise last
            await clock.sleep(_AGAIN)

    return keys
