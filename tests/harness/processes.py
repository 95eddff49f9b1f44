"""
Real processes for tests: started with a log file each, waited for by their own readiness, killed by pid.

Not here: which processes make a gateway (topology.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from tests.harness.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PATCHBAY", "Process", "free_port"]

PATCHBAY = Path(sys.executable).with_name("patchbay")


class Process:
    """One process and its log."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        directory: Path,
        ready_url: str | None = None,
    ) -> None:
        self.name = name
        self._argv = [str(a) for a in argv]
        self._env = {**_clean_environment(), **env}
        self._directory = directory
        self.ready_url = ready_url
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / f"{name}.log"

    @property
    def pid(self) -> int:
        """Process id; the process must run."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: float = 20.0) -> None:
        """Start, and wait until it says that it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if self.ready_url and wait:
            self.wait_ready(wait)

    def wait_ready(self, limit: float = 20.0) -> None:
        """
        Poll the readiness URL.

        Raises:
            AssertionError: It ended or was not ready in time; with the end of its log.
        """
        assert self.ready_url is not None
        deadline = time.monotonic() + limit
        answer = ""
        while time.monotonic() < deadline:
            if not self.running:
                break
            with contextlib.suppress(httpx.HTTPError):
                # Loading certificates would cost more than the process needs to answer.
                response = httpx.get(self.ready_url, timeout=2, verify=False)
                answer = f"{response.status_code} {response.text[:500]}"
                if response.status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready: {answer}\n{self.tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL and reap."""
        self.signal(signal.SIGKILL)
        self.wait(5)

    def stop(self, limit: float = 15.0) -> int:
        """SIGTERM, wait, and SIGKILL after *limit* seconds; return the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait(self, limit: float) -> int:
        """Wait for the end; return the exit status."""
        assert self._process is not None
        return self._process.wait(limit)

    def tail(self, size: int = 4000) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def rss(self) -> int:
        """Return resident memory in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _clean_environment() -> dict[str, str]:
    """Return this environment without what would configure a gateway by accident."""
    foreign = ("PATCHBAY_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "REDIS_", "OTEL_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {**kept, "LOG_FORMAT": "json", "NO_PROXY": "127.0.0.1,localhost"}
