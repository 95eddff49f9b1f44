"""
An event loop whose clock jumps to the next timer, for code that sets timers on the loop itself.

Only for tests without sockets: the loop never waits, so nothing from outside could arrive in time.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _Selector(selectors.DefaultSelector):
    """Returns at once and moves the loop's clock by what it was asked to wait."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits and no timer is set: the test would hang")
        self.loop.moved += max(timeout, 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.moved = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """Seconds since the loop was made, all of them skipped."""
        return self.moved


def run(coroutine: Any) -> Any:
    """Run *coroutine* on a loop of its own and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run *test* on such a loop."""

    @functools.wraps(test)
    def on_its_loop(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return on_its_loop
