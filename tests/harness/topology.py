"""
Gateways made of real processes, in the shapes that users run them in.

`Up` is `patchbay up`; `Services` is one Valkey and the four services, each as often as asked. Both offer
the same: `base_url`, `client_key`, `usage()`, `processes`. Not here: upstreams and what tests ask.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import redis.asyncio
import yaml
from tests.harness import redis_server
from tests.harness.observing import get
from tests.harness.processes import PATCHBAY, READY, Process, Verb, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make_config(upstream: str, **overrides: Any) -> dict[str, Any]:
    """
    Return a configuration with the echo provider and one OpenAI-compatible upstream.

    Its credentials never rest, so that a failure that one step of a test wants is none for the next.

    Args:
        upstream: Base URL, for example http://127.0.0.1:9000/v1.
        overrides: Top-level keys.
    """
    return {
        "client_keys": [{"name": "tests", "key": "test-client-key", "models": ["*"]}],
        "management_keys": [{"name": "tests", "key": "test-management-key"}],
        "providers": [
            {"name": "echo", "plugin": "echo", "models": ["echo"]},
            {
                "name": "fake",
                "plugin": "openai-compatible",
                "base_url": upstream,
                "attempt_header": "x-patchbay-attempt",
                "models": ["fake-model", {"name": "text-embedding-fake"}],
                "cooldown": {"enabled": False},
                "credentials": [
                    {"id": "first", "api_key": "test-upstream-key-1"},
                    {"id": "second", "api_key": "test-upstream-key-2"},
                ],
            },
        ],
        **overrides,
    }


class Gateway:
    """What all topologies share."""

    client_key = "test-client-key"
    management_key = "test-management-key"

    def __init__(
        self, directory: Path, config: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.config_path = directory / "patchbay.yaml"
        self.config_path.write_text(yaml.safe_dump(dict(config)))
        self.port = free_port()
        self.management_port = free_port()
        self.env = {
            "PATCHBAY_INSTALLATION": f"t{secrets.token_hex(4)}",
            "PATCHBAY_DATA_DIR": str(directory / "data"),
            **(env or {}),
        }
        self.processes: dict[str, Process] = {}

    @property
    def base_url(self) -> str:
        """URL of the client port, without path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def management_url(self) -> str:
        """URL of the management port."""
        return f"http://127.0.0.1:{self.management_port}"

    def start(self) -> None:
        """Start everything at once, as an orchestrator does, and wait for readiness."""
        started = [p for p in self.processes.values() if not p.running]
        for process in started:
            process.start(wait=0)
        for process in started:
            if process.ready_url:
                process.wait_ready()

    def stop(self) -> None:
        """Stop all services at once, Valkey last; kill what does not stop."""
        for process in reversed(self.processes.values()):
            if process.running and process.name != "valkey":
                process.signal(signal.SIGTERM)
        for process in reversed(self.processes.values()):
            if process.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.stop()

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of `patchbay` against this gateway to its end."""
        return Verb(*arguments, env=self.management_env).end()

    @property
    def management_env(self) -> dict[str, str]:
        """What verbs need to find it."""
        return {
            "PATCHBAY_MANAGEMENT_URL": self.management_url,
            "PATCHBAY_MANAGEMENT_KEY": self.management_key,
        }

    def managed(self, what: str) -> Any:
        """Return what the management API says of *what*."""
        key = {"authorization": f"Bearer {self.management_key}"}
        return get(f"{self.management_url}/v0/management/{what}", key).json()

    def usage(self, by: str = "model") -> list[dict[str, Any]]:
        """Return `patchbay usage report --json`."""
        done = self.verb("usage", "report", "--json", "--by", by, "--since", "24h")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def headers(self) -> dict[str, str]:
        """Return the client's authorization header."""
        return {"authorization": f"Bearer {self.client_key}"}


