"""
Where a Redis or Valkey server is: the URL, Sentinel, and the first words on a new connection.

    redis://[user:password@]host[:6379][/db]          rediss:// for TLS
    unix://[user:password@]/path/to/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host[:26379]/service[/db]     rediss+sentinel:// for TLS

Query parameters: `db`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (required or none),
and for Sentinels with a password of their own `sentinel_username`, `sentinel_password`.

Not here: what is sent afterwards (redis.py).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.resp import Connection, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT_NAME: Final = "patchbay"

_TLS_KEYS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_KEYS: Final = _TLS_KEYS | {"db", "sentinel_username", "sentinel_password"}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One URL, taken apart. `repr` shows no password."""

    hosts: tuple[tuple[str, int], ...] = ()
    """The server, or the Sentinels when `service` is set; empty with `path`."""
    path: str = ""
    """A Unix socket."""
    service: str = ""
    """The Sentinel's name of the master."""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{where}/{self.service}" if self.service else where


def parse_address(url: str) -> RedisAddress:
    """
    Take *url* apart.

    Raises:
        FailedPrecondition: It is none of the forms above.
    """
    parts = urlsplit(url)
    scheme = parts.scheme
    if scheme not in {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"}:
        raise _wrong(f"scheme {scheme!r} is not redis, rediss, unix or redis+sentinel")
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(set(query) - _KEYS):
        raise _wrong(f"unknown parameter {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    credentials, _, netloc = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    common: dict[str, Any] = {
        "username": unquote(username),
        "password": unquote(password),
        "sentinel_username": query.get("sentinel_username", ""),
        "sentinel_password": query.get("sentinel_password", ""),
        "tls": _tls(query) if scheme.startswith("rediss") else None,
    }
    if scheme == "unix":
        if not parts.path:
            raise _wrong("a unix URL needs a path, as in unix:///run/valkey.sock")
        return RedisAddress(path=unquote(parts.path), db=_db(query.get("db", "0")), **common)
    sentinel = scheme.endswith("+sentinel")
    hosts = tuple(_host(item, 26379 if sentinel else 6379) for item in netloc.split(",") if item)
    path = [unquote(item) for item in parts.path.split("/") if item]
    service = ""
    if sentinel:
        if not hosts or not path:
            raise _wrong("a Sentinel URL looks like redis+sentinel://host:26379,host:26379/service")
        service = path.pop(0)
    elif len(hosts) > 1:
        raise _wrong("several hosts need redis+sentinel://; Redis Cluster is not supported")
    if len(path) > 1:
        raise _wrong("the path is /db")
    database = _db(query.get("db") or (path[0] if path else "0"))
    return RedisAddress(
        hosts=hosts or (("localhost", 6379),), service=service, db=database, **common
    )


async def connect(
    address: RedisAddress,
    timeout: float,  # noqa: ASYNC109 - a property of the connection, not of this call alone
    *,
    reply_timeout: float | None = None,
    on_push: Callable[[list[Any]], None] | None = None,
    on_lost: Callable[[Connection, bool], None] | None = None,
) -> Connection:
    """
    Open a connection to the server that *address* means now, logged in and on its database.

    Args:
        address: Asks the Sentinels anew each time, so a failover is followed by connecting again.
        timeout: Seconds for all of it; a TLS handshake may take four times as long.
        reply_timeout: Seconds for replies afterwards, when they are to differ, as for blocking reads.
        on_push: See `Connection`.
        on_lost: As `Connection.on_lost`; not called when this function raises.

    Raises:
        ConnectionLost: No server, a refused login, a hung server; the text says which.
    """
    made: list[Connection] = []
    limit = timeout * 4 if address.tls is not None else timeout

    def factory() -> Connection:
        made.append(Connection(reply_timeout or timeout, on_push=on_push))
        return made[-1]

    try:
        async with asyncio.timeout(limit):
            if address.path:
                await asyncio.get_running_loop().create_unix_connection(factory, address.path)
            else:
                host, port = (
                    await _master(address, timeout) if address.service else address.hosts[0]
                )
                await _open(factory, host, port, address.tls)
            connection = made[-1]
            await _greet(connection, address)
    except BaseException as error:
        for connection in made:
            connection.close()
        if isinstance(error, TimeoutError):
            raise ConnectionLost(f"{address}: no answer within {limit:g} s") from error
        if isinstance(error, OSError):
            raise ConnectionLost(f"{address}: {error.strerror or error}") from error
        raise
    connection.on_lost = on_lost
    return connection


async def _open(
    factory: Callable[[], Connection], host: str, port: int, tls: ssl.SSLContext | None
) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(factory, host, port, ssl=tls)
    return connection


async def _greet(connection: Connection, address: RedisAddress) -> None:
    hello: list[str] = ["HELLO", "3"]
    if address.password or address.username:
        hello += ["AUTH", address.username or "default", address.password]
    hello += ["SETNAME", CLIENT_NAME]
    commands: list[list[str | int]] = [list(hello)]
    if address.db:
        commands.append(["SELECT", address.db])
    for waiting in connection.send_many(commands):
        reply = await waiting
        if isinstance(reply, Exception):
            raise ConnectionLost(f"{address}: {reply}")
        if (
            address.service
            and isinstance(reply, dict)
            and reply.get(b"role") not in {b"master", None}
        ):
            raise ConnectionLost(f"{address}: the server is a replica; waiting for the failover")
    if connection.lost:
        raise ConnectionLost(f"{address}: {connection.reason}")


async def _master(address: RedisAddress, timeout: float) -> tuple[str, int]:  # noqa: ASYNC109 - per Sentinel
    why: list[str] = []
    for host, port in address.hosts:
        sentinel = Connection(timeout)
        try:
            async with asyncio.timeout(timeout / len(address.hosts)):
                sentinel = await _open(lambda: Connection(timeout), host, port, address.tls)
                reply = await _ask(sentinel, address)
        except (TimeoutError, OSError) as error:
            why.append(f"{host}:{port} {str(error) or 'does not answer'}")
            continue
        finally:
            sentinel.close()
        if isinstance(reply, list) and len(reply) == 2:
            return reply[0].decode(), int(reply[1])
        why.append(
            f"{host}:{port} {reply if reply is not None else 'does not know ' + address.service}"
        )
    raise ConnectionLost(f"no Sentinel names a master: {'; '.join(why)}")


async def _ask(sentinel: Connection, address: RedisAddress) -> Any:
    if address.sentinel_password:
        user = address.sentinel_username or "default"
        login = await sentinel.send("AUTH", user, address.sentinel_password)
        if isinstance(login, Exception):
            return login
    return await sentinel.send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)


def _host(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not port.isdecimal():
        raise _wrong(f"port {port!r} is not a number")
    return host or "localhost", int(port or default)


def _db(text: str) -> int:
    if not text.isdecimal():
        raise _wrong(f"database {text!r} is not a number")
    return int(text)


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        if query.get("ssl_certfile"):
            context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    except OSError as error:
        raise _wrong(f"certificates: {error}") from error
    if query.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _wrong(message: str) -> FailedPrecondition:
    return FailedPrecondition(f"the Redis URL is wrong: {message}", reason="REDIS_URL")
