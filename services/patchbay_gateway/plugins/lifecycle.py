"""
Telling lifecycle plugins how an execution ended: after the fact, off the client's path.

Of each plugin a bounded number of calls runs at once and a bounded number waits; what comes beyond is dropped
and counted, for a plugin that cannot follow must hold neither memory nor the others. Source: pluginapi,
RequestLifecyclePlugin: every one of them hears of every execution that reached the interceptors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.plugin.v1 import request_lifecycle_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import warn

if TYPE_CHECKING:
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks

_FLAG: Final = "request_lifecycle_plugin"
AT_ONCE: Final = 64
"""Calls of one plugin at once: each lasts 5 s at most, so more is a plugin that has stopped."""
WAITING: Final = 1024
"""Ends that wait for one plugin."""

_log = logs.get_logger("plugins.lifecycle")

Completion = request_lifecycle_pb2.RequestCompletion


@dataclass(slots=True)
class _Told:
    """What one plugin is told, and is to be."""

    waiting: deque[tuple[Hook, PluginExecution, Completion]] = field(default_factory=deque)
    running: set[asyncio.Task[None]] = field(default_factory=set)


class Lifecycle:
    """
    The fan-out. Close it with the process.

    Args:
        hooks: Who is told.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls
        self._told: dict[str, _Told] = {}
        """By plugin, those that something waits or runs for."""
        self.dropped = 0
        """Ends that a plugin was not told of, because too many waited for it."""

    def wanted(self, execution: PluginExecution) -> bool:
        """Whether anybody is to be told; with nobody there is nothing to put together."""
        return bool(self._hooks.of(execution.snapshot, _FLAG))

    def complete(self, execution: PluginExecution, completion: Completion) -> None:
        """Tell everybody, some time soon."""
        for hook in self._hooks.asked(execution, _FLAG):
            told = self._told.setdefault(hook.plugin_id, _Told())
            if len(told.waiting) >= WAITING:
                self._drop(hook)
                continue
            told.waiting.append((hook, execution, completion))
            self._start(hook.plugin_id, told)

    async def aclose(self) -> None:
        """Wait for what runs, at most the policy's deadline, and forget what waits."""
        for told in self._told.values():
            told.waiting.clear()
        while running := [task for told in self._told.values() for task in told.running]:
            await asyncio.wait(running)

    def _drop(self, hook: Hook) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:
            _log.warning(
                "a lifecycle plugin cannot follow", plugin=hook.plugin_id, dropped=self.dropped
            )

    def _start(self, plugin_id: str, told: _Told) -> None:
        while told.waiting and len(told.running) < AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._tell(*told.waiting.popleft()))
            told.running.add(task)
            task.add_done_callback(partial(self._ended, plugin_id, told))

    def _ended(self, plugin_id: str, told: _Told, task: asyncio.Task[None]) -> None:
        told.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("telling a lifecycle plugin failed", exc_info=error)
        self._start(plugin_id, told)
        if not told.running:
            self._told.pop(plugin_id, None)

    async def _tell(self, hook: Hook, execution: PluginExecution, completion: Completion) -> None:
        try:
            await self._calls.unary(hook, methods.HANDLE_REQUEST_COMPLETE, completion, execution)
        except errors.PatchbayError as error:
            warn(hook, error)
