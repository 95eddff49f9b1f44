"""
The tests' name server (tests/fakes/dns_server.py) in a thread of its own, for tests that block their loop.

It may answer as a resolver that caches does: with what was true before. Not here: the protocol.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from tests.fakes.dns_server import DnsServer

if TYPE_CHECKING:
    from collections.abc import Iterable


class NameServer:
    """Records that tests change while others ask."""

    def __init__(self) -> None:
        self._server = DnsServer()
        self._true: dict[str, list[str]] = {}
        self._caching = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="name-server", daemon=True)

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self._server.port}"

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        """Listen no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def name(self, name: str, hosts: Iterable[str]) -> None:
        """Let *name* have the addresses *hosts*; a caching server goes on with those that it has told."""
        self._true[name] = list(hosts)
        if not self._caching:
            self._server.records = dict(self._true)

    def cache(self, caching: bool) -> None:
        """Begin to answer from a cache that does not end, or throw it away."""
        self._caching = caching
        if not caching:
            self._server.records = dict(self._true)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._server.stop())
        self._loop.close()
