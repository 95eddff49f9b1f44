"""
Schedulers that share credentials, as real processes, with one Valkey, executors and a fake identity server.

There is no edge and no ledger: what is asked here is what the identity server saw and what the durable
records say. Not here: faults (tests/faults/test_refresh.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import yaml
from tests.harness.identity import Identity
from tests.harness.processes import PATCHBAY, Process, free_port

from patchbay.errors import PatchbayError
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.tokens import TokenSource
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.keys import service_key
from patchbay_gateway.kernel.valkey import find_server
from patchbay_gateway.scheduler.durable.directory import DirectoryStore
from patchbay_gateway.scheduler.main import SERVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from patchbay_gateway.kernel.channels.port import Method, Req, Res
    from patchbay_gateway.scheduler.durable.port import CredentialRecord, DurableStore


class Fleet:
    """
    Some schedulers and what they need.

    Args:
        directory: Of everything.
        schedulers: How many.
        families: One credential each, of the same id.
        timeout: Seconds that the identity server gets for one refresh.
    """

    def __init__(
        self,
        directory: Path,
        *,
        schedulers: int = 5,
        families: tuple[str, ...] = ("a",),
        timeout: float = 2.0,
    ) -> None:
        self.directory = directory
        self.families = families
        self.timeout = timeout
        self.identity = Identity(directory, families=families)
        self._config = directory / "patchbay.yaml"
        self.seeds = {name: directory / f"{name}.token" for name in families}
        for name in families:
            self.sow(name, f"test-refresh-{name}-0")
        self._config.write_text(yaml.safe_dump(self._configuration()))
        self._roots = self._make_roots()
        self._valkey_port, executors_port = free_port(), free_port()
        self.redis_url = f"redis://127.0.0.1:{self._valkey_port}/0"
        self._installation = f"t{secrets.token_hex(4)}"
        self._credentials = directory / "credentials"
        self._env = {
            **{f"PATCHBAY_{name}_KEY": root for name, root in self._roots.items()},
            "PATCHBAY_INSTALLATION": self._installation,
            "PATCHBAY_CREDENTIALS_DIR": str(self._credentials),
            "PATCHBAY_REFRESH_TIMEOUT": str(timeout),
            "PATCHBAY_EXECUTORS_ADDRESS": f"127.0.0.1:{executors_port}",
            "PATCHBAY_HOST": "127.0.0.1",
            "REDIS_URL": self.redis_url,
        }
        self.ports = [free_port() for _ in range(schedulers)]
        self.processes: dict[str, Process] = {"valkey": self._valkey()}
        self.processes["executors"] = self._service("executors", "executors", executors_port)
        for number, port in enumerate(self.ports):
            name = f"scheduler{number}"
            self.processes[name] = self._service(name, "scheduler", port, self._scheduler_env())
        self._reader: DurableStore | None = None

    # -- processes --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything at once and wait for readiness."""
        self.identity.process.start()
        for process in self.processes.values():
            process.start(wait=0)
        for process in self.processes.values():
            if process.ready_url:
                process.wait_ready()

    def stop(self) -> None:
        """Stop everything, Valkey and the identity server last; kill what does not stop."""
        services = [p for n, p in self.processes.items() if n != "valkey"]
        for process in services:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        for process in [*services, self.processes["valkey"], self.identity.process]:
            if process.running:
                with suppress(subprocess.TimeoutExpired):
                    process.stop()

    def sow(self, family: str, token: str) -> None:
        """Give a credential another seed."""
        draft = self.seeds[family].with_suffix(".draft")
        draft.write_text(token)
        draft.replace(self.seeds[family])

    # -- what there is ----------------------------------------------------------------------------

    def record(self, credential_id: str) -> CredentialRecord | None:
        """Return the durable record."""
        if self._reader is None:
            self._reader = self._open([bytes.fromhex(self._roots["STORE"])])
        stored = asyncio.run(self._reader.read(credential_id))
        return stored.record if stored is not None else None

    def wait_record(
        self, credential_id: str, condition: Callable[[CredentialRecord], bool], limit: float = 90.0
    ) -> CredentialRecord:
        """Wait until the record is as asked and return it."""
        found: list[CredentialRecord] = []

        def look() -> bool:
            record = self.record(credential_id)
            found[:] = [record] if record is not None else []
            return record is not None and condition(record)

        eventually(look, limit, lambda: (found, self.identity.presentations()[-4:]))
        return found[0]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory of records: nobody can write while this lasts."""
        descriptor = os.open(self._credentials / ".lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def lock_is_wanted(self) -> bool:
        """Whether a process waits for that lock."""
        inode = (self._credentials / ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and f":{inode} " in line for line in locks)

    def timers(self, which: str = "due") -> dict[str, float]:
        """Return the timers in Redis: credential id → instant, Unix seconds."""
        with redis.Redis(port=self._valkey_port) as client:
            key = f"pb1:{{{self._installation}}}:refresh:{which}"
            return {n.decode(): at / 1000 for n, at in client.zrange(key, 0, -1, withscores=True)}

    def flush_redis(self) -> None:
        """FLUSHALL."""
        with redis.Redis(port=self._valkey_port) as client:
            client.flushall()

    # -- calls ------------------------------------------------------------------------------------

    def refresh(
        self, credential_id: str, version: int, *schedulers: int
    ) -> list[int | PatchbayError]:
        """
        Ask schedulers at once for a version newer than *version*, as edges do after a 401.

        Returns their answers, or the errors, in order.
        """
        request = scheduler_pb2.RefreshCredentialRequest(
            credential_id=credential_id, version=version
        )

        async def ask_all() -> list[int | PatchbayError]:
            return [
                answer if isinstance(answer, PatchbayError) else answer.version
                for answer in await asyncio.gather(
                    *(self._call(n, methods.REFRESH_CREDENTIAL, request) for n in schedulers)
                )
            ]

        return asyncio.run(ask_all())

    def status(self, credential_id: str, scheduler: int) -> scheduler_pb2.RefreshStatus:
        """Return how one scheduler shows the refresh."""
        request = scheduler_pb2.ListCredentialsRequest(ids=[credential_id])
        answer = asyncio.run(self._call(scheduler, methods.LIST_CREDENTIALS, request))
        assert not isinstance(answer, PatchbayError), answer
        (found,) = answer.credentials
        return found.refresh

    async def _call(
        self, scheduler: int, method: Method[Req, Res], request: Req
    ) -> Res | PatchbayError:
        key = service_key(bytes.fromhex(self._roots["CLUSTER"]))
        channel = RemoteChannel(
            f"127.0.0.1:{self.ports[scheduler]}",
            metadata=TokenSource(key, SERVICE, "edge-test").metadata,
        )
        try:
            return await channel.unary(method, request, deadline=30)
        except PatchbayError as error:
            return error
        finally:
            await channel.close()

    def _open(self, roots: list[bytes]) -> DurableStore:
        return DirectoryStore(self._credentials, roots)

    # -- construction -----------------------------------------------------------------------------

    @staticmethod
    def _make_roots() -> dict[str, str]:
        return {name: secrets.token_hex(32) for name in ("STORE", "PLUGINS", "CLUSTER")}

    def _configuration(self) -> Mapping[str, Any]:
        return {
            "client_keys": [{"name": "tests", "key": "test-client-key"}],
            "providers": [
                {
                    "name": "fake",
                    "plugin": "openai-compatible",
                    "base_url": "http://127.0.0.1:9/v1",
                    "models": ["fake-model"],
                    "credentials": [
                        {
                            "id": name,
                            "oauth2": {
                                "token_url": self.identity.token_url,
                                "client_id": "test-client",
                                "refresh_token_file": str(self.seeds[name]),
                            },
                        }
                        for name in self.families
                    ],
                }
            ],
        }

    def _valkey(self) -> Process:
        directory = self.directory / "valkey"
        directory.mkdir()
        options = ["--bind", "127.0.0.1", "--port", str(self._valkey_port), "--dir", str(directory)]
        persistence = ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        return Process(
            "valkey", [find_server(), *options, *persistence], env={}, directory=self.directory
        )

    def _scheduler_env(self) -> Mapping[str, str]:
        return {}

    def _service(
        self, name: str, verb: str, port: int, env: Mapping[str, str] | None = None
    ) -> Process:
        health = free_port()
        return Process(
            name,
            [PATCHBAY, verb, "--config", self._config],
            env={
                **self._env,
                "PATCHBAY_DATA_DIR": str(self.directory / "data" / name),
                "PATCHBAY_GRPC_PORT": str(port),
                "PATCHBAY_HEALTH_PORT": str(health),
                **(env or {}),
            },
            directory=self.directory,
            ready_url=f"http://127.0.0.1:{health}/readyz",
        )


def eventually(
    condition: Callable[[], bool], limit: float = 90.0, told: Callable[[], object] = lambda: ""
) -> None:
    """
    Wait until *condition* holds; it asks other processes, which tell nobody.

    Raises:
        AssertionError: Not within *limit* seconds; with what *told* returns.
    """
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)
