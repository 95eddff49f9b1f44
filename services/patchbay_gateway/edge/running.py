"""
An edge that accepts clients: whether it is ready, what it tells of itself, how it ends.

Not here: how its parts are put together (main.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay_gateway.plugins.callbacks.serving import wanted as called_back
from patchbay_gateway.plugins.instances import Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.edge.outbox import Outbox
    from patchbay_gateway.edge.pipeline import Pipeline
    from patchbay_gateway.edge.server import EdgeServer
    from patchbay_gateway.edge.translation import Translation
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.command_line import CommandLines
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.instances import Heartbeat
    from patchbay_gateway.plugins.management_api import ManagementPlugins
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.plugins.scopes import ScopeTable

PATIENCE: Final = 10.0
"""Seconds that a starting edge waits for the last of the executors that its models need."""
LAST_REPORTS: Final = 3.0
"""Seconds that reports get which wait at the end; the rest stays in the outbox file."""


@dataclass(slots=True)
class RunningEdge:
    """An edge that accepts clients."""

    edge_id: str
    registry: PluginRegistry
    server: EdgeServer
    outbox: Outbox
    holder: SnapshotHolder
    clock: Clock
    started: float
    """Monotonic seconds."""
    drain_seconds: float
    """How long open streams may go on when this ends."""
    pipeline: Pipeline
    """For callbacks: the way of a request that has no client connection."""
    scopes: ScopeTable
    """What plugins may call back in; its address is set by whoever serves callbacks."""
    translation: Translation
    """For callbacks: what plugins translate."""
    pages: ManagementPlugins
    """Routes and pages of plugins."""
    command_lines: CommandLines
    """Their commands."""
    draining: bool = False
    complete: bool = False
    """Every executor of the snapshot was registered once."""
    handed_over: bool = False
    """Schedulers took all reports that there were when this had drained."""

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Return what readiness looks at."""
        return {
            "snapshot": lambda: None if self.holder.current else "no configuration yet",
            "executors": self._executors,
            "callbacks": self._callbacks,
            "draining": lambda: "the process is ending" if self.draining else None,
        }

    def _executors(self) -> str | None:
        """
        Say what is missing for the models of the snapshot.

        At the start the edge waits for all their executors, but not for ever: one that never comes must
        not keep the others' models from clients.
        """
        states = self.registry.states()
        current = self.holder.current
        wanted = {p.plugin for p in current.providers} if current is not None else set(states)
        absent = sorted(plugin for plugin in wanted if states.get(plugin) != "ready")
        if not absent:
            self.complete = True
            return None
        late = self.clock.monotonic() - self.started > PATIENCE
        if (self.complete or late) and len(absent) < len(wanted):
            return None
        reasons = [f"{plugin}: {states.get(plugin, 'not configured')}" for plugin in absent]
        return "executors are not registered; " + "; ".join(reasons)

    def _callbacks(self) -> str | None:
        """Say whether a plugin would be called without what it is granted to call back."""
        if self.scopes.address or not called_back(self.holder.current):
            return None
        return "plugins cannot call back yet"

    def instance(self) -> Instance:
        """Return what the heartbeat says."""
        current = self.holder.current
        return Instance(
            id=self.edge_id,
            kind="edge",
            snapshot=current.version if current is not None else 0,
            ready=not any(check() for check in self.checks().values()),
            plugins=self.registry.states(),
            host=socket.gethostname(),
            pid=os.getpid(),
            parent=os.getppid(),
        )

    async def drain(self) -> None:
        """Stop accepting, let answers end, hand over the last reports."""
        self.draining = True
        await self.server.drain(self.drain_seconds)
        await self.hand_over()

    async def hand_over(self) -> None:
        """Give schedulers the reports that wait; what they do not take in time stays in the file."""
        self.handed_over = await self.outbox.drain(LAST_REPORTS)

    async def leave(self, heartbeat: Heartbeat, beating: asyncio.Task[object]) -> None:
        """
        Take back what was said of this edge, and hand over what came after the drain.

        Args:
            heartbeat: Says it.
            beating: Does so again and again; it ends first, or another beat would bring it back.
        """
        beating.cancel()
        await asyncio.wait([beating])
        with contextlib.suppress(errors.PatchbayError):
            await heartbeat.beat(alive=False)
        if self.handed_over:
            # Model calls of plugins, which are no connections, are cut after the drain.
            await self.hand_over()
