"""
Real processes for tests: started with a log file each, waited for by their own readiness, killed by pid.

The program `patchbay` is forked from one that has imported it already (nursery.py), where that makes no
difference but in time. Not here: which processes make a gateway (topology.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import httpx
from tests.harness.nursery import nursery, takes
from tests.harness.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.harness.nursery import Running

__all__ = ["PATCHBAY", "READY", "Process", "Verb", "free_port"]

PATCHBAY = Path(sys.executable).with_name("patchbay")

READY = 90.0
"""Seconds that a start may take on a machine with much else to do."""


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
        forked: bool | None = None,
    ) -> None:
        """
        Args:
            name: For its log.
            argv: Program and arguments.
            env: Added to this environment.
            directory: Where it runs and logs.
            ready_url: Answers 200 when it is ready.
            forked: Whether it is forked from the nursery, if that is possible; default: `patchbay` is.
        """
        self.name = name
        self._argv = [str(a) for a in argv]
        self._env = {**_clean_environment(), **env}
        self._directory = directory
        self.ready_url = ready_url
        self._forked = takes(self._env) and (
            self._argv[0] == str(PATCHBAY) if forked is None else forked
        )
        self._process: Running | None = None
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

    def start(self, *, wait: float = READY) -> None:
        """Start, and wait until it says that it is ready; killed if it does not."""
        with self.log.open("ab") as log:
            if self._forked:
                # An interpreter does not name itself to what it runs.
                argv = self._argv[self._argv[0] == sys.executable :]
                self._process = nursery().start(argv, self._env, self._directory, log, log)
            else:
                self._process = subprocess.Popen(
                    self._argv,
                    env=self._env,
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        if self.ready_url and wait:
            try:
                self.wait_ready(wait)
            except BaseException:
                self.kill()  # whoever asked has nothing to stop yet
                raise

    def wait_ready(self, limit: float = READY) -> None:
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
                answer = f"it ended with status {self.wait(0)}"
                break
            with contextlib.suppress(httpx.HTTPError):
                # Loading certificates would cost more than the process needs to answer.
                response = httpx.get(self.ready_url, timeout=20, verify=False)
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
        self.wait(60)

    def stop(self, limit: float = 60.0) -> int:
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


class Verb:
    """A verb of `patchbay` that ends by itself, and what it says."""

    def __init__(
        self, *arguments: str | Path, env: Mapping[str, str], directory: Path | None = None
    ) -> None:
        """
        Start it.

        Args:
            arguments: Verb and options.
            env: Added to this environment.
            directory: Where it runs; default: here.
        """
        argv = [str(PATCHBAY), *(str(a) for a in arguments)]
        env = {**_clean_environment(), **env}
        directory = directory or Path.cwd()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the same
        self._process: Running
        if takes(env):
            files = (self._output, self._errors)
            self._process = nursery().start(argv, env, directory, *files)
        else:
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
            )

    def first_line(self, limit: float = READY) -> str:
        """
        Return the first line of what it tells a person, who may have to answer it elsewhere.

        Raises:
            AssertionError: There is none in time.
        """
        deadline = time.monotonic() + limit
        while True:
            ended = self._process.poll() is not None
            if b"\n" in (said := self._said(self._errors)):
                break
            assert not ended, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)  # a file of another process
        return said.partition(b"\n")[0].decode()

    def end(self, limit: float = READY) -> subprocess.CompletedProcess[str]:
        """
        Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It does not; it is killed.
        """
        try:
            status = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise
        output, errors = (self._said(f).decode() for f in (self._output, self._errors))
        self._output.close()
        self._errors.close()
        return subprocess.CompletedProcess(["patchbay"], status, output, errors)

    @staticmethod
    def _said(file: IO[bytes]) -> bytes:
        # The position is the writer's too: nothing here may move it.
        return os.pread(file.fileno(), 16 << 20, 0)


def _clean_environment() -> dict[str, str]:
    """Return this environment without what would configure a gateway by accident."""
    foreign = ("PATCHBAY_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "REDIS_", "OTEL_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {**kept, "LOG_FORMAT": "json", "NO_PROXY": "127.0.0.1,localhost"}
