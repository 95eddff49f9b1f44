"""
The answer to one request over all its attempts: two commits, keep-alives, the edge's own deadlines.

    waiting ──first chunk──▶ headers and answer committed
       │ first_byte_grace
       ▼
    headers committed ──first content──▶ answer committed ──▶ ended

Headers committed: status and headers have gone; failures are still retried. Answer committed: model
content has gone; the next failure is the dialect's terminal event. Keep-alives fill silences after the
headers, always between whole events. One timer per answer, re-armed lazily: nothing here costs per chunk
but two clock readings.

Not here: what is written (pipeline.py) and how it looks (dialects/).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay.errors import Headers
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.plugins.snapshot import StreamingEntry

# The edge's own deadlines are this much longer than those that the executor keeps, so that only an
# executor that no longer keeps them is blamed (docs/architecture.md, deadlines).
DEADLINE_MARGIN = 10.0


class Answer:
    """
    One answer.

    Args:
        exchange: Where it goes.
        limits: Times of the pinned snapshot.
        grace: Seconds without an answer after which headers are committed; 0 never.
        keepalive: Bytes of one keep-alive; empty for none.
        early_head: Gives the headers for an early commit.
    """

    def __init__(
        self,
        exchange: Exchange,
        limits: StreamingEntry,
        *,
        grace: float,
        keepalive: bytes,
        early_head: Callable[[], Headers],
    ) -> None:
        self.headers_committed = False
        self.answer_committed = False
        self.timed_out = False
        """The edge's own deadline passed; the owner's task was cancelled for it."""
        self._exchange = exchange
        self._limits = limits
        self._grace = grace
        self._interval = limits.keepalive
        self._keepalive = keepalive
        self._early_head = early_head
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._started = self._written = self._heard = self._loop.time()
        self._silence = limits.first_byte_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._side: asyncio.Task[None] | None = None

    def begin_attempt(self) -> None:
        """Start the first-byte limit anew for another attempt."""
        self._heard = self._loop.time()
        self._silence = self._limits.first_byte_timeout
        self.timed_out = False
        if self._timer is None:
            self._arm()

    def heard(self) -> None:
        """Note that the executor sent something."""
        self._heard = self._loop.time()
        self._silence = self._limits.idle_timeout

    async def commit_headers(self, status: int, headers: Headers) -> None:
        """Send status and headers unless an early commit has."""
        if not self.headers_committed:
            self.headers_committed = True
            await self._exchange.send_head(status, headers)

    async def write(self, data: bytes) -> None:
        """Send a whole number of events."""
        await self._exchange.send(data)
        self._written = self._loop.time()

    async def aclose(self) -> None:
        """Stop timer and keep-alives."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._side is not None and not self._side.done():
            self._side.cancel()
            await asyncio.gather(self._side, return_exceptions=True)

    def _arm(self) -> None:
        """Set the timer to the earliest instant at which something may be due."""
        due = []
        if not self.headers_committed and self._grace > 0:
            due.append(self._started + self._grace)
        if self.headers_committed and self._keepalive and self._interval > 0:
            due.append(self._written + self._interval)
        if self._silence > 0:
            due.append(self._heard + self._silence + DEADLINE_MARGIN)
        if due:
            # Not sooner than 50 ms: a write that is under way must not make the timer spin.
            self._timer = self._loop.call_at(
                max(min(due), self._loop.time() + 0.05), self._timer_fired
            )

    def _timer_fired(self) -> None:
        now = self._loop.time()
        if self._silence > 0 and now >= self._heard + self._silence + DEADLINE_MARGIN:
            self.timed_out = True
            self._timer = None
            if self._owner is not None:
                self._owner.cancel()
            return
        if self._side is None or self._side.done():
            if not self.headers_committed:
                if 0 < self._grace <= now - self._started:
                    self.headers_committed = True
                    self._side = self._loop.create_task(self._commit_early())
            elif self._keepalive and 0 < self._interval <= now - self._written:
                self._written = now
                self._side = self._loop.create_task(self._exchange.send(self._keepalive))
        self._arm()

    async def _commit_early(self) -> None:
        await self._exchange.send_head(200, self._early_head())
        if self._keepalive:
            await self.write(self._keepalive)
