"""
Scopes: what a plugin may call back in while one call to it lasts.

A scope is a random id that means something only in the process that made it. It ends with the call, or
with the stream that the call opened, and what was opened in it ends too. It belongs to one plugin: nobody
else's key opens it. Not here: the callbacks themselves (edge/callbacks, scheduler), who may call
(grants.py).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.tokens import CALLBACK_KEY, SCOPE_KEY
from patchbay_gateway.plugins.grants import grants_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.channels.port import Metadata
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.grants import Grants
    from patchbay_gateway.plugins.hooks import Hook

MAX_DEPTH: Final = 8
"""Executions that may be nested in each other through callbacks."""
SCOPE_ENDED: Final = "SCOPE_ENDED"
"""Reason of a FailedPrecondition: the call that the scope belonged to is over."""


class LiveScope:
    """One scope while it lives."""

    __slots__ = (
        "_closed",
        "_ends",
        "_table",
        "execution",
        "grants",
        "id",
        "metadata",
        "nested",
        "plugin_id",
    )

    def __init__(
        self,
        table: ScopeTable,
        plugin_id: str,
        grants: Grants,
        execution: PluginExecution | None,
        address: str,
    ) -> None:
        self._table = table
        self._ends: set[Callable[[], None]] = set()
        self._closed = False
        self.id = secrets.token_hex(16)
        self.plugin_id = plugin_id
        self.grants = grants
        self.execution = execution
        """What callbacks inherit; None for calls outside of any request."""
        self.nested = False
        """Set by a model call in it."""
        self.metadata: Metadata = ((CALLBACK_KEY, address), (SCOPE_KEY, self.id))

    def bind(self, end: Callable[[], None]) -> Callable[[], None]:
        """
        Have *end* called when the scope ends; return what takes that back.

        An ended scope calls it at once.
        """
        if self._closed:
            end()
        else:
            self._ends.add(end)
        return lambda: self._ends.discard(end)

    def close(self) -> None:
        """End it and all that is bound to it. Idempotent."""
        self._closed = True
        self._table.forget(self.id)
        ends, self._ends = self._ends, set()
        for end in ends:
            end()


class ScopeTable:
    """
    The scopes of this process.

    Args:
        address: `host:port` at which plugins reach this process; empty: no callbacks are served.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address
        """May be set late: the port is chosen when it is bound."""
        self._live: dict[str, LiveScope] = {}

    def __len__(self) -> int:
        return len(self._live)

    def open(self, hook: Hook, execution: PluginExecution | None) -> LiveScope | None:
        """Return the scope of one call; None for a plugin that is granted nothing."""
        if not hook.entry.host_access:
            return None
        grants = grants_of(hook.entry)
        if not grants.some or not self.address:
            return None
        scope = LiveScope(self, hook.plugin_id, grants, execution, self.address)
        self._live[scope.id] = scope
        return scope

    def find(self, scope_id: str, plugin_id: str) -> LiveScope:
        """
        Return the plugin's scope.

        Raises:
            FailedPrecondition: SCOPE_ENDED, there is none, or it is another plugin's.
        """
        scope = self._live.get(scope_id)
        if scope is None or scope.plugin_id != plugin_id:
            raise errors.FailedPrecondition(
                "the call that this callback belongs to is over", reason=SCOPE_ENDED
            )
        return scope

    def forget(self, scope_id: str) -> None:
        """Forget a scope; its own `close` calls this."""
        self._live.pop(scope_id, None)
