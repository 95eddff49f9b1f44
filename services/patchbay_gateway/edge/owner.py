"""
Cancels a request's task when its client has left, and tells that cancellation from any other.

With a `drain` the task goes on for that many seconds, to learn the usage of an answer that nobody reads
any more (`providers[].on_disconnect`). Costs one callback a request, no task. Not here: how a departure
is noticed (asgi.py).
"""

from __future__ import annotations

import asyncio


class Owner:
    """The task that runs one request. Made in that task."""

    __slots__ = ("_gone", "_task", "_timer", "drain")

    def __init__(self, gone: asyncio.Future[None]) -> None:
        self.drain = 0.0
        """Seconds to go on after the client left."""
        self._gone = gone
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        gone.add_done_callback(self._on_gone)

    @property
    def left(self) -> bool:
        """Whether the client has left."""
        return self._gone.done()

    def uncancel(self) -> bool:
        """Take back a cancellation that was our own, and return whether somebody else's came with it."""
        return self._task is not None and self._task.uncancel() > 0

    def close(self) -> None:
        """Stop watching."""
        self._gone.remove_done_callback(self._on_gone)
        if self._timer is not None:
            self._timer.cancel()

    def _on_gone(self, _: asyncio.Future[None]) -> None:
        if self.drain > 0:
            self._timer = asyncio.get_running_loop().call_later(self.drain, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