class Up(Gateway):
    """`patchbay up` with its embedded Valkey."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        *,
        workers: int = 1,
    ) -> None:
        super().__init__(directory, config, env)
        self.processes["up"] = Process(
            "up",
            [
                PATCHBAY,
                "up",
                "--config",
                self.config_path,
                "--port",
                str(self.port),
                "--management-port",
                str(self.management_port),
                "--workers",
                str(workers),
            ],
            env=self.env,
            directory=directory,
            ready_url=f"{self.management_url}/readyz",
        )

    @property
    def ledger_path(self) -> Path:
        """The SQLite file."""
        return self.directory / "data" / "ledger.db"


class Services(Gateway):
    """One Valkey and the four services as processes over gRPC."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        *,
        schedulers: int = 1,
        executors: int = 1,
    ) -> None:
        """
        Args:
            directory: Of everything.
            config: As patchbay.yaml.
            env: For every process.
            schedulers: How many.
            executors: How many, all at one port on 127.0.0.1, 127.0.0.2 and so on.
        """
        super().__init__(directory, config, env)
        redis_port = free_port()
        self.redis_url = f"redis://127.0.0.1:{redis_port}/0"
        redis_directory = directory / "valkey"
        redis_directory.mkdir(exist_ok=True)
        self.processes["valkey"] = Process(
            "valkey",
            [
                redis_server.server(),
                "--bind",
                "127.0.0.1",
                "--port",
                str(redis_port),
                "--dir",
                redis_directory,
                "--appendonly",
                "yes",
                "--save",
                "",
                "--maxmemory-policy",
                "noeviction",
            ],
            env={},
            directory=directory,
        )
        scheduler_ports = [free_port() for _ in range(schedulers)]
        usage_port, executor_port = free_port(), free_port()
        keys = {
            f"PATCHBAY_{root}_KEY": secrets.token_hex(32)
            for root in ("STORE", "PLUGINS", "CLUSTER")
        }
        shared = {
            **keys,
            **self.env,
            "REDIS_URL": self.redis_url,
            "PATCHBAY_HOST": "127.0.0.1",
            "PATCHBAY_SCHEDULER_ADDRESS": ",".join(f"127.0.0.1:{p}" for p in scheduler_ports),
            "PATCHBAY_USAGE_ADDRESS": f"127.0.0.1:{usage_port}",
            "PATCHBAY_EXECUTORS_ADDRESS": ",".join(
                f"127.0.0.{i + 1}:{executor_port}" for i in range(executors)
            ),
        }
        for i, port in enumerate(scheduler_ports):
            self._service(f"scheduler{i}", "scheduler", shared, grpc_port=port)
        self._service("usage", "usage", shared, grpc_port=usage_port)
        for i in range(executors):
            self._service(
                f"executor{i}",
                "executors",
                {**shared, "PATCHBAY_HOST": f"127.0.0.{i + 1}"},
                grpc_port=executor_port,
            )
        self._service("edge", "edge", shared, grpc_port=free_port())

    def start(self) -> None:
        """Start everything and wait until the edge knows every executor replica."""
        super().start()
        self.wait_registered()

    def wait_registered(self, limit: float = READY) -> None:
        """Wait until each running executor is registered; a gateway with one replica is ready before."""
        wanted = sum(p.running for n, p in self.processes.items() if n.startswith("executor"))
        deadline = time.monotonic() + limit
        while True:
            plugins = self.managed("plugins")
            states = [[a["state"] for a in p["addresses"]].count("ready") for p in plugins]
            if states and min(states) >= wanted:
                return
            assert time.monotonic() < deadline, plugins
            time.sleep(0.05)  # polls another process

    @property
    def ledger_path(self) -> Path:
        """The SQLite file."""
        return self.directory / "data" / "usage" / "ledger.db"

    async def flush_redis(self) -> None:
        """FLUSHALL."""
        async with redis.asyncio.from_url(self.redis_url) as client:
            await client.flushall()

    def _service(self, name: str, verb: str, env: Mapping[str, str], *, grpc_port: int) -> None:
        health_port = self.management_port if verb == "edge" else free_port()
        host = env["PATCHBAY_HOST"]
        self.processes[name] = Process(
            name,
            [PATCHBAY, verb, "--config", self.config_path],
            env={
                **env,
                "PATCHBAY_DATA_DIR": str(self.directory / "data" / name),
                "PATCHBAY_GRPC_PORT": str(grpc_port),
                "PATCHBAY_HEALTH_PORT": str(health_port),
                "PATCHBAY_PORT": str(self.port),
                "PATCHBAY_MANAGEMENT_PORT": str(self.management_port),
            },
            directory=self.directory,
            ready_url=f"http://{host}:{health_port}/readyz",
        )
