"""
The exchange of a model call that a plugin makes: one request and its answer, in memory.

The pipeline writes on one side, the callback reads on the other. What is not read blocks the writer, as a
client's full window would; a reader that leaves is a client that has gone. A failure is kept as the error
that it is, for the callback's own status: neither an error's body nor the terminal event of a stream is
content. Not here: the pipeline, messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay_gateway.edge.exchange import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay.errors import Headers, PatchbayError
    from patchbay_gateway.edge.exchange import Head

MAX_WRITES: Final = 64
MAX_BYTES: Final = 1 << 20
"""What may wait for the reader; the next write blocks."""


class MemoryExchange:
    """
    One model call (edge/exchange.py, Exchange).

    Args:
        head: Of the request.
        payload: Its body.
        stall: Seconds that a writer waits for a reader that takes nothing.
    """

    def __init__(self, head: Head, payload: bytes, *, stall: float) -> None:
        self.head = head
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.committed = False
        self.status = 0
        self.headers: Headers = []
        self.error: PatchbayError | None = None
        """What ended the call, where it failed."""
        self.complete = False
        """The answer came to its end."""
        self._payload = payload
        self._stall = stall
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    # The pipeline's side.

    async def body(
        self, limit: int, deadline: float, charge: Callable[[int], None] | None = None
    ) -> bytes:
        """Return the body (Exchange)."""
        if len(self._payload) > limit:
            raise errors.InvalidRequest(
                f"the request body is larger than {limit} bytes", reason="BODY_TOO_LARGE"
            )
        if charge is not None:
            charge(len(self._payload))
        return self._payload

    async def send_head(self, status: int, headers: Headers) -> None:
        """Take status and headers (Exchange)."""
        if self.gone.done():
            raise ClientGone
        self.committed = True
        self.status, self.headers = status, headers
        self._news.set()

    async def send(self, data: bytes) -> None:
        """Take body bytes; return when there is room again (Exchange)."""
        if self.gone.done():
            raise ClientGone
        if not data or (self.error is not None and self.status < 300):
            return
        self._waiting.append(data)
        self._size += len(data)
        self._news.set()
        if len(self._waiting) >= MAX_WRITES or self._size >= MAX_BYTES:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(self._stall or None):
                await self._room.wait()
        except TimeoutError:
            self.leave()
        if self.gone.done():
            raise ClientGone

    async def finish(self) -> None:
        """Take the end of a complete answer (Exchange)."""
        self.complete = True
        self.end()

    async def abort(self) -> None:
        """Take the end of an answer that is none (Exchange)."""
        self.end()

    def fail(self, error: PatchbayError) -> None:
        """Note what the call fails with; before a head its body is still taken."""
        self.error = error

    def end(self) -> None:
        """Nothing more comes. Idempotent."""
        self._over = True
        self._news.set()

    # The callback's side.

    async def answered(self) -> None:
        """Return when the head is there, or nothing comes any more."""
        while not (self.committed or self._over):
            await self._wait_for_news()

    async def take(self) -> list[bytes]:
        """Return what has been written since the last time, as it was written; nothing at the end."""
        while not (self._waiting or self._over):
            await self._wait_for_news()
        found, self._waiting = list(self._waiting), deque()
        self._size = 0
        self._room.set()
        return found

    async def whole(self) -> bytes:
        """Return all that was written, when it is over."""
        pieces: list[bytes] = []
        while taken := await self.take():
            pieces += taken
        return b"".join(pieces)

    def leave(self) -> None:
        """The reader is gone. Idempotent."""
        # An error keeps the frames that it passed through, and they keep this.
        self.error = None
        if not self.gone.done():
            self.gone.set_result(None)
        self._room.set()
        self.end()

    async def _wait_for_news(self) -> None:
        self._news.clear()
        await self._news.wait()
