"""
Names to addresses: a small DNS client that tells "there is none" from "nobody answered".

The C library's resolver and gRPC's cannot: for them a name server that is away looks like a service
without addresses. Asked are /etc/hosts, then A and AAAA over UDP, over TCP when an answer is cut. A name
with a dot is asked as it stands, never with a search domain behind it; a short one (compose's
`executors`) with each search domain, then alone. Not here: how often (addresses.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Server = tuple[str, int]
"""Address and port of a name server."""

A: Final = 1
AAAA: Final = 28
_IN: Final = 1
_NOERROR: Final = 0
_NXDOMAIN: Final = 3
_TRUNCATED: Final = 0x0200
_MAX_LABEL: Final = 63


class LookupFailed(Exception):
    """Nobody could say: SERVFAIL, no answer in time, or garbage. What was known stays true."""


class Resolver(Protocol):
    """Where addresses come from."""

    async def resolve(self, host: str) -> frozenset[str]:
        """
        Return all addresses of *host*, none when it does not exist.

        Raises:
            LookupFailed: It cannot be said now.
        """
        ...


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How names are asked."""

    servers: tuple[Server, ...]
    """In order of preference."""
    search: tuple[str, ...] = ()
    """Domains for short names."""
    timeout: float = 2.0
    """Seconds for one question to one server."""
    rounds: int = 2
    """How often the list of servers is gone through."""


def system_settings(path: Path = Path("/etc/resolv.conf")) -> DnsSettings:
    """Return the settings of resolv.conf; without one, 127.0.0.1 as the C library does."""
    servers: list[Server] = []
    search: list[str] = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split("#")[0].split(";")[0].split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                servers.append((words[1], 53))
            elif words[:1] in (["search"], ["domain"]):
                search = words[1:]
    return DnsSettings(tuple(servers) or (("127.0.0.1", 53),), tuple(search))


def named_settings(servers: str) -> DnsSettings:
    """Return the system's settings, asking *servers* (`host:port` with commas) if there are any."""
    system = system_settings()
    named = [part.strip().rpartition(":") for part in servers.split(",") if part.strip()]
    if not named:
        return system
    return DnsSettings(
        tuple((host.strip("[]"), int(port)) for host, _, port in named), system.search
    )


class HostsFile:
    """The names of /etc/hosts, read again when the file has changed."""

    def __init__(self, path: Path = Path("/etc/hosts")) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._names: dict[str, frozenset[str]] = {}

    def lookup(self, name: str) -> frozenset[str]:
        """Return the addresses of *name*, none when the file does not have it."""
        try:
            stat = self._path.stat()
            if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._seen:
                self._names = self._parse(self._path.read_text(encoding="utf-8", errors="replace"))
                self._seen = stamp
        except OSError:
            self._names, self._seen = {}, None
        return self._names.get(name.lower().rstrip("."), frozenset())

    @staticmethod
    def _parse(text: str) -> dict[str, frozenset[str]]:
        names: dict[str, set[str]] = {}
        for line in text.splitlines():
            address, *aliases = line.split("#")[0].split() or [""]
            if literal(address):
                for alias in aliases:
                    names.setdefault(alias.lower(), set()).add(address)
        return {name: frozenset(addresses) for name, addresses in names.items()}


