"""
Process trees on one core, and what /proc says of them: CPU time and resident memory.

Linux only. Not here: which programs are started (contenders.py) and what is asked of them (scenarios.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GATEWAY_CORE = 1
LOAD_CORE = 0
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True, slots=True)
class Command:
    """One program to start: its name in results, arguments, additions to the environment, directory."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started inside inherit *core*; this process returns to where it was."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Group:
    """The processes of one gateway with all their children, pinned to one core."""

    def __init__(self, log: Path, core: int = GATEWAY_CORE) -> None:
        self._log = log
        self._core = core
        self._started: list[tuple[Command, subprocess.Popen[bytes]]] = []

    def start(self, command: Command) -> None:
        """Start one program; its output is appended to the log."""
        with self._log.open("ab") as log, on_core(self._core):
            process = subprocess.Popen(
                command.argv,
                env={**os.environ, **command.env},
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append((command, process))

    def check(self) -> None:
        """Raise RuntimeError with the end of the log if a program has ended by itself."""
        for command, process in self._started:
            if process.poll() is not None:
                tail = self._log.read_text(errors="replace")[-1500:]
                raise RuntimeError(f"{command.name} ended with {process.returncode}:\n{tail}")

    def pids(self) -> dict[int, str]:
        """Return pid → name of all live processes: what was started, and below it its children."""
        parents: dict[int, int] = {}
        names: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
                names[int(entry.name)] = stat[0]
                parents[int(entry.name)] = int(stat[1][1])
        found = {p.pid: c.name for c, p in self._started if p.poll() is None}
        grown = True
        while grown:
            children = {p: names[p] for p, up in parents.items() if up in found and p not in found}
            found.update(children)
            grown = bool(children)
        return found

    def cpu_seconds(self) -> float:
        """Return user and system time of the whole group, children that have ended included."""
        total = 0
        for pid in self.pids():
            if (stat := _stat(pid)) is not None:
                # utime, stime, and those of children that were waited for: fields 14 to 17 of proc(5).
                total += sum(int(x) for x in stat[1][11:15])
        return total / _TICK

    def memory(self) -> dict[str, float]:
        """Return name → resident MB (10^6 bytes); processes of one name are added up."""
        found: dict[str, float] = {}
        for pid, name in self.pids().items():
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[name] = found.get(name, 0) + pages * _PAGE_MB
        return found

    def stray_cores(self) -> dict[str, set[int]]:
        """Return name → cores of processes that have left the core they were put on."""
        cores = {}
        for pid, name in self.pids().items():
            with contextlib.suppress(OSError):
                if (found := os.sched_getaffinity(pid)) != {self._core}:
                    cores[name] = found
        return cores

    def stop(self, grace: float = 15) -> None:
        """End all, last started first, as an operator would; kill what has not gone after *grace* seconds."""
        everyone = self.pids()
        for _, process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._started.clear()


def wait_until(
    what: str, condition: Callable[[], bool], group: Group, seconds: float = 120
) -> float:
    """
    Poll *condition* until it is true and return how long that took.

    Raises:
        RuntimeError: A program has ended, or *seconds* were not enough.
    """
    begun = time.monotonic()
    while not condition():
        group.check()
        if time.monotonic() - begun > seconds:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - begun


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """Return a process's name and the fields of its stat line from the third on; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()
