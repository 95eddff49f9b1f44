"""
The HTTP server of the client port: listeners, and the connections that an adapter makes of them.

There are two adapters, `http1.Connections` and `asgi.AsgiConnections` (uvicorn); the first is the default
because of what it costs (docs/architecture.md). uvicorn's own `Server` takes the signals, polls ten times
a second and knows drain only as a whole, so neither uses it. Not here: signals and roles of processes
(kernel/lifecycle.py, edge/main.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Protocol

from patchbay_gateway.edge.http1 import Connections
from patchbay_gateway.edge.stall import KEEP_ALIVE, StallSweeper

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from types import TracebackType
    from typing import Self

    from patchbay_gateway.edge.exchange import Exchange

_BACKLOG: Final = 2048
# Pipelines whose connection was cut report usage; they get so long for it.
_AFTER_CUT: Final = 5.0
_IDLE_PERIOD: Final = 5.0
# A request may be on its way on a connection that looks idle: it is answered, and told that it is the last.
_NOTICE: Final = 1.0
# A connection that was accepted as the listener closed shows after so many turns of the loop.
_ACCEPTED: Final = 3


class Connection(Protocol):
    """An accepted connection."""

    transport: asyncio.Transport

    def retire(self) -> None:
        """Let the answer under way, or the next one, be the last."""
        ...

    def shutdown(self) -> None:
        """Close now if idle, else after the answer under way."""
        ...


class ConnectionSet(Protocol):
    """All accepted connections, as an adapter keeps them."""

    draining: bool

    @property
    def open(self) -> Collection[Connection]:
        """Open connections."""
        ...

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        """Requests being served."""
        ...

    def dated(self, date: bytes) -> None:
        """Take the value of `Date` for the answers to come."""
        ...

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        ...

    def close_idle(self, since: float) -> None:
        """Close connections on which nothing has happened since the loop time *since*."""
        ...


class Adapter(Protocol):
    """Makes the connections' keeper; called on the running loop."""

    def __call__(
        self,
        serve: Callable[[Exchange], Coroutine[Any, Any, None]],
        sweeper: StallSweeper,
        closed: Callable[[], None],
    ) -> ConnectionSet:
        """Return a keeper; *closed* is called after each connection's end."""
        ...


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """
    Return a listening socket whose options the accepted sockets inherit (Linux).

    Args:
        host: Name or address.
        port: 0 lets the system choose.
        reuse_port: Several processes bind the same port and the kernel spreads connections, over those
            whose server has started.

    Raises:
        OSError: The address is taken or not ours.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        if not reuse_port:
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def guard_against_silence(sock: socket.socket, seconds: float) -> None:
    """
    Let the kernel end connections accepted on *sock* whose peer has fallen silent.

    Unacknowledged data for *seconds* (TCP user timeout, also while the window is closed) or an idle
    connection that does not answer probes. Where the platform has no such option, nothing happens.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    if seconds > 0:
        options["TCP_USER_TIMEOUT"] = int(seconds * 1000)
    for name, value in options.items():
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


class EdgeServer:
    """
    Serves exchanges on listening sockets.

    Args:
        serve: Answers one exchange.
        sockets: From `listen`, possibly inherited from a supervisor; closed by `drain`.
        write_stall: Seconds without progress after which a client is gone, read at each sweep; 0 = off.
        adapter: Which HTTP implementation.
    """

    def __init__(
        self,
        serve: Callable[[Exchange], Coroutine[Any, Any, None]],
        *,
        sockets: list[socket.socket],
        write_stall: Callable[[], float],
        adapter: Adapter = Connections,
    ) -> None:
        self._serve = serve
        self._sockets = sockets
        self._write_stall = write_stall
        self._adapter = adapter
        self._sweeper = StallSweeper(write_stall)
        self._servers: list[asyncio.Server] = []
        self._idle = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._date_timer: asyncio.TimerHandle | None = None
        self._accepted: ConnectionSet | None = None

    @property
    def port(self) -> int:
        """The port of the first socket."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    @property
    def active(self) -> int:
        """Requests being served."""
        return len(self._accepted.tasks) if self._accepted else 0

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._accepted.open) if self._accepted else 0

    async def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        self._accepted = self._adapter(self._serve, self._sweeper, self._connection_closed)
        self._tell_time(loop, self._accepted)
        for sock in self._sockets:
            guard_against_silence(sock, self._write_stall())
            self._servers.append(
                await loop.create_server(self._accepted.protocol, sock=sock, backlog=_BACKLOG)
            )
        self._close_idle(loop)

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._accepted is not None:
            self._accepted.close_idle(loop.time() - KEEP_ALIVE)
        self._idle_timer = loop.call_later(_IDLE_PERIOD, self._close_idle, loop)

    def _tell_time(self, loop: asyncio.AbstractEventLoop, accepted: ConnectionSet) -> None:
        """Write the date once a second instead of once an answer (RFC 9110, section 6.6.1)."""
        now = time.time()
        accepted.dated(formatdate(now, usegmt=True).encode())
        self._date_timer = loop.call_later(1.0 - now % 1, self._tell_time, loop, accepted)

    def _connection_closed(self) -> None:
        if self._accepted is not None and not self._accepted.open:
            self._idle.set()

    async def drain(self, grace: float) -> int:
        """
        Stop accepting, let requests finish, cut what is left.

        Connections are closed after their answer, which says `connection: close` if its head has not left
        yet; idle ones after a second, in which they may carry a last request.

        Args:
            grace: Seconds.

        Returns:
            How many connections were cut.
        """
        accepted = self._accepted
        if accepted is None:
            for sock in self._sockets:
                sock.close()
            return 0
        accepted.draining = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for server in self._servers:
            server.close()
        for _ in range(_ACCEPTED):
            await asyncio.sleep(0)
        for connection in list(accepted.open):
            connection.retire()
        notice = min(_NOTICE, grace)
        await self._ended(accepted, notice)
        for connection in list(accepted.open):
            connection.shutdown()
        await self._ended(accepted, grace - notice)
        left = list(accepted.open)
        for connection in left:
            connection.transport.abort()
        await self._finish_tasks(accepted)
        self._sweeper.close()
        if self._date_timer is not None:
            self._date_timer.cancel()
        return len(left)

    async def _ended(self, accepted: ConnectionSet, within: float) -> None:
        """Return when no connection is left, or after *within* seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while accepted.open:
                    self._idle.clear()
                    await self._idle.wait()

    @staticmethod
    async def _finish_tasks(accepted: ConnectionSet) -> None:
        tasks = set(accepted.tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=_AFTER_CUT)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain(0)
