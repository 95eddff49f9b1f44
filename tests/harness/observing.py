"""
Gateways watched and asked from outside: their processes in /proc, streams held open, files replaced.

Clients here load no certificates: that costs 0.1 s each, and nobody here speaks TLS. Not here: starting
and killing (processes.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.harness.processes import Process
    from tests.harness.topology import Services, Up

# No test here calls a provider: nothing listens there.
NOWHERE = "http://127.0.0.1:1/v1"
BODY = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """Poll what another process does; nothing announces it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what or "it never came"
        time.sleep(0.05)
    return found


async def until_meanwhile(
    condition: Callable[[], Any], what: str = "", seconds: float = 60.0, *, every: float = 0.05
) -> None:
    """Poll what other processes do, in a thread, while this one's tasks go on."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what or "it never came"
        await asyncio.sleep(every)


def alive(pid: int) -> bool:
    """
    Whether *pid* holds anything of the machine; a zombie does not.

    A zombie may have threads that are still on their way out, with all sockets open.
    """
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    return False


def descendants(pid: int) -> dict[int, str]:
    """Return pid → command line of everything that *pid* started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_bytes()
                found[child] = line.replace(b"\0", b" ").decode().strip()
            waiting.append(child)
    return found


def connections(pid: int, port: int) -> int:
    """Return how many connections to *port* the process *pid* holds."""
    held = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port:
            held.add(f"socket:[{fields[9]}]")
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(descriptor) in held  # noqa: PTH115 - no path, a name in brackets
    return count


def registrations(process: Process) -> Counter[str]:
    """Return plugin id → how often *process* says that it has registered with an address of it."""
    lines = process.log.read_bytes().splitlines() if process.log.exists() else []
    found = (line for line in lines if line.endswith(b"}") and b'"plugin registered"' in line)
    return Counter(json.loads(line)["plugin"] for line in found)


def write_config(gateway: Up | Services, config: dict[str, Any] | str) -> None:
    """Replace the configuration file as editors and mounts do: whole."""
    fresh = gateway.config_path.with_suffix(".new")
    fresh.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    fresh.replace(gateway.config_path)


def client(gateway: Up | Services) -> httpx.AsyncClient:
    """Return a client with the gateway's key and its own connections."""
    return httpx.AsyncClient(
        base_url=gateway.base_url,
        headers=gateway.headers(),
        timeout=60,
        trust_env=False,
        verify=False,
    )


def ask(gateway: Up | Services, model: str = "echo") -> httpx.Response:
    """Ask on a connection of its own."""
    return httpx.post(
        f"{gateway.base_url}/v1/chat/completions",
        json={**BODY, "model": model},
        headers=gateway.headers(),
        timeout=60,
        trust_env=False,
        verify=False,
    )


@contextlib.asynccontextmanager
async def open_stream(
    gateway: Up | Services, *, words: int, delay_ms: int
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open a stream and yield its bytes, of which the first have come."""
    headers = {"x-echo-chunks": str(words), "x-echo-delay-ms": str(delay_ms)}
    async with (
        client(gateway) as http,
        http.stream(
            "POST", "/v1/chat/completions", json={**BODY, "stream": True}, headers=headers
        ) as answer,
    ):
        assert answer.status_code == 200
        chunks = answer.aiter_raw()
        await anext(chunks)
        yield chunks


async def read_whole(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the rest of a stream."""
    return b"".join([chunk async for chunk in chunks])


def get(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return what *url* answers."""
    return httpx.get(url, headers=headers, timeout=60, trust_env=False, verify=False)
