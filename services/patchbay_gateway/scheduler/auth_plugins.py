"""
The auth providers among the plugins, in order, with the provider key that each says it knows.

A plugin is asked for its key once for each registration. The built-in one knows protocols and no provider: it
is not among them. Not here: what they are asked for (parsed_files.py, login.py, plugin_models.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError
from patchbay.plugin.v1 import identifier_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.hosted import HostedPlugins

CAPABILITY: Final = "auth_provider"
_AGAIN: Final = 10.0
_DEADLINE: Final = 2.0

_log = logs.get_logger("scheduler.auth_plugins")


@dataclass(frozen=True, slots=True)
class AuthPlugin:
    """One of them."""

    hook: Hook
    identifier: str
    """Provider key, lower case; empty while it was not told."""
    registered: tuple[Any, ...]
    """What its ready addresses answered to the handshake; empty: none is ready."""


class AuthPlugins:
    """
    Those that this process talks to.

    Args:
        plugins: All plugins that it talks to.
        clock: Paces what is asked again.
    """

    def __init__(self, plugins: HostedPlugins, *, clock: Clock) -> None:
        self._plugins = plugins
        self._clock = clock
        self._told: dict[str, tuple[tuple[Any, ...], str]] = {}
        self._again: dict[str, float] = {}
        self._keys = 0
        """Grows with each key that was told, for whomever it was asked."""

    @property
    def generation(self) -> int:
        """Grows whenever another answer of `look` is possible, time aside."""
        return self._plugins.registry.generation + self._keys

    @property
    def pending(self) -> bool:
        """Whether somebody is to be asked for its key again."""
        now = self._clock.monotonic()
        return any(at <= now for at in self._again.values())

    def away(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Return plugins that may be auth providers and are registered nowhere."""
        return tuple(
            entry.id
            for entry in snapshot.plugins
            if entry.enabled
            and not entry.builtin
            and (not entry.capabilities or CAPABILITY in entry.capabilities)
            and self._plugins.registry.pick(entry.id) is None
        )

    def identifier(self, plugin_id: str) -> str:
        """Return the provider key that a plugin told last; empty: none yet."""
        return self._told.get(plugin_id, ((), ""))[1]

    async def look(self, snapshot: Snapshot) -> list[AuthPlugin]:
        """Return them in the order in which they are asked."""
        found = []
        hooks = self._plugins.hooks.of(snapshot, CAPABILITY)
        for gone in self._again.keys() - {hook.plugin_id for hook in hooks}:
            del self._again[gone]
        for hook in hooks:
            if hook.entry.builtin:
                continue
            registered = tuple(self._plugins.registry.declaring(hook.plugin_id, CAPABILITY))
            if registered:
                await self._ask(hook, registered)
            found.append(AuthPlugin(hook, self.identifier(hook.plugin_id), registered))
        return found

    async def _ask(self, hook: Hook, registered: tuple[Any, ...]) -> None:
        before, _ = self._told.get(hook.plugin_id, ((), ""))
        same = len(before) == len(registered) and all(
            a is b for a, b in zip(before, registered, strict=True)
        )
        if same:
            # Who asked at the same time, and failed, need not ask again.
            self._again.pop(hook.plugin_id, None)
        if same or self._clock.monotonic() < self._again.get(hook.plugin_id, 0.0):
            return
        try:
            answer = await self._plugins.calls.unary(
                hook,
                methods.AUTH_IDENTIFIER,
                identifier_pb2.IdentifierRequest(),
                deadline=_DEADLINE,
            )
        except PatchbayError as error:
            self._again[hook.plugin_id] = self._clock.monotonic() + _AGAIN
            _log.warning(
                "an auth provider does not say which provider it knows",
                plugin=hook.plugin_id,
                why=error.message,
            )
            return
        self._again.pop(hook.plugin_id, None)
        self._keys += 1
        self._told[hook.plugin_id] = (registered, answer.identifier.strip().lower())
