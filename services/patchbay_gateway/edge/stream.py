"""
The answer to one request over all its attempts: two commits, keep-alives, the edge's own deadlines.

    waiting ──first chunk──▶ headers and answer committed
       │ first_byte_grace
       ▼
    headers committed ──first content──▶ answer committed ──▶ ended

Headers committed: status and headers have gone; failures are still retried. Answer committed: model
content has gone; the next failure is the dialect's terminal event. A provider that is silent after its last
word has ended, whether it closes the connection or not. Keep-alives fill silences after the
headers, always between whole events. One alarm per answer, set anew when it rings: nothing here costs per
chunk but two clock readings.

Not here: what is written (pipeline.py) and how it looks (dialects/).
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from patchbay_gateway.plugins.policy import EDGE_MARGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from patchbay.alarms import Alarms
    from patchbay.errors import Headers
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.plugins.snapshot import StreamingEntry

HOLD: Final = 10.0
"""
Seconds for which events that are no content are held back, so that a failure after them can still be tried
elsewhere. Then they go out and the answer is committed: a client must not take a provider that has begun for
a silent one. Providers reject within seconds what they reject at all.
"""
HOLD_BYTES: Final = 1 << 20
"""
Bytes of such events that are held back; then, too, they go out and the answer is committed. It is more than
providers send before content; without this bound one would choose how much memory a stream takes.
"""


class Answer:
    """
    One answer.

    Args:
        exchange: Where it goes.
        alarms: Of the running loop.
        limits: Times of the pinned snapshot.
        grace: Seconds without an answer after which headers are committed; 0 never.
        keepalive: Bytes of one keep-alive; empty for none.
        early_head: Gives the headers for an early commit.
        whole: The executor answers in one piece, so that its silence says nothing between the provider's
            first and last byte.
    """

    def __init__(
        self,
        exchange: Exchange,
        alarms: Alarms,
        limits: StreamingEntry,
        *,
        grace: float,
        keepalive: bytes,
        early_head: Callable[[], Headers],
        whole: bool = False,
    ) -> None:
        self.headers_committed = False
        self.answer_committed = False
        self.timed_out = False
        """The edge's own deadline passed; the owner's task was cancelled for it."""
        self._exchange = exchange
        self._alarms = alarms
        self._limits = limits
        self._grace = grace
        self._interval = limits.keepalive
        self._keepalive = keepalive
        self._early_head = early_head
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._started = self._written = self._heard = self._loop.time()
        self._first = limits.first_byte_timeout + (limits.idle_timeout if whole else 0.0)
        if not (limits.first_byte_timeout and (limits.idle_timeout or not whole)):
            self._first = 0.0
        self._silence = self._first
        self._armed = False
        self._side: asyncio.Task[None] | None = None
        self._sending = False
        self._give: Callable[[], tuple[Headers, bytes]] | None = None
        self._held_at = 0.0
        self._end_grace = 0.0 if whole else limits.end_grace
        self._looked = self._started
        self._ask: Callable[[], bool] | None = None

    def begin_attempt(self) -> None:
        """Start the first-byte limit anew for another attempt."""
        self._heard = self._loop.time()
        self._silence = self._first
        self.timed_out = False
        if not self._armed:
            self._arm()

    def pause(self) -> None:
        """Between attempts nobody is silent; headers and keep-alives still go out when they are due."""
        self._silence = 0.0
        if not self._armed:
            self._arm()

    def hold(self, give: Callable[[], tuple[Headers, bytes]]) -> None:
        """
        Hold events back for `HOLD` seconds at most.

        Args:
            give: Asked when the time is up: headers, should they not be out yet, and the events.
        """
        self._give = give
        self._held_at = self._loop.time()
        self._arm()

    def let_go(self) -> None:
        """What was held has gone, or is given up."""
        self._give = None

    def watch(self, over: Callable[[], bool] | None) -> None:
        """
        Ask *over* when a committed answer has been silent for `end_grace`: whether it was the silence after
        the last word, and is ended now. None: nothing runs that could be.
        """
        self._ask = over

    def heard(self) -> None:
        """Note that the executor sent something."""
        self._heard = self._loop.time()
        self._silence = self._limits.idle_timeout

    async def commit_headers(self, status: int, headers: Headers) -> None:
        """Send status and headers unless an early commit has, or is about to."""
        await self._after_side()
        if not self.headers_committed:
            self.headers_committed = True
            await self._exchange.send_head(status, headers)

    async def write(self, data: bytes) -> None:
        """
        Send a whole number of events.

        While the client keeps us waiting, the executor's silence is our own doing.
        """
        if self._side is not None:
            await self._after_side()
        self._sending = True
        try:
            await self._exchange.send(data)
        finally:
            self._sending = False
            self._written = self._heard = self._loop.time()

    def answered(self) -> None:
        """Note that the executor has said all: its deadlines are over."""
        self._silence = 0.0

    async def _after_side(self) -> None:
        """Let an early head or a keep-alive under way go out first; that, too, is the client's time."""
        if self._side is not None and not self._side.done():
            self._sending = True
            try:
                await asyncio.wait([self._side])
            finally:
                self._sending = False
                self._heard = self._loop.time()

    async def aclose(self) -> None:
        """Stop alarm and keep-alives."""
        if self._armed:
            self._armed = False
            self._alarms.drop(self)
        if self._side is not None and not self._side.done():
            self._side.cancel()
            await asyncio.gather(self._side, return_exceptions=True)

    def _arm(self) -> None:
        """Set the alarm to the earliest instant at which something may be due."""
        due = math.inf
        if not self.headers_committed:
            if self._grace > 0:
                due = self._started + self._grace
        elif self._keepalive and self._interval > 0:
            due = self._written + self._interval
        if self._silence > 0:
            due = min(due, self._heard + self._silence + EDGE_MARGIN)
        if self._give is not None:
            due = min(due, self._held_at + HOLD)
        if self._end_grace > 0:
            # Once a silence: what was said last does not change in it.
            due = min(due, max(self._heard, self._looked) + self._end_grace)
        self._armed = due < math.inf
        if self._armed:
            # Not sooner than 50 ms: a write that is under way must not make the alarm ring for ever.
            self._alarms.set(self, max(due, self._loop.time() + 0.05))

    def ring(self) -> None:
        """Do what is due (Alarms)."""
        now = self._loop.time()
        if (
            self._silence > 0
            and not self._sending
            and now >= self._heard + self._silence + EDGE_MARGIN
        ):
            self.timed_out = True
            self._armed = False
            if self._owner is not None:
                self._owner.cancel()
            return
        if 0 < self._end_grace <= now - self._heard and not self._sending:
            self._looked = now
            if self._ask is not None and self.answer_committed and self._ask():
                self._ask = None
                self._silence = 0.0
        if self._side is None or self._side.done():
            if self._give is not None and now >= self._held_at + HOLD:
                headers, data = self._give()
                self._give = None
                # Now, before the owner's next event: it must not begin another attempt.
                self.answer_committed = True
                early, self.headers_committed = self.headers_committed, True
                self._start_side(self._release(None if early else headers, data))
            elif not self.headers_committed:
                if 0 < self._grace <= now - self._started:
                    self.headers_committed = True
                    self._start_side(self._commit_early())
            elif self._keepalive and 0 < self._interval <= now - self._written:
                self._written = now
                self._start_side(self._exchange.send(self._keepalive))
        self._arm()

    def _start_side(self, work: Coroutine[None, None, None]) -> None:
        self._side = self._loop.create_task(work)
        self._side.add_done_callback(_taken)

    async def _release(self, headers: Headers | None, data: bytes) -> None:
        if headers is not None:
            await self._exchange.send_head(200, headers)
        await self._exchange.send(data)
        self._written = self._loop.time()

    async def _commit_early(self) -> None:
        await self._exchange.send_head(200, self._early_head())
        if self._keepalive:
            await self._exchange.send(self._keepalive)
            self._written = self._loop.time()


def _taken(task: asyncio.Task[None]) -> None:
    """Take the exception of a keep-alive: that the client left is told by the exchange."""
    if not task.cancelled():
        task.exception()
