"""
The verdict after a fault: the ledger against the upstream's own log, memory, nothing hanging.

Not here: the invariant itself (tests/fakes/ledger_check.py).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

import httpx
from tests.fakes import ledger_check

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.harness.processes import Process
    from tests.harness.topology import Services, Up
    from tests.harness.upstream import Upstream

# What may stay after a load (docs/architecture.md, limits): a tenth and 10 MB.
RSS_FACTOR = 1.10
RSS_BYTES = 10 << 20
RSS_PATIENCE = 30.0


class Judge:
    """One gateway and its upstream."""

    def __init__(self, gateway: Up | Services, upstream: Upstream, *, settle: float) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._settle = settle
        self._rss: dict[str, int] = {}

    def remember_memory(self, *, but: Collection[str] = ()) -> None:
        """Note each process's memory, after a warm-up; not that of those that will be killed."""
        self._rss = {name: p.rss() for name, p in self._processes().items() if name not in but}

    def check_memory(self) -> None:
        """Assert that 30 s later no process that still lives holds much more than before."""
        deadline = time.monotonic() + RSS_PATIENCE
        while True:
            now = {n: p.rss() for n, p in self._processes().items() if n in self._rss}
            grown = {
                n: (self._rss[n] >> 20, size >> 20)
                for n, size in now.items()
                if size > self._rss[n] * RSS_FACTOR + RSS_BYTES
            }
            if not grown:
                return
            assert time.monotonic() < deadline, f"memory grew (MB before, after): {grown}"
            time.sleep(0.5)  # memory is given back when it is; nothing announces it

    def check_ledger(self) -> ledger_check.Report:
        """Wait until every attempt has its final row, then assert the invariant."""
        deadline = time.monotonic() + self._settle
        while True:
            report = ledger_check.check(self._upstream.records(), self._gateway.ledger_path)
            if not report.open and not report.violations:
                return report
            if time.monotonic() > deadline:
                raise AssertionError(f"{report}\n{self._tails()}")
            time.sleep(0.2)  # polls a database of another process

    def check_answers(self) -> None:
        """Assert that the gateway answers, streamed and not, once its parts have found each other again."""
        deadline = time.monotonic() + 60
        for stream in (False, True):
            while True:
                response = httpx.post(
                    f"{self._gateway.base_url}/v1/chat/completions",
                    json={
                        "model": "fake-model",
                        "stream": stream,
                        "messages": [{"role": "user", "content": "hello"}],
                    },
                    headers=self._gateway.headers(),
                    timeout=60,
                    verify=False,
                )
                if response.status_code == 200:
                    break
                assert time.monotonic() < deadline, response.text + self._tails()
                time.sleep(0.1)  # a process that came back is found by its next probe
            assert not stream or response.text.endswith("data: [DONE]\n\n")

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Return the rows of a query to the ledger."""
        uri = f"file:{self._gateway.ledger_path}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as ledger:
            return ledger.execute(query).fetchall()

    def _processes(self) -> dict[str, Process]:
        return {n: p for n, p in self._gateway.processes.items() if p.running and n != "valkey"}

    def _tails(self) -> str:
        return "\n".join(
            f"--- {name}\n{p.tail(2500)}" for name, p in self._gateway.processes.items()
        )
