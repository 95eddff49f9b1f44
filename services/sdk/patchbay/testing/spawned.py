"""
A plugin that the suite runs itself, in a process of its own: a file of Python, or any program.

What only the process shows, its log, its memory, its end, can then be judged too. Not here: verdicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.tls import open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from patchbay.tls import Tls

# The suite's provider is on this machine, whatever proxy the others need.
_ENVIRONMENT = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
_START = "from patchbay.cli import main; main()"


class Spawned:
    """A running process (patchbay.testing.rules.Running)."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, output: Path) -> None:
        self.address = address
        self._process = process
        self._output = output

    def logs(self) -> str:
        """Return what it has written, standard output and error."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def in_flight(self) -> int | None:
        """Return nothing: a process does not show its calls."""
        return None

    async def stop(self) -> None:
        """Send SIGTERM."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def wait(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def spawned(target: str, key: bytes, *, seconds: float = 60.0) -> AsyncIterator[Spawned]:
    """
    Run `patchbay plugin run` of *target* on a socket of its own, ready when this returns.

    Args:
        target: File or module, as `patchbay plugin run` takes it.
        key: Key of its plugins.
        seconds: How long it may take to answer.

    Raises:
        Unavailable: It ended, or did not answer in time; the text holds what it wrote last.
    """
    with tempfile.TemporaryDirectory(prefix="patchbay-") as folder:
        address = f"unix:{folder}/plugin"
        argv = [sys.executable, "-c", _START, "plugin", "run", target, "--address", address]
        async with started(argv, address, key, seconds=seconds) as found:
            yield found


@contextlib.asynccontextmanager
async def started(
    argv: Sequence[str],
    address: str,
    key: bytes,
    *,
    seconds: float = 60.0,
    tls: Tls | None = None,
) -> AsyncIterator[Spawned]:
    """
    Run a program that serves a plugin at *address*, ready when this returns.

    Args:
        argv: The program and its arguments; they make it listen at *address*.
        address: `host:port` or `unix:/path`.
        key: What it finds in PATCHBAY_PLUGIN_KEY, in hex.
        seconds: How long it may take to answer.
        tls: Certificates to show; None: without TLS.

    Raises:
        Unavailable: There is no such program, it ended, or it did not answer in time; the text holds what
            it wrote last.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PATCHBAY_PLUGIN_KEY_FILE"}
    with tempfile.TemporaryDirectory(prefix="patchbay-") as folder:
        output = Path(folder) / "output"
        with output.open("wb") as sink:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv, stdout=sink, stderr=sink,
                    env={**kept, **_ENVIRONMENT, "PATCHBAY_PLUGIN_KEY": key.hex()},
                )  # fmt: skip
            except OSError as error:
                raise errors.Unavailable(
                    f"{argv[0]} cannot be run: {error.strerror}", reason="PLUGIN_NOT_STARTED"
                ) from error
        found = Spawned(process, address, output)
        try:
            await _ready(found, process, seconds, tls)
            yield found
        finally:
            await found.aclose()


async def _ready(
    found: Spawned, process: asyncio.subprocess.Process, seconds: float, tls: Tls | None
) -> None:
    options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
    channel = open_channel(found.address, options, tls)
    ready = asyncio.ensure_future(channel.channel_ready())
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({ready, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done() or ended.done():
            said = found.logs().strip().splitlines()[-5:]
            raise errors.Unavailable("the plugin does not start: " + " | ".join(said))
    finally:
        ready.cancel()
        ended.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)
        await channel.close()
