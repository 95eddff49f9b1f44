"""
The operator as a process of its own against an API server and a Redis: started, hurt and watched by tests.

Not here: the API server (apiserver.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
from tests.conftest import pick_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

ROOT_KEY = "11" * 32
CLUSTER_ROOT = "22" * 32


class OperatorProcess:
    """One replica."""

    def __init__(
        self,
        directory: Path,
        *,
        kubeconfig: Path,
        redis_url: str,
        namespace: str,
        identity: str = "operator-a",
        values: str = "",
        installation: str = "",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = pick_port()
        self.identity = identity
        self._log = directory / f"{identity}.log"
        self.values = directory / "patchbay.yaml"
        self.values.write_text(
            values or "providers: [{name: echo, plugin: echo, models: [echo]}]\n"
        )
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PATCHBAY_")},
            "KUBECONFIG": str(kubeconfig),
            "REDIS_URL": redis_url,
            "PATCHBAY_INSTALLATION": installation or namespace,
            "PATCHBAY_CONFIG": str(self.values),
            "PATCHBAY_PLUGINS_KEY": ROOT_KEY,
            "PATCHBAY_CLUSTER_KEY": CLUSTER_ROOT,
            "PATCHBAY_OPERATOR_NAMESPACE": namespace,
            "PATCHBAY_OPERATOR_PORT": str(self.port),
            "PATCHBAY_HOST": "127.0.0.1",
            "POD_NAME": identity,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "patchbay_operator", "run"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """End it as Kubernetes does; return its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=90)
        self.process = None
        return status

    def log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text(errors="replace")

    async def get(self, path: str) -> httpx.Response | None:
        """Ask its health port; None when nobody listens."""
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient() as client:
                return await client.get(f"http://127.0.0.1:{self.port}{path}", timeout=20)
        return None

    async def leads(self) -> bool:
        """Whether it says that it leads."""
        answer = await self.get("/metrics")
        return answer is not None and "patchbay_operator_leader 1.0" in answer.text


async def eventually(ask: Callable[[], Awaitable[Any]], what: str, *, within: float = 90.0) -> Any:
    """Return the first true answer of *ask*; fail after *within* seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = await ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what}; last: {answer!r}")
        await asyncio.sleep(0.1)  # another process's work; nothing tells us when it is done
