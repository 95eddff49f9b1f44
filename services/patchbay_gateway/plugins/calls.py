"""
Calling a plugin at one of its steps: deadline, accounting, one other address after a failed connection.

What a failure means for the request is the step's business (policy.py has the table); here it is only
counted, against the address when no answer of the plugin stands behind it, a passed deadline included. Not
here: executors, whose answers are streams (edge/execution.py), calls that stay open (conversation.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from patchbay import errors
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels.port import (
    DRAINING,
    NOT_REGISTERED,
    OF_THE_WAY,
    TRANSPORT,
)
from patchbay_gateway.kernel.outcomes import PLUGIN_FAILED
from patchbay_gateway.plugins.policy import OnError

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.channels.port import Metadata, Method, Req, Res
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.members import Member
    from patchbay_gateway.plugins.registry import PluginRegistry

PLUGIN_UNAVAILABLE: Final = "PLUGIN_UNAVAILABLE"
"""Reason of an Unavailable: no address of the plugin with this capability is left."""
# Another address may answer what this one did not even begin with (proto/README.md).
_ELSEWHERE: Final = frozenset({TRANSPORT, DRAINING, NOT_REGISTERED})

_log = logs.get_logger("plugins")


class Scope(Protocol):
    """What a plugin may ask of the host while one call of it lasts."""

    metadata: Metadata
    """What the call carries, so that the plugin can name the scope."""
    nested: bool
    """Whether the plugin ran a model in it."""

    def close(self) -> None:
        """End it; what was opened in it ends too. Idempotent."""
        ...


class Scopes(Protocol):
    """Opens scopes."""

    def open(self, hook: Hook, execution: PluginExecution | None) -> Scope | None:
        """Return the scope of one call; None for a plugin that may ask for nothing."""
        ...


class NoScopes:
    """For processes that serve no callbacks."""

    def open(self, hook: Hook, execution: PluginExecution | None) -> Scope | None:
        """Return None."""
        return None


async def call_member(
    member: Member,
    method: Method[Req, Res],
    request: Req,
    *,
    deadline: float | None,
    metadata: Metadata,
    timer: Callable[[], float],
) -> Res:
    """
    Call one address of a plugin and have it learn from how that ended.

    Args:
        member: The address, with the plugin's registration there.
        method: What.
        request: Its message.
        deadline: Seconds.
        metadata: Of the call, beside the registration's.
        timer: Monotonic seconds.

    Raises:
        PatchbayError: The plugin's own error, or the channel's.
    """
    started = timer()
    failed: bool | None = None
    draining = False
    registration = member.registration
    member.begin()
    try:
        answer = await member.channel.unary(
            method, request, deadline=deadline, metadata=(*member.metadata(), *metadata)
        )
    except errors.PatchbayError as error:
        failed = error.reason in OF_THE_WAY
        draining = error.reason == DRAINING
        if error.reason == NOT_REGISTERED:
            member.forgotten(registration)
        raise
    else:
        failed = False
        return answer
    finally:
        member.seconds += timer() - started
        member.end(failed, draining=draining)


class PluginCalls:
    """
    Calls plugins.

    Args:
        registry: Whom to call.
        scopes: Opens what a call may call back in.
        timer: Monotonic seconds.
    """

    def __init__(
        self,
        registry: PluginRegistry,
        *,
        scopes: Scopes | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        # Not `or`: a table of scopes is empty while nothing runs.
        self.scopes: Scopes = NoScopes() if scopes is None else scopes
        self.timer = timer

    async def ask(
        self, hook: Hook, method: Method[Req, Res], request: Req, execution: PluginExecution
    ) -> Res | None:
        """
        Return the plugin's answer, None when it failed and the request goes on without it.

        Raises:
            Unavailable: PLUGIN_FAILED, its policy is to fail the request.
        """
        try:
            return await self.unary(hook, method, request, execution)
        except errors.PatchbayError as error:
            if hook.policy.on_error is OnError.FAIL_REQUEST:
                raise failed(hook, error) from error
            warn(hook, error)
            return None

    async def unary(
        self,
        hook: Hook,
        method: Method[Req, Res],
        request: Req,
        execution: PluginExecution | None = None,
        *,
        deadline: float | None = None,
    ) -> Res:
        """
        Return the plugin's answer.

        Args:
            hook: Who, and by which policy.
            method: What.
            request: Its message.
            execution: What callbacks in it inherit.
            deadline: Seconds; default the policy's.

        Raises:
            PatchbayError: The plugin's own error; Unavailable with PLUGIN_UNAVAILABLE when nobody is left;
                DeadlineExceeded with CALL_DEADLINE when it was too slow.
        """
        tried: list[str] = []
        limit = hook.policy.deadline if deadline is None else deadline
        scope = self.scopes.open(hook, execution)
        metadata = scope.metadata if scope is not None else ()
        try:
            while True:
                member = self.pick(hook, tried)
                try:
                    return await call_member(
                        member, method, request, deadline=limit, metadata=metadata, timer=self.timer
                    )
                except errors.Unavailable as error:
                    # The plugin's own Unavailable is its answer; only one that took no call leads elsewhere.
                    again = hook.policy.other_address and not tried and error.reason in _ELSEWHERE
                    tried.append(member.address)
                    if not again or not self._left(hook, tried):
                        raise
        finally:
            if scope is not None:
                scope.close()

    def _left(self, hook: Hook, exclude: list[str]) -> bool:
        return self._registry.pick_able(hook.plugin_id, hook.capability, exclude) is not None

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


def failed(hook: Hook, error: errors.PatchbayError) -> errors.Unavailable:
    """Return the error of a request that must not go on without a plugin; the cause stays in the log."""
    _log.error(
        "plugin failed, and the request with it",
        plugin=hook.plugin_id,
        capability=hook.capability,
        reason=error.reason,
        why=error.message,
    )
    return errors.Unavailable(
        f"plugin {hook.plugin_id}, which every request must pass, does not answer",
        reason=PLUGIN_FAILED,
        retry_after=2,
        sent=errors.Sent.NO,
    )


def warn(hook: Hook, error: errors.PatchbayError) -> None:
    """Log that a plugin failed and the request went on."""
    _log.warning(
        "plugin failed, the request goes on without it",
        plugin=hook.plugin_id,
        capability=hook.capability,
        reason=error.reason,
        why=error.message,
    )
