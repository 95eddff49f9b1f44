"""
Calling a plugin at one of its steps: deadline, accounting, one other address after a failed connection.

What a failure means for the request is the step's business (policy.py has the table); here it is only
counted, against the address when no answer of the plugin stands behind it, a passed deadline included. Not
here: executors, whose answers are streams (edge/execution.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels.port import CALL_DEADLINE, TRANSPORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.channels.port import Metadata, Method, Req, Res
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.members import Member
    from patchbay_gateway.plugins.registry import PluginRegistry

PLUGIN_UNAVAILABLE: Final = "PLUGIN_UNAVAILABLE"
"""Reason of an Unavailable: no address of the plugin with this capability is left."""

_log = logs.get_logger("plugins")


class PluginCalls:
    """
    Calls plugins.

    Args:
        registry: Whom to call.
        timer: Monotonic seconds.
    """

    def __init__(
        self, registry: PluginRegistry, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._timer = timer

    async def unary(
        self,
        hook: Hook,
        method: Method[Req, Res],
        request: Req,
        *,
        metadata: Metadata = (),
        deadline: float | None = None,
    ) -> Res:
        """
        Return the plugin's answer.

        Args:
            hook: Who, and by which policy.
            method: What.
            request: Its message.
            metadata: Besides the call's own, for example the scope.
            deadline: Seconds; default the policy's.

        Raises:
            PatchbayError: The plugin's own error; Unavailable with PLUGIN_UNAVAILABLE when nobody is left;
                DeadlineExceeded with CALL_DEADLINE when it was too slow.
        """
        tried: list[str] = []
        limit = hook.policy.deadline if deadline is None else deadline
        while True:
            member = self.pick(hook, tried)
            try:
                return await self._once(member, method, request, metadata, limit)
            except errors.Unavailable as error:
                # The plugin's own Unavailable is its answer; only a broken way there leads elsewhere.
                again = hook.policy.other_address and not tried and error.reason == TRANSPORT
                tried.append(member.address)
                if (
                    not again
                    or self._registry.pick_able(hook.plugin_id, hook.capability, tried) is None
                ):
                    raise

    def pick(self, hook: Hook, exclude: list[str]) -> Member:
        """
        Return an address to call.

        Raises:
            Unavailable: PLUGIN_UNAVAILABLE, none is left.
        """
        member = self._registry.pick_able(hook.plugin_id, hook.capability, exclude)
        if member is None:
            raise errors.Unavailable(
                f"no address of plugin {hook.plugin_id} answers",
                reason=PLUGIN_UNAVAILABLE,
                retry_after=2,
                sent=errors.Sent.NO,
            )
        return member

    async def _once(
        self,
        member: Member,
        method: Method[Req, Res],
        request: Req,
        metadata: Metadata,
        deadline: float | None,
    ) -> Res:
        started = self._timer()
        failed: bool | None = None
        draining = False
        member.begin()
        try:
            answer = await member.channel.unary(
                method, request, deadline=deadline, metadata=(*member.metadata(), *metadata)
            )
        except errors.PatchbayError as error:
            failed = error.reason in {TRANSPORT, CALL_DEADLINE}
            draining = error.reason == "DRAINING"
            raise
        else:
            failed = False
            return answer
        finally:
            member.seconds += self._timer() - started
            member.end(failed, draining=draining)


def warn(hook: Hook, error: errors.PatchbayError) -> None:
    """Log that a plugin failed and the request went on."""
    _log.warning(
        "plugin failed, the request goes on without it",
        plugin=hook.plugin_id,
        capability=hook.capability,
        reason=error.reason,
        why=error.message,
    )
