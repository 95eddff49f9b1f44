"""
Credentials for plugins, asked of the scheduler: an edge has none of them.

The plugin's own token goes along, so that the scheduler sees for itself who asks; documents are sealed to the
plugin and pass here unread. Not here: what is granted and what is answered (scheduler/host_service.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.tokens import PLUGIN_KEY, TOKEN_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.channels.port import CallContext, Channel, Method, Req, Res

_LONGEST: Final = 10.0
"""Seconds for the scheduler, where the plugin grants more."""


class AuthForwarding:
    """
    Passes calls on to the schedulers' HostService.

    Args:
        channels: One for each scheduler, without metadata of its own.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = tuple(channels)
        self._next = 0

    async def call(self, method: Method[Req, Res], request: Req, context: CallContext) -> Res:
        """
        Return some scheduler's answer to what the plugin asked.

        Raises:
            PatchbayError: The scheduler's own error; Unavailable when none answers.
        """
        passed = tuple(
            (name, str(value))
            for name, value in context.invocation_metadata() or ()
            if name in {PLUGIN_KEY, TOKEN_KEY}
        )
        left = context.time_remaining()
        deadline = _LONGEST if left is None else min(left, _LONGEST)
        last: errors.PatchbayError | None = None
        start, count = self._next, len(self._channels)
        for tried in range(count):
            index = (start + tried) % count
            try:
                answer = await self._channels[index].unary(
                    method, request, deadline=deadline / count, metadata=passed
                )
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                last = error
            else:
                self._next = index
                return answer
        raise last or errors.Unavailable("no scheduler is configured", reason="NO_SCHEDULER")
