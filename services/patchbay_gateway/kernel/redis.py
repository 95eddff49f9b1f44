"""
The store that schedulers, edges and usage services share: Redis or Valkey, one installation's keys.

Rules that callers rely on:
- All keys of an installation are in one slot, so a script may touch several.
- A command runs at most once: nothing is sent twice. What must survive a failure carries an operation id.
- A call ends within `timeout` (plus 10 ms for a busy loop); then the server counts as hung and the
  connection is given up. Every such failure is `Unavailable` with reason REDIS_UNAVAILABLE.
- Breaker: after 3 failures in a row, calls fail at once; a PING each 0.5 s closes it again. Commands that
  fail together, on one connection, are one failure.
- Results are bytes, int, None, list, and dict for replies that are maps (HGETALL).

Not here: what the keys mean; that belongs to their owners in scheduler, usage and plugins.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import FailedPrecondition, Internal, Unavailable
from patchbay_gateway.kernel.redis_address import connect, parse_address
from patchbay_gateway.kernel.resp import Argument, Connection, ConnectionLost, ReplyError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from patchbay_gateway.kernel.clock import Clock

FAILURES_TO_OPEN: Final = 3
PROBE_EVERY: Final = 0.5
MINIMUM_VERSION: Final = (6, 2)

# Pause of a start that waits for a server.
_ASK_AGAIN: Final = 0.1
START_PATIENCE: Final = 10.0
"""Seconds that a process which needs Redis to start gives it: a machine that has just begun may be busy."""
_RECONNECT_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
_PUSH_QUEUE: Final = 1024
_SUBSCRIBER_PING: Final = 5.0

# The server is there and cannot serve now; after these another connection may meet another server.
_NOT_NOW: Final = frozenset(
    {
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "NOREPLICAS",
        "MISCONF",
        "OOM",
        "BUSY",
        "NOAUTH",
        "TRYAGAIN",
        "CLUSTERDOWN",
    }
)


class CommandRefused(Internal):
    """The server refused the command itself; `word` is its name for why (NOGROUP, BUSYGROUP, ERR)."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(f"the store refused a command: {text}", reason="REDIS_REFUSED")
        self.word = code


@dataclass(frozen=True, slots=True)
class Script:
    """Lua that runs in the server, atomically; sent once, then named by its digest."""

    source: str
    sha: str = field(init=False, default="")
    """SHA-1 of the source in hex, the server's name for it."""

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


class _Inbox:
    """What one subscribed connection has received and its reader has not taken yet; bounded."""

    def __init__(self) -> None:
        self._queue: deque[bytes | None] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def push(self, message: list[Any]) -> None:
        if message[0] != b"message":
            return
        if len(self._queue) >= _PUSH_QUEUE:
            self._queue.clear()
            self._queue.append(None)
        else:
            self._queue.append(message[2])
        self._arrived.set()

    def end(self, connection: Connection, failed: bool) -> None:
        self._ended = True
        self._arrived.set()

    async def take(self, connection: Connection) -> list[bytes | None]:
        """Return what has arrived, at least one; empty when the connection has ended."""
        while not self._queue and not self._ended:
            self._arrived.clear()
            try:
                async with asyncio.timeout(_SUBSCRIBER_PING):
                    await self._arrived.wait()
            except TimeoutError:
                # A server that hangs sends nothing, as one does that has nothing to say.
                await connection.send("PING")
        taken = list(self._queue)
        self._queue.clear()
        return taken


