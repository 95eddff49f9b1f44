"""Real executor processes on addresses of 127.0.0.0/8, found through a real name server."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.dns_server import DnsServer
from tests.integration.addresses.executor_process import KEY

from patchbay.keys import channel_key
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.plugins.dns import DnsResolver, DnsSettings, HostsFile
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.registry import PluginRegistry
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

NAME = "executors.patchbay.test"


class Executors:
    """Processes that come, go and die; the name server knows those that it is told of."""

    def __init__(self, dns: DnsServer, port: int) -> None:
        self.dns = dns
        self.port = port
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, host: str, *, named: bool = True) -> str:
        """Start one at *host* and return its address."""
        address = f"{host}:{self.port}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("executor_process.py")),
            address,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes[address] = process
        await self.said(address, "ready")
        if named:
            self.name(host)
        return address

    def name(self, *hosts: str) -> None:
        """Add *hosts* to the name's records."""
        self.dns.records.setdefault(NAME, []).extend(hosts)

    def unname(self, *hosts: str) -> None:
        """Take *hosts* off the name's records."""
        for host in hosts:
            self.dns.records[NAME].remove(host)

    async def said(self, address: str, word: str) -> None:
        """Wait until the process has said *word*, as the next that it says."""
        stdout = self._processes[address].stdout
        assert stdout is not None
        async with asyncio.timeout(60):
            assert await stdout.readline() == f"{word}\n".encode()

    def drain(self, address: str) -> None:
        """Send SIGTERM."""
        self._processes[address].terminate()

    def hang(self, address: str) -> None:
        """Send SIGSTOP."""
        self._processes[address].send_signal(signal.SIGSTOP)

    async def kill(self, address: str) -> None:
        """Send SIGKILL and wait."""
        self._processes[address].kill()
        await self._processes[address].wait()

    async def ended(self, address: str) -> int:
        """Wait for the exit status."""
        async with asyncio.timeout(60):
            return await self._processes[address].wait()

    async def stop(self) -> None:
        """Kill what is left."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    server = DnsServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def executors(dns: DnsServer, free_port: int) -> AsyncIterator[Executors]:
    made = Executors(dns, free_port)
    yield made
    await made.stop()


@pytest.fixture
def resolver(dns: DnsServer, tmp_path: Path) -> DnsResolver:
    settings = DnsSettings((("127.0.0.1", dns.port),), timeout=5.0)
    return DnsResolver(settings, HostsFile(tmp_path / "hosts"))


@pytest.fixture
async def registry(resolver: DnsResolver, executors: Executors) -> AsyncIterator[PluginRegistry]:
    """A registry that knows the plugin by the name server's name."""

    async def keys(_: str) -> Sequence[bytes]:
        return [channel_key(KEY)]

    made = PluginRegistry(
        host=Host("host-1", "test"), keys=keys, resolver=resolver, clock=SystemClock()
    )
    target = AddressEntry(f"{NAME}:{executors.port}")
    await made.apply(Snapshot(version=1, plugins=(PluginEntry(id="pinger", addresses=(target,)),)))
    yield made
    await made.aclose()
