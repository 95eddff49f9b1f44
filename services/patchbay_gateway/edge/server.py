"""
The HTTP server of the client port: uvicorn's protocol on a listener of our own.

uvicorn's `Server` takes the signals, polls ten times a second and knows drain only as a whole; what is
left of it here is its protocol class and configuration. Not here: signals and roles of processes
(kernel/lifecycle.py, edge/main.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from patchbay_gateway.edge.asgi import EdgeApp, EdgeProtocol
from patchbay_gateway.edge.stall import StallSweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from patchbay_gateway.edge.exchange import Exchange

# Longer than the idle timeout of the usual load balancers (60 s), so that they close first and never send
# a request into a connection that we are closing.
_KEEP_ALIVE: Final = 75
_BACKLOG: Final = 2048
# Pipelines whose connection was cut report usage; they get so long for it.
_AFTER_CUT: Final = 5.0


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """
    Return a listening socket whose options the accepted sockets inherit (Linux).

    Args:
        host: Name or address.
        port: 0 lets the system choose.
        reuse_port: Several processes bind the same port and the kernel spreads connections.

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
    """

    def __init__(
        self,
        serve: Callable[[Exchange], Awaitable[None]],
        *,
        sockets: list[socket.socket],
        write_stall: Callable[[], float],
    ) -> None:
        self._sockets = sockets
        self._write_stall = write_stall
        self._sweeper = StallSweeper(write_stall)
        self._config = Config(
            EdgeApp(serve),
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._idle = asyncio.Event()
        self._draining = False

    @property
    def port(self) -> int:
        """The port of the first socket."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    @property
    def active(self) -> int:
        """Requests being served."""
        return len(self._state.tasks)

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Begin to accept."""
        self._config.load()
        # uvicorn sets it up once more per process; its answer headers are none.
        self._state.default_headers = self._config.encoded_headers
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            guard_against_silence(sock, self._write_stall())
            self._servers.append(
                await loop.create_server(self._connect, sock=sock, backlog=_BACKLOG)
            )

    def _connect(self) -> EdgeProtocol:
        return EdgeProtocol(
            self._config, self._state, sweeper=self._sweeper, closed=self._connection_closed
        )

    def _connection_closed(self, protocol: EdgeProtocol) -> None:
        if self._draining and not self._state.connections:
            self._idle.set()

    async def drain(self, grace: float) -> int:
        """
        Stop accepting, let requests finish, cut what is left.

        Idle connections are closed at once, busy ones after their answer, which says
        `connection: close` if its head has not left yet.

        Args:
            grace: Seconds.

        Returns:
            How many connections were cut.
        """
        self._draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if not self._state.connections:
            self._idle.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        left = list(self._state.connections)
        for connection in left:
            connection.transport.abort()
        await self._finish_tasks()
        self._sweeper.close()
        return len(left)

    async def _finish_tasks(self) -> None:
        tasks: set[asyncio.Task[Any]] = set(self._state.tasks)
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