def literal(host: str) -> bool:
    """Whether *host* is an address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class DnsResolver:
    """
    Asks name servers.

    Args:
        settings: Whom and how; default the system's.
        hosts: Names that need no question.
    """

    def __init__(self, settings: DnsSettings | None = None, hosts: HostsFile | None = None) -> None:
        self._settings = settings or system_settings()
        self._hosts = hosts or HostsFile()

    async def resolve(self, host: str) -> frozenset[str]:
        """Return all addresses of *host* (Resolver.resolve)."""
        if literal(host):
            return frozenset({host})
        if known := self._hosts.lookup(host):
            return known
        names = [host.rstrip(".")]
        if "." not in host:
            names = [f"{host}.{domain.strip('.')}" for domain in self._settings.search] + names
        failure: LookupFailed | None = None
        for name in names:
            try:
                if found := await self._both(name):
                    return found
            except LookupFailed as error:
                failure = error
        if failure is not None:
            raise failure
        return frozenset()

    async def _both(self, name: str) -> frozenset[str]:
        four, six = await asyncio.gather(
            self._ask(name, A), self._ask(name, AAAA), return_exceptions=True
        )
        if isinstance(four, frozenset) and four and isinstance(six, LookupFailed):
            return four  # servers that know nothing of AAAA are common
        for answer in (four, six):
            if isinstance(answer, BaseException):
                raise answer
        assert isinstance(four, frozenset)
        assert isinstance(six, frozenset)
        return four | six

    async def _ask(self, name: str, kind: int) -> frozenset[str]:
        failure = f"no name server answered for {name}"
        for server in self._settings.servers * self._settings.rounds:
            query_id = secrets.randbelow(1 << 16)
            query = build_query(query_id, name, kind)
            try:
                async with asyncio.timeout(self._settings.timeout):
                    answer = await _over_udp(server, query)
                    if int.from_bytes(answer[2:4], "big") & _TRUNCATED:
                        answer = await _over_tcp(server, query)
                return parse_answer(answer, query, kind)
            except LookupFailed as error:
                failure = str(error)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                failure = f"{server[0]} did not answer for {name}: {type(error).__name__}"
        raise LookupFailed(failure)


def build_query(query_id: int, name: str, kind: int) -> bytes:
    """
    Return the wire form of a question.

    Raises:
        LookupFailed: *name* is no domain name.
    """
    try:
        labels = name.encode("idna" if not name.isascii() else "ascii").split(b".")
    except UnicodeError:
        labels = []
    if not labels or not all(0 < len(label) <= _MAX_LABEL for label in labels):
        raise LookupFailed(f"{name!r} is no domain name")
    question = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    # Flags: recursion desired.
    return (
        struct.pack("!6H", query_id, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", kind, _IN)
    )


def parse_answer(answer: bytes, query: bytes, kind: int) -> frozenset[str]:
    """
    Return the addresses in *answer*; none for NXDOMAIN and for a name without such records.

    Raises:
        LookupFailed: An error code, an answer to something else, or garbage.
    """
    try:
        query_id, flags, questions, answers = struct.unpack_from("!4H", answer)
        if query_id != struct.unpack_from("!H", query)[0] or not flags & 0x8000:
            raise LookupFailed("an answer to another question")
        code = flags & 0x000F
        if code not in (_NOERROR, _NXDOMAIN):
            raise LookupFailed(f"the name server answered with code {code}")
        at = 12
        for _ in range(questions):
            at = _skip_name(answer, at) + 4
        found: set[str] = set()
        for _ in range(answers):
            at = _skip_name(answer, at)
            record, record_class, _, length = struct.unpack_from("!2HIH", answer, at)
            at += 10
            if record == kind and record_class == _IN:
                # Aliases before it need no following: the server has done that.
                found.add(str(ipaddress.ip_address(answer[at : at + length])))
            at += length
    except (struct.error, IndexError, ValueError) as error:
        raise LookupFailed("the name server's answer does not parse") from error
    return frozenset(found)


def _skip_name(message: bytes, at: int) -> int:
    """Return the offset behind the name at *at*; pointers end it."""
    while length := message[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


class _Answer(asyncio.DatagramProtocol):
    """Waits for the datagram that answers one question."""

    def __init__(self, query_id: bytes) -> None:
        self._query_id = query_id
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        # Anything else is a late answer or a forger's guess.
        if data[:2] == self._query_id and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _over_udp(server: Server, query: bytes) -> bytes:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Answer(query[:2]), remote_addr=server
    )
    try:
        transport.sendto(query)
        return await protocol.answer
    finally:
        transport.close()


async def _over_tcp(server: Server, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(length)
    finally:
        writer.close()


class StaticResolver:
    """The fake: a table that a test changes; a name set to None fails."""

    def __init__(self, names: Mapping[str, Sequence[str] | None] | None = None) -> None:
        self.names: dict[str, Sequence[str] | None] = dict(names or {})

    async def resolve(self, host: str) -> frozenset[str]:
        """Return what the table says."""
        if literal(host):
            return frozenset({host})
        found = self.names.get(host, ())
        if found is None:
            raise LookupFailed(f"{host} fails here")
        return frozenset(found)
