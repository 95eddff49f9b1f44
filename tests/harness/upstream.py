"""The fake upstream as a process, and its log. Not here: what it can be told to do (tests/fakes)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.harness.processes import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM = Path(__file__).resolve().parents[1] / "fakes" / "upstream.py"


class Upstream:
    """One fake upstream."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.log_path = directory / "upstream.jsonl"
        self.process = Process(
            "upstream",
            [sys.executable, _PROGRAM, "--port", str(self.port), "--log", self.log_path, *options],
            env={},
            directory=directory,
            ready_url=f"http://127.0.0.1:{self.port}/__log",
        )

    @property
    def url(self) -> str:
        """Base URL for a provider."""
        return f"http://127.0.0.1:{self.port}/v1"

    def records(self) -> list[dict[str, Any]]:
        """Return all requests that reached it, the newest state of each."""
        found: list[dict[str, Any]] = httpx.get(
            f"http://127.0.0.1:{self.port}/__log", timeout=60, verify=False
        ).json()
        return found

    def attempts(self) -> Iterator[dict[str, Any]]:
        """Yield the records that carry an attempt."""
        return (r for r in self.records() if r["attempt"])
