"""
The life of a process: start, drain, end.

First SIGTERM or SIGINT: drain. `Shutdown.draining` is set; the service stops taking work and finishes what it
has. Second: the main task is cancelled. Third: the system's own handling, which kills. A background task that
crashes drains the process too and makes its exit status 1, because a service that has lost a part of itself
must be restarted rather than limp.

Not here: how long a service drains (its own business) and process supervision (`patchbay up --workers`).
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import memory
from patchbay_gateway.kernel.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
STOP_LIMIT: Final = 10.0
"""Seconds after which tasks that ignore their cancellation are named in the log and left behind."""

_log = get_logger("kernel.lifecycle")


class Shutdown:
    """Whether this process is ending, and how it will have ended."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        """Set when the process is to take no new work."""
        self.exit_code = 0
        """0 fine, 1 failed."""

    def drain(self) -> None:
        """Begin to end, as the first signal does. Idempotent."""
        self.draining.set()

    def fail(self, reason: str) -> None:
        """Begin to end because something broke; the exit status becomes 1."""
        if not self.draining.is_set():
            _log.error("process ends", reason=reason)
        self.exit_code = 1
        self.draining.set()

    async def wait(self) -> None:
        """Return when the process is to end."""
        await self.draining.wait()


class Tasks:
    """
    The owner of background tasks: none outlives it, and none dies unnoticed.

    Args:
        shutdown: Told when a task crashes.
    """

    def __init__(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """
        Run *coroutine* in the background under *name*. It may end; it may not raise.

        Raises:
            RuntimeError: The owner was closed.
        """
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"task {name} was started after its owner had ended")
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not (task.cancelling() or self._closed or self._shutdown.draining.is_set()):
                # The cancellation of something else came out of it: gRPC and futures raise the same.
                _log.error("background task was cancelled by nobody", task=task.get_name())
                self._shutdown.fail(f"task {task.get_name()} was cancelled by nobody")
            return
        if (error := task.exception()) is None:
            return
        _log.error("background task crashed", task=task.get_name(), exc_info=error)
        self._shutdown.fail(f"task {task.get_name()} crashed")

    async def aclose(self) -> None:
        """Cancel all tasks and wait for their ends. Idempotent."""
        self._closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=STOP_LIMIT)
            if left:
                _log.error(
                    "tasks ignore their cancellation", tasks=sorted(t.get_name() for t in left)
                )


def run(main: Callable[[Shutdown], Awaitable[None]]) -> int:
    """
    Run *main* to its end on a new event loop (uvloop's where installed) and return the exit status.

    An error of ours is printed as its message, which says what to do; any other with its traceback.
    """
    memory.settle()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_supervise(main))


async def _supervise(main: Callable[[Shutdown], Awaitable[None]]) -> int:
    shutdown = Shutdown()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_run_main(main, shutdown))
    for number in _SIGNALS:
        loop.add_signal_handler(number, functools.partial(_on_signal, shutdown, task, number))
    try:
        await asyncio.wait([task])
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if task.cancelled():
        return 1
    error = task.exception()
    if error is None:
        return shutdown.exit_code
    _report(error)
    return 1


async def _run_main(main: Callable[[Shutdown], Awaitable[None]], shutdown: Shutdown) -> None:
    try:
        await main(shutdown)
    except asyncio.CancelledError:
        if not shutdown.draining.is_set():
            # No signal did: a cancellation of something else came out here, and nobody would know.
            _log.exception("cancelled by nobody")
        raise


def _on_signal(shutdown: Shutdown, task: asyncio.Future[None], number: signal.Signals) -> None:
    if not shutdown.draining.is_set():
        _log.info("draining", signal=number.name)
        shutdown.drain()
        return
    _log.warning("stopping now", signal=number.name)
    loop = asyncio.get_running_loop()
    for each in _SIGNALS:
        loop.remove_signal_handler(each)
    task.cancel()


def _report(error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, PatchbayError):
        _log.error(error.message, reason=error.reason)
    else:
        _log.error("crashed", exc_info=error)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop
