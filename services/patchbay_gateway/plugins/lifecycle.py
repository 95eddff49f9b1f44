"""
Telling lifecycle plugins how an execution ended: after the fact, off the client's path.

A bounded number of calls runs at once and a bounded number waits; what comes beyond is dropped and
counted, for a plugin that cannot follow must not hold memory. Source: pluginapi, RequestLifecyclePlugin:
every one of them hears of every execution that reached the interceptors.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
# Each waits at most the policy's 5 s; more than this at once is a plugin that has stopped.
_AT_ONCE: Final = 64
_WAITING: Final = 4096

_log = logs.get_logger("plugins.lifecycle")

Completion = request_lifecycle_pb2.RequestCompletion


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
        self._waiting: deque[tuple[Hook, PluginExecution, Completion]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self.dropped = 0
        """Ends that no plugin was told of, because too many waited."""

    def wanted(self, execution: PluginExecution) -> bool:
        """Whether anybody is to be told; with nobody there is nothing to put together."""
        return bool(self._hooks.of(execution.snapshot, _FLAG))

    def complete(self, execution: PluginExecution, completion: Completion) -> None:
        """Tell everybody, some time soon."""
        for hook in self._hooks.asked(execution, _FLAG):
            if len(self._waiting) >= _WAITING:
                self.dropped += 1
                if self.dropped & (self.dropped - 1) == 0:
                    _log.warning("lifecycle plugins cannot follow", dropped=self.dropped)
                continue
            self._waiting.append((hook, execution, completion))
        self._start()

    async def aclose(self) -> None:
        """Wait for what runs, at most the policy's deadline, and forget what waits."""
        self._waiting.clear()
        while self._running:
            await asyncio.wait(self._running)

    def _start(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._tell(*self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("telling a lifecycle plugin failed", exc_info=error)
        self._start()

    async def _tell(self, hook: Hook, execution: PluginExecution, completion: Completion) -> None:
        try:
            await self._calls.unary(hook, methods.HANDLE_REQUEST_COMPLETE, completion, execution)
        except errors.PatchbayError as error:
            warn(hook, error)
