"""
What is asked of a gateway, and one run of it: load, CPU time and memory over exactly the measured window.

Not here: which gateway (contenders.py), medians and tables (report.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from bench.contenders import BENCH, UPSTREAM, UPSTREAM_PORT, Contender
from bench.processes import LOAD_CORE, Command, Group, on_core, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# After the last answer a gateway still writes its ledger; that work belongs to the requests.
SETTLE_SECONDS = 1.0
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. `tokens` 0 means a plain answer; `requests` ends it by count instead of by time."""

    name: str
    title: str
    body: str
    connections: int
    seconds: float
    tokens: int = 0
    warm_up: float = 0.5
    spread_ms: int = 0
    gaps: bool = False
    requests: int = 0


SCENARIOS = (
    Scenario("plain-1", "plain answers, 1 connection", "plain", 1, 3),
    Scenario("plain-32", "plain answers, 32 connections", "plain", 32, 5),
    Scenario("plain-128", "plain answers, 128 connections", "plain", 128, 4),
    Scenario("stream-32", "64-token streams at once, 32 connections", "stream", 32, 5, tokens=64),
    Scenario(
        "paced-200",
        "200 streams, a token each 20 ms",
        "paced",
        200,
        6,
        tokens=64,
        # Each stream takes 1.26 s: connections start over that time, and the window begins after it.
        warm_up=2.6,
        spread_ms=1280,
        gaps=True,
    ),
)
QUICK = ("plain-32", "stream-32", "paced-200")
# One connection too: nothing is batched there, so that a busy machine changes the rate and not the cost.
POOL_SCENARIOS = ("plain-1", "plain-32")


def soak(requests: int) -> Scenario:
    """Return plain answers by count, to see whether memory stays flat."""
    return Scenario("soak", f"{requests:,} plain answers", "plain", 32, 0, requests=requests)


def quick(scenario: Scenario) -> Scenario:
    """Return a short form for development: its figures say which way, not how much."""
    return replace(scenario, seconds=min(scenario.seconds, 2))


class Upstream:
    """The fake upstream on the generator's core, and its own count of what reached it."""

    def __init__(self, log: Path) -> None:
        self._group = Group(log, LOAD_CORE)

    def __enter__(self) -> Self:
        program = str(BENCH / "bin" / "upstream")
        self._group.start(Command("upstream", [program, str(UPSTREAM_PORT)]))
        wait_until("the fake upstream", lambda: answers(f"{UPSTREAM}/health"), self._group, 5)
        self._group.check()  # it may have been somebody else's that answered
        return self

    def __exit__(self, *_: object) -> None:
        self._group.stop()

    def count(self) -> dict[str, int]:
        """Return requests, completed and aborted answers, and tokens of completed ones, since its start."""
        with urllib.request.urlopen(f"{UPSTREAM}/stats") as answer:
            told: dict[str, int] = json.load(answer)
        told["requests"] = told["plain"] + told["streams"]
        return told


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other bench runs in this tree: they share cores and ports."""
    with (BENCH / "bin" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another bench is running; waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def answers(url: str) -> bool:
    """Tell whether a GET of *url* is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # HTTPError is an OSError
        return False


def run(scenario: Scenario, contender: Contender, group: Group) -> dict[str, Any]:
    """
    Put *scenario* on a running gateway.

    Returns:
        What the load generator prints (load.c), and `cpu_us` per answer over the whole run, `cpu_percent`
        inside the window, `memory_mb` by process and `memory_peak_mb` in total.
    """
    argv = [
        str(BENCH / "bin" / "load"),
        *("--to", f"127.0.0.1:{contender.port}"),
        *("--body", str(BENCH / "requests" / f"{scenario.body}.json")),
        *("--connections", str(scenario.connections), "--tokens", str(scenario.tokens)),
        *("--seconds", str(scenario.seconds), "--warm-up", str(scenario.warm_up)),
        *("--spread-ms", str(scenario.spread_ms), "--requests", str(scenario.requests)),
        *(("--gaps",) if scenario.gaps else ()),
    ]
    for header in contender.headers:
        argv += ["--header", header]
    cpu_before = group.cpu_seconds()
    with on_core(LOAD_CORE):
        load = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    window_cpu: list[tuple[float, float]] = []  # (time, CPU seconds) at both ends of the window
    edges = [begun + scenario.warm_up, begun + scenario.warm_up + scenario.seconds]
    peak: dict[str, float] = {}
    series = []
    for now in _ticks(load, edges if scenario.seconds else []):
        if edges and now >= edges[0] and scenario.seconds:
            window_cpu.append((now, group.cpu_seconds()))
            edges.pop(0)
        memory = group.memory()
        series.append(round(sum(memory.values()), 1))
        if sum(memory.values()) >= sum(peak.values()):
            peak = memory
    output, errors = load.communicate()
    if load.returncode not in {0, 1} or not output:
        raise RuntimeError(f"load: {errors or load.returncode}")
    result: dict[str, Any] = json.loads(output)
    time.sleep(SETTLE_SECONDS if peak else 0)
    cpu = group.cpu_seconds() - cpu_before
    if peak:
        result["cpu_us"] = round(cpu * 1e6 / max(1, result["answers"]), 1)
        result["memory_mb"] = {name: round(mb, 1) for name, mb in peak.items()}
        result["memory_peak_mb"] = round(sum(peak.values()), 1)
        if scenario.requests:
            result["memory_series_mb"] = series[:: max(1, len(series) // 20)]
    if len(window_cpu) == 2:
        (t0, cpu0), (t1, cpu1) = window_cpu
        result["cpu_percent"] = round(100 * (cpu1 - cpu0) / (t1 - t0), 1)
    return result


def _ticks(load: subprocess.Popen[str], edges: list[float]) -> Iterator[float]:
    """Yield the time, now and then and at each of *edges*, until the load has ended."""
    waiting = list(edges)
    while load.poll() is None:
        now = time.monotonic()
        pause = SAMPLE_SECONDS
        if waiting and waiting[0] - now < pause:
            pause = max(0.0, waiting.pop(0) - now)
        try:
            load.wait(pause)
        except subprocess.TimeoutExpired:
            yield time.monotonic()
