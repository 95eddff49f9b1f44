"""
scheduler.pick: a plugin chooses the credential of an attempt, or names a built-in strategy that is to.

Of the plugins that match a request only the first by priority is asked. It sees the credentials that could be
taken now, without anything that looks like a secret. What it may not choose (another credential, a strategy
that there is not) leaves the choice to the configured strategy, as saying nothing does. An error or a passed
deadline fails the attempt, unless its policy is `Ignore`.

Not here: which credentials there are and what becomes of the choice (scheduler/picking.py).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.plugin.v1 import scheduler_plugin_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import failed, warn
from patchbay_gateway.plugins.policy import OnError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Facts, Hook, Hooks
    from patchbay_gateway.plugins.snapshot import Snapshot

CAPABILITY: Final = "scheduler"

AT_ONCE: Final = 64
"""Questions to one plugin under way; who asks another one does not wait for them."""
# Questions to one plugin that wait for one of these to end, and those: more would only be answered too late.
_WAITING: Final = 1024

# Parts of names, without punctuation, that tell a secret or lead to one.
_SECRETIVE: Final = (
    "apikey",
    "token",
    "secret",
    "cookie",
    "credential",
    "password",
    "storage",
    "authorization",
    "authheader",
    "proxyurl",
)
_STRATEGIES: Final = {
    scheduler_plugin_pb2.SCHEDULER_BUILTIN_ROUND_ROBIN: "round-robin",
    scheduler_plugin_pb2.SCHEDULER_BUILTIN_FILL_FIRST: "fill-first",
}

_log = logs.get_logger("plugins.scheduler")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plugin chose: exactly one of the two."""

    auth_id: str = ""
    """Id of a candidate."""
    strategy: str = ""
    """Name of a built-in strategy."""


@dataclass(slots=True)
class _Gate:
    """How many questions to one plugin run and wait."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    inside: int = 0


def scrubbed(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return *attributes* without those whose name looks like a secret's."""
    return {
        name: value
        for name, value in attributes.items()
        if not any(part in re.sub(r"[^a-z0-9]", "", name.lower()) for part in _SECRETIVE)
    }


class SchedulerPlugins:
    """
    Asks scheduler plugins.

    Args:
        hooks: Who takes part.
        calls: Calls them.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls
        self._gates: dict[str, _Gate] = {}

    def any(self, snapshot: Snapshot) -> bool:
        """Whether there is one at all: two look-ups."""
        return bool(self._hooks.of(snapshot, CAPABILITY))

    def first(self, snapshot: Snapshot, facts: Facts) -> Hook | None:
        """Return the one that is to be asked about a request."""
        return next((h for h in self._hooks.of(snapshot, CAPABILITY) if h.accepts(facts)), None)

    async def pick(
        self, hook: Hook, request: scheduler_plugin_pb2.SchedulerPickRequest
    ) -> Choice | None:
        """
        Return what the plugin chose among the candidates of *request*; None leaves it to the built-in.

        Raises:
            Unavailable: PLUGIN_FAILED, it failed or was too slow; OVERLOADED, too many questions wait.
        """
        gate = self._gates.setdefault(hook.plugin_id, _Gate())
        if gate.inside >= _WAITING:
            raise errors.Unavailable(
                f"too many requests wait for plugin {hook.plugin_id}",
                reason="OVERLOADED",
                retry_after=1,
                sent=errors.Sent.NO,
            )
        gate.inside += 1
        try:
            async with gate.slots:
                answer = await self._calls.unary(hook, methods.PICK, request)
        except errors.PatchbayError as error:
            if hook.policy.on_error is OnError.FAIL_REQUEST:
                raise failed(hook, error) from error
            warn(hook, error)
            return None
        finally:
            gate.inside -= 1
            if not gate.inside:
                self._gates.pop(hook.plugin_id, None)
        if not answer.handled:
            return None
        if answer.auth_id and any(c.id == answer.auth_id for c in request.candidates):
            return Choice(auth_id=answer.auth_id)
        strategy = _STRATEGIES.get(answer.delegate_builtin)
        if strategy is None or answer.auth_id:
            _log.warning(
                "a scheduler plugin chose what there is not; the configured strategy chooses",
                plugin=hook.plugin_id,
                chosen="a credential" if answer.auth_id else "nothing",
            )
            return None
        return Choice(strategy=strategy)
