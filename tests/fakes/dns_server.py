"""
A name server of the tests' own on 127.0.0.1: a table that a test changes, over UDP and TCP.

It counts questions, can fail, be silent, answer late, or cut UDP answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, Any

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSRecord
from tests.harness import ports

if TYPE_CHECKING:
    from collections.abc import Callable


class DnsServer:
    """Records by lower-case name without the last dot; addresses with a colon are AAAA."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.rcode: int | None = None
        """Answer every question with this code."""
        self.silent = False
        self.forge = False
        """Send an answer with a wrong id before the true one."""
        self.asked: list[str] = []
        self.tcp_questions = 0
        self.port = 0
        self._transport: Any = None
        self._tcp: asyncio.Server | None = None

    async def start(self) -> None:
        # A port that is free for TCP may be somebody's for UDP: another resolver's question, for one.
        for _ in range(100):
            with contextlib.suppress(OSError):
                await self._listen()
                return
        raise AssertionError("no port is free for both")

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        # One that the kernel gives nobody: a port that is free for TCP may be somebody's for UDP.
        self.port = ports.free_port()
        self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", self.port)
        server = self

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                server._on_datagram(data, lambda answer: self.transport.sendto(answer, addr))

        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                Datagrams, local_addr=("127.0.0.1", self.port)
            )
        except OSError:
            self._tcp.close()
            raise

    async def stop(self) -> None:
        self._transport.close()
        assert self._tcp is not None
        self._tcp.close()
        await self._tcp.wait_closed()

    def _on_datagram(self, data: bytes, send: Callable[[bytes], None]) -> None:
        if self.silent:
            return
        if self.forge:
            send(bytes((data[0] ^ 0xFF, data[1])) + self._answer(data).pack()[2:])
        answer = self._answer(data)
        if len(answer.pack()) > 512:
            answer = answer.truncate()
        send(answer.pack())

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        self.tcp_questions += 1
        packed = self._answer(await reader.readexactly(length)).pack()
        writer.write(struct.pack("!H", len(packed)) + packed)
        await writer.drain()
        writer.close()

    def _answer(self, data: bytes) -> DNSRecord:
        question = DNSRecord.parse(data)
        name = str(question.q.qname).rstrip(".").lower()
        self.asked.append(name)
        answer = question.reply()
        if self.rcode is not None:
            answer.header.rcode = self.rcode
            return answer
        if name not in self.records:
            answer.header.rcode = RCODE.NXDOMAIN
            return answer
        for address in self.records[name]:
            kind = QTYPE.AAAA if ":" in address else QTYPE.A
            if question.q.qtype == kind:
                data_type = AAAA if kind == QTYPE.AAAA else A
                answer.add_answer(RR(name, kind, rdata=data_type(address), ttl=1))
        return answer