class Store:
    """
    One installation's part of a Redis or Valkey server. Belongs to one event loop; connects when first used.

    Args:
        url: See `redis_address`.
        installation: Name that separates installations on one server.
        clock: Paces probes and reconnects; the limit of a call is real time.
        timeout: Seconds that a call may take.

    Raises:
        FailedPrecondition: The URL is wrong.
    """

    def __init__(self, url: str, *, installation: str, clock: Clock, timeout: float = 0.25) -> None:
        self._address = parse_address(url)
        self._clock = clock
        self._timeout = timeout
        self.prefix = f"pb1:{{{installation}}}:"
        """Begins all keys. The braces keep them in one slot; `1` is the version of the state's form."""
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection | str] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._readers: dict[tuple[str, str, str, int], Connection] = {}
        self._subscribers: set[Connection] = set()
        self._callbacks: list[Callable[[bool], None]] = []
        self._failures = 0
        self._available = True
        self._why = ""
        self._closed = False

    @property
    def available(self) -> bool:
        """False while the breaker is open."""
        return self._available

    def key(self, *parts: str) -> str:
        """Return the full key of *parts*, joined by colons."""
        return self.prefix + ":".join(parts)

    def on_change(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Call *callback* with each new value of `available`; the returned function ends that."""
        self._callbacks.append(callback)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return forget

    # -- commands ---------------------------------------------------------------------------------

    async def call(self, *command: Argument) -> Any:
        """
        Run one command and return its reply.

        Raises:
            Unavailable: No server, or too slow; whether the command ran is unknown.
            CommandRefused: The server refused the command itself.
        """
        connection = self._connection
        if connection is None:
            connection = await self._connected()
        return self._reply(connection, await connection.send(*command))

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """
        Run *commands* in order in one write and return their replies; other clients may come between.

        Raises:
            Unavailable: As `call`; a part may have run.
            CommandRefused: One was refused; the others ran.
        """
        connection = self._connection
        if connection is None:
            connection = await self._connected()
        replies = [await waiting for waiting in connection.send_many(commands)]
        return [self._reply(connection, reply) for reply in replies]

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """
        Run *script* over *keys* (full names, see `key`) and *args*, and return what it returns.

        Raises:
            Unavailable: As `call`.
            CommandRefused: The script failed.
        """
        connection = self._connection
        if connection is None:
            connection = await self._connected()
        reply = await connection.send("EVALSHA", script.sha, len(keys), *keys, *args)
        if type(reply) is ReplyError and reply.code == "NOSCRIPT":
            # Restarted, flushed or failed over. EVAL stores the script again; the refused call did nothing.
            reply = await connection.send("EVAL", script.source, len(keys), *keys, *args)
        return self._reply(connection, reply)

    def _reply(self, connection: Connection, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise self._error(connection, reply)
        self._failures = 0
        return reply

    def _error(self, connection: Connection, reply: Exception) -> Exception:
        if not isinstance(reply, ReplyError):
            return self._unavailable(str(reply))
        if reply.code not in _NOT_NOW:
            self._failures = 0
            return CommandRefused(str(reply), reply.code)
        connection.close(str(reply), failed=True)
        return self._unavailable(str(reply))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"Redis is not available: {why}", reason="REDIS_UNAVAILABLE", retry_after=PROBE_EVERY
        )

    # -- connection and breaker -------------------------------------------------------------------

    async def _connected(self) -> Connection:
        if self._closed:
            raise self._unavailable("the store is closed")
        if not self._available:
            raise self._unavailable(self._why)
        return await self._connect()

    async def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open(), name="redis-connect")
        # All callers share one attempt, which outlives those that are cancelled.
        outcome = await asyncio.shield(self._connecting)
        if isinstance(outcome, str):
            raise self._unavailable(outcome)
        return outcome

    async def _open(self) -> Connection | str:
        try:
            connection = await self._dial(on_lost=self._lost)
        except ConnectionLost as error:
            self._failed(str(error))
            return str(error)
        finally:
            self._connecting = None
        self._connection = connection
        return connection

    async def _dial(self, **options: Any) -> Connection:
        connection = await connect(self._address, self._timeout, **options)
        if self._closed:
            # `aclose` came meanwhile and did not see this one.
            connection.close()
            raise ConnectionLost("the store is closed")
        return connection

    def _lost(self, connection: Connection, failed: bool) -> None:
        if self._connection is connection:
            self._connection = None
        # A connection that ends while nobody waits says little: servers close idle ones.
        if failed:
            self._failed(connection.reason)

    def _failed(self, why: str) -> None:
        self._failures += 1
        self._why = why
        if self._failures < FAILURES_TO_OPEN or not self._available or self._closed:
            return
        self._set_available(False)
        self._probing = asyncio.create_task(self._probe(), name="redis-probe")

    async def _probe(self) -> None:
        while not self._available:
            await self._clock.sleep(PROBE_EVERY)
            with contextlib.suppress(Unavailable, CommandRefused):
                connection = await self._connect()
                self._reply(connection, await connection.send("PING"))
                self._set_available(True)

    def _set_available(self, value: bool) -> None:
        self._available = value
        for callback in list(self._callbacks):
            callback(value)

    async def aclose(self) -> None:
        """Close every connection; calls fail from now on. Idempotent."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._connecting is not None:
            # Not cancelled: callers wait for it who are not cancelled themselves. It ends within its timeout.
            await asyncio.wait([self._connecting])
        connections = [*self._readers.values(), *self._subscribers]
        if self._connection is not None:
            connections.append(self._connection)
        self._connection = None
        self._readers.clear()
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.wait_closed()
        # Connections given up earlier are in no list; their sockets close in the next turns of the loop.
        for _ in range(3):
            await asyncio.sleep(0)

    # -- streams and channels, on connections of their own ----------------------------------------

    async def read_group(
        self, stream: str, group: str, consumer: str, count: int, block_ms: int, *, after: str = ">"
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """
        Read up to *count* entries for *consumer*, waiting up to *block_ms* for the first.

        A group that is missing, as after a flush, is made anew from the stream's beginning. *stream* is a
        full key. With *after* "0" it returns what this consumer was given before and has not acknowledged.
        A cancelled read may have been given entries: read from "0" again after a restart.

        Returns:
            (entry id, fields); an entry that was deleted meanwhile has no fields.

        Raises:
            Unavailable: No server. The caller paces itself.
        """
        if self._closed or not self._available:
            raise self._unavailable(self._why or "the store is closed")
        # A connection's patience is fixed, so reads that block differently have one each.
        name = (stream, group, consumer, block_ms)
        connection = self._readers.get(name)
        if connection is None or connection.lost:
            try:
                connection = await self._dial(reply_timeout=self._timeout + block_ms / 1000)
            except ConnectionLost as error:
                self._failed(str(error))
                raise self._unavailable(str(error)) from error
            self._readers[name] = connection
        read: list[Argument] = ["XREADGROUP", "GROUP", group, consumer, "COUNT", count]
        if after == ">" and block_ms > 0:
            read += ["BLOCK", block_ms]
        read += ["STREAMS", stream, after]
        try:
            reply = await connection.send(*read)
            if isinstance(reply, ReplyError) and reply.code == "NOGROUP":
                await connection.send("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
                reply = await connection.send(*read)
        except asyncio.CancelledError:
            # Else the server would hand entries to a reader that has left.
            connection.close()
            raise
        if isinstance(reply, ConnectionLost):
            self._failed(str(reply))
            raise self._unavailable(str(reply))
        if isinstance(reply, ReplyError):
            raise self._error(connection, reply)
        if reply is None:
            return []
        entries = next(iter(reply.values()))
        return [
            (entry, dict(zip(f[::2], f[1::2], strict=True)) if f else {}) for entry, f in entries
        ]

    async def subscribe(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        """
        Yield the messages of *channel* (a full key) for ever, over any number of reconnects.

        None comes first, after each reconnect and when the reader was too slow: messages may have been
        missed, so read the state itself.
        """
        attempt = 0
        while not self._closed:
            inbox = _Inbox()
            try:
                connection = await self._dial(on_push=inbox.push, on_lost=inbox.end)
            except ConnectionLost:
                await self._clock.sleep(_RECONNECT_PAUSES[attempt])
                attempt = min(attempt + 1, len(_RECONNECT_PAUSES) - 1)
                continue
            self._subscribers.add(connection)
            try:
                connection.tell("SUBSCRIBE", channel)
                # Its reply comes after the subscription's push: what is published from now on arrives.
                if not isinstance(await connection.send("PING"), Exception):
                    attempt = 0
                    yield None
                    while messages := await inbox.take(connection):
                        for message in messages:
                            yield message
            finally:
                self._subscribers.discard(connection)
                connection.close()
            await self._clock.sleep(_RECONNECT_PAUSES[0])

    # -- start ------------------------------------------------------------------------------------

    async def check_server(self, *, patience: float = 0.0) -> None:
        """
        Refuse a server that would lose what is written to it.

        Args:
            patience: Seconds for which one that does not answer is asked again.

        Raises:
            FailedPrecondition: Too old, evicting, a cluster or a replica; the text has the remedy.
            Unavailable: No server.
        """
        end = self._clock.monotonic() + patience
        while True:
            try:
                info = _info(await self.call("INFO"))
                break
            except Unavailable:
                if self._clock.monotonic() >= end:
                    raise
                await self._clock.sleep(_ASK_AGAIN)
        version = info.get("redis_version", "0.0")
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            raise FailedPrecondition(
                f"the server at {self._address} is Redis {version}; "
                "Patchbay needs 6.2 or newer, or any Valkey",
                reason="REDIS_VERSION",
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise FailedPrecondition(
                f"the server at {self._address} has maxmemory-policy {policy} and would "
                "silently drop leases and billing events; set it with CONFIG SET maxmemory-policy noeviction "
                "and in its configuration file",
                reason="REDIS_EVICTS",
            )
        if info.get("cluster_enabled") == "1":
            raise FailedPrecondition(
                f"the server at {self._address} is a cluster; use a standalone server or Sentinel",
                reason="REDIS_CLUSTER",
            )
        if info.get("role", "master") != "master":
            raise FailedPrecondition(
                f"the server at {self._address} is a replica; name its master, or use redis+sentinel://",
                reason="REDIS_REPLICA",
            )


async def ensure_epoch(store: Store) -> str:
    """
    Return the random name of the server's present life, making one if it has none.

    Another value than before means that the server was flushed or failed over and must be filled again.

    Raises:
        Unavailable: No server.
    """
    key = store.key("epoch")
    _, epoch = await store.pipeline([["SET", key, secrets.token_hex(8), "NX"], ["GET", key]])
    return bytes(epoch).decode()


def _info(reply: bytes) -> dict[str, str]:
    pairs = (
        line.partition(":") for line in reply.decode().splitlines() if not line.startswith("#")
    )
    return {name: value for name, _, value in pairs}
