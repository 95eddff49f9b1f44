"""
One connection to a Redis or Valkey server: commands go out in order, replies come back in order.

Many callers share a connection. A caller that is cancelled leaves its place in the queue, and the reply
that arrives for it is dropped, so no reply can ever reach the wrong caller and there is no pool to corrupt.
hiredis packs and parses; the client of redis-py around it was measured at 160 µs of CPU a command, this
at 60 µs (loop and system calls included), and the path of a request has several commands in sequence.

RESP3: maps arrive as dict, pushes apart from replies. A reply that is an error is *returned* as `ReplyError`;
a future nobody awaits any more must not complain of an exception that nobody fetched.

Not here: which server to speak to (redis_address.py), breaker, scripts and keys (redis.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Argument = str | bytes | int | float
"""What a command may be made of."""

MAX_PENDING: Final = 8192
"""Commands that may wait for replies on one connection; more means that the server is lost."""

# Which comes first after the loop was busy, a due timer or the bytes that arrived meanwhile, is the loop's
# own affair. So an overdue reply gets one more turn before the server is called hung.
SECOND_LOOK: Final = 0.01

_NOTHING: Final = object()

# hiredis's stub describes the tuple as one of length one.
_pack: Final = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)


class ReplyError(Exception):
    """An error that the server answered; `code` is its first word (NOSCRIPT, NOGROUP, ERR, …)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class ConnectionLost(Exception):
    """The connection ended, or the server did not answer in time; whether a command ran is unknown."""


class Connection(asyncio.Protocol):
    """
    A connection that is open or lost, never both and never open again.

    Args:
        timeout: Seconds that any reply may take. A late reply ends the connection, for the ones behind it
            are late too.
        on_push: Called with each push message (a list); pushes without a receiver are dropped.
    """

    def __init__(
        self,
        timeout: float,
        *,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._timeout = timeout
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_NOTHING)
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = self._loop.create_future()
        self.lost = False
        """True once the connection has ended; it cannot be used any more."""
        self.reason = "not connected"
        """Why it ended, for people."""
        self.on_lost: Callable[[Connection, bool], None] | None = None
        """Called once at the end, with whether it was a failure: commands waited, or `close` was told so."""

    # -- callers ----------------------------------------------------------------------------------

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Queue *command*; the future's result is the reply or a `ReplyError` or `ConnectionLost`."""
        return self._enqueue(_pack(command), 1)[0]

    def send_many(self, commands: Sequence[Sequence[Argument]]) -> list[asyncio.Future[Any]]:
        """Queue *commands* in one write; replies as in `send`."""
        packed = b"".join([_pack(tuple(command)) for command in commands])
        return self._enqueue(packed, len(commands))

    def _enqueue(self, data: bytes, count: int) -> list[asyncio.Future[Any]]:
        loop = self._loop
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(count)]
        transport = self._transport
        if self.lost or transport is None or len(self._pending) + count > MAX_PENDING:
            full = transport is not None and not self.lost
            reason = "too many commands wait for replies" if full else self.reason
            for future in futures:
                future.set_result(ConnectionLost(reason))
            return futures
        deadline = loop.time() + self._timeout
        for future in futures:
            self._pending.append((future, deadline))
        if self._timer is None:
            # One timer a connection, moved on only when it fires: replies come in order and so do deadlines.
            self._timer = loop.call_at(deadline, self._overdue)
        transport.write(data)
        return futures

    def tell(self, *command: Argument) -> None:
        """Write a *command* whose only answers are pushes, as SUBSCRIBE's are."""
        if self._transport is not None and not self.lost:
            self._transport.write(_pack(command))

    def close(self, reason: str = "closed by us", *, failed: bool = False) -> None:
        """End the connection now; what waits fails. Idempotent."""
        self._lose(reason, failed=failed)

    async def wait_closed(self) -> None:
        """Return when the socket is gone."""
        if self._transport is not None:
            await self._closed

    # -- time -------------------------------------------------------------------------------------

    def _overdue(self) -> None:
        self._timer = None
        if not self._pending:
            return
        deadline = self._pending[0][1]
        if deadline > self._loop.time():
            self._timer = self._loop.call_at(deadline, self._overdue)
        else:
            self._timer = self._loop.call_later(SECOND_LOOK, self._give_up, self._pending[0][0])

    def _give_up(self, head: asyncio.Future[Any]) -> None:
        self._timer = None
        if self._pending and self._pending[0][0] is head:
            self._lose(f"no reply within {self._timeout:g} s")
        else:
            self._overdue()

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # No check: uvloop's transports do not derive from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand replies to those who wait, in order."""
        reader = self._reader
        pending = self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if type(reply) is hiredis.PushNotification:
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                if not pending:
                    self._lose("the server answered what nobody asked")
                    return
                future = pending.popleft()[0]
                if not future.done():
                    future.set_result(reply)
        except hiredis.ProtocolError as error:
            self._lose(f"not a Redis server: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """End by the other side, or after our own abort."""
        self._lose(str(exc) if exc is not None else "the server closed the connection")
        if not self._closed.done():
            self._closed.set_result(None)

    def _lose(self, reason: str, *, failed: bool = False) -> None:
        if self.lost:
            return
        self.lost = True
        self.reason = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        failed = failed or bool(self._pending)
        while self._pending:
            future = self._pending.popleft()[0]
            if not future.done():
                future.set_result(ConnectionLost(reason))
        if self.on_lost is not None:
            self.on_lost(self, failed)
