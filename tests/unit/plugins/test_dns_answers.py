"""Questions and answers that are none (plugins/dns.py); real name servers are asked elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from patchbay_gateway.plugins.dns import A, DnsResolver, DnsSettings, LookupFailed, build_query


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "ä..ö", "ä" * 64])
def test_question_about_no_domain_name_is_a_failed_look_up(name: str) -> None:
    with pytest.raises(LookupFailed, match="no domain name"):
        build_query(1, name, A)


class Stub(asyncio.DatagramProtocol):
    """Answers each question with its first bytes and nothing else."""

    def __init__(self, size: int) -> None:
        self._size = size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Answer."""
        self.transport.sendto(data[: self._size], addr)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [2, 3, 4, 11])
async def test_answer_that_breaks_off_is_a_failed_look_up(size: int) -> None:
    """Nobody who polls may end of it."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Stub(size), local_addr=("127.0.0.1", 0)
    )
    try:
        server = transport.get_extra_info("sockname")[:2]
        with pytest.raises(LookupFailed):
            await DnsResolver(DnsSettings((server,), rounds=1)).resolve("a.test")
    finally:
        transport.close()
