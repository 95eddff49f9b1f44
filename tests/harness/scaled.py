"""
A gateway of services that come and go: replicas behind names of a name server, as headless Services are.

Edges are several too; whoever asks chooses one, as a load balancer would. Not here: gateways whose parts are
fixed (topology.py), what becomes of answers (load.py).
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import redis
import yaml
from tests.harness import redis_server
from tests.harness.observing import get, until
from tests.harness.processes import PATCHBAY, Process, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.harness.name_server import NameServer

CLIENT_KEY = "test-client-key"
MANAGEMENT_KEY = "test-management-key"

# The third byte of loopback addresses, by kind of replica.
_NETS = {"executor": 1, "scheduler": 2}


class Replica(Process):
    """One process of a service, at an address of its own."""

    def __init__(self, kind: str, host: str, ports: Mapping[str, int], **process: Any) -> None:
        super().__init__(**process)
        self.kind = kind
        self.host = host
        self.ports = ports

    @property
    def address(self) -> str:
        """`host:port` of its gRPC."""
        return f"{self.host}:{self.ports['grpc']}"

    @property
    def base_url(self) -> str:
        """Of an edge's client port."""
        return f"http://{self.host}:{self.ports['client']}"

    def metrics(self) -> dict[str, float]:
        """Return series → value of /metrics."""
        page = get(f"http://{self.host}:{self.ports['health']}/metrics").text
        lines = [line for line in page.splitlines() if line and not line.startswith("#")]
        return {series: float(value) for series, _, value in (n.rpartition(" ") for n in lines)}


class Scaled:
    """
    Valkey, a usage service, and as many edges, schedulers and executors as are added.

    Args:
        directory: Of everything.
        config: As patchbay.yaml.
        names: Where replicas are found.
        redis_url: Of the caller's own server, or of its Sentinels; default one Valkey of this gateway.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        names: NameServer,
        *,
        redis_url: str = "",
    ) -> None:
        self.directory = directory
        self.config_path = directory / "patchbay.yaml"
        self.config_path.write_text(yaml.safe_dump(dict(config)))
        self._names = names
        self._grpc = {kind: free_port() for kind in ("executor", "scheduler")}
        self._installation = f"t{secrets.token_hex(4)}"
        # Of this gateway alone: others share the name server.
        self.service_names = {
            kind: f"{kind}s.{self._installation}.patchbay.test" for kind in self._grpc
        }
        redis_port, usage_port = free_port(), free_port()
        self.redis_url = redis_url or f"redis://127.0.0.1:{redis_port}/0"
        self._env = {
            **{f"PATCHBAY_{r}_KEY": secrets.token_hex(32) for r in ("STORE", "PLUGINS", "CLUSTER")},
            "PATCHBAY_INSTALLATION": self._installation,
            "PATCHBAY_NAME_SERVERS": names.address,
            "PATCHBAY_SCHEDULER_ADDRESS": f"{self.service_names['scheduler']}:{self._grpc['scheduler']}",
            "PATCHBAY_EXECUTORS_ADDRESS": f"{self.service_names['executor']}:{self._grpc['executor']}",
            "PATCHBAY_USAGE_ADDRESS": f"127.0.0.1:{usage_port}",
            "PATCHBAY_CREDENTIALS_DIR": str(directory / "credentials"),
            "REDIS_URL": self.redis_url,
        }
        self.replicas: list[Replica] = []
        self._stores = [] if redis_url else [self._make_valkey(redis_port)]
        self.usage = self._replica("usage", "127.0.0.1", {"grpc": usage_port})

    # -- replicas ---------------------------------------------------------------------------------

    def running(self, kind: str) -> list[Replica]:
        """Return the replicas of *kind* that run."""
        return [r for r in self.replicas if r.kind == kind and r.running]

    def make(self, kind: str, count: int = 1) -> list[Replica]:
        """Return *count* new replicas, not started, in no name."""
        made = []
        for _ in range(count):
            number = sum(r.kind == kind for r in self.replicas) + 1
            if kind == "edge":
                ports = {"grpc": free_port(), "client": free_port()}
                made.append(self._replica(kind, "127.0.0.1", ports))
            elif kind == "usage":
                made.append(self._replica(kind, "127.0.0.1", {"grpc": free_port()}))
            else:
                host = f"127.0.{_NETS[kind]}.{number}"
                made.append(self._replica(kind, host, {"grpc": self._grpc[kind]}))
        return made

    def name(self, replicas: Iterable[Replica]) -> None:
        """Let the name of their service have exactly these."""
        hosts: dict[str, list[str]] = {}
        for replica in replicas:
            hosts.setdefault(replica.kind, []).append(replica.host)
        for kind, found in hosts.items():
            self._names.name(self.service_names[kind], found)

    def tell(self, replicas: Sequence[Replica]) -> None:
        """Write their addresses where the operator does (`endpoints`)."""
        hosts = ",".join(f'"{replica.host}"' for replica in replicas)
        with redis.Redis.from_url(self.redis_url) as client:
            client.hset(self.key("endpoints"), f"{self.service_names['executor']}.", f"[{hosts}]")

    def key(self, *parts: str) -> str:
        """Return a key of this installation in Redis."""
        return ":".join(("pb1", f"{{{self._installation}}}", *parts))

    # -- life -------------------------------------------------------------------------------------

    def start(self, *, executors: int = 1, schedulers: int = 1, edges: int = 1) -> None:
        """Start everything at once, the replicas in their names, and wait for readiness."""
        named = [*self.make("executor", executors), *self.make("scheduler", schedulers)]
        self.name(named)
        for store in self._stores:
            store.start()
        ledgers = [r for r in self.replicas if r.kind == "usage"]
        run([*ledgers, *named, *self.make("edge", edges)])

    def stop(self) -> None:
        """Stop everything, Valkey last; kill what does not stop."""
        ending = [r for r in self.replicas if r.running]
        for replica in ending:
            replica.signal(signal.SIGTERM)
        for process in (*ending, *self._stores):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.stop()

    @property
    def ledger_path(self) -> Path:
        """The SQLite file."""
        return self.directory / "usage1" / "ledger.db"

    # -- asking -----------------------------------------------------------------------------------

    def headers(self) -> dict[str, str]:
        """Return the client's authorization header."""
        return {"authorization": f"Bearer {CLIENT_KEY}"}

    def managed(self, edge: Replica, what: str) -> Any:
        """Return what *edge*'s management API says of *what*."""
        url = f"http://{edge.host}:{edge.ports['health']}/v0/management/{what}"
        return get(url, {"authorization": f"Bearer {MANAGEMENT_KEY}"}).json()

    def executors(self, edge: Replica) -> dict[str, dict[str, Any]]:
        """Return address → what *edge* knows of the executor there."""
        (echo,) = (p for p in self.managed(edge, "plugins") if p["id"] == "echo")
        return {a["address"]: a for a in echo["addresses"]}

    def wait_ready(self, edge: Replica, replicas: Iterable[Replica], limit: float = 60.0) -> None:
        """Wait until *edge* may call each of the executors *replicas*."""
        wanted = {replica.address for replica in replicas}

        def ready() -> bool:
            found = self.executors(edge)
            return wanted <= {a for a, entry in found.items() if entry["state"] == "ready"}

        until(ready, limit, f"{edge.name} does not know all of {sorted(wanted)}")

    # -- making -----------------------------------------------------------------------------------

    def _replica(self, kind: str, host: str, ports: dict[str, int]) -> Replica:
        name = f"{kind}{sum(r.kind == kind for r in self.replicas) + 1}"
        ports["health"] = free_port()
        verb = {"executor": "executors"}.get(kind, kind)
        argv: list[str | Path] = [PATCHBAY, verb, "--config", self.config_path]
        if kind == "executor":
            argv += ["--plugins", "echo"]
        replica = Replica(
            kind,
            host,
            ports,
            name=name,
            argv=argv,
            env={
                **self._env,
                "PATCHBAY_HOST": host,
                "PATCHBAY_DATA_DIR": str(self.directory / name),
                "PATCHBAY_GRPC_PORT": str(ports["grpc"]),
                "PATCHBAY_HEALTH_PORT": str(ports["health"]),
                "PATCHBAY_PORT": str(ports.get("client", 0)),
                "PATCHBAY_MANAGEMENT_PORT": str(ports["health"]),
            },
            directory=self.directory,
            ready_url=f"http://{host}:{ports['health']}/readyz",
        )
        self.replicas.append(replica)
        return replica

    def _make_valkey(self, port: int) -> Process:
        options = {
            "--bind": "127.0.0.1",
            "--port": str(port),
            "--dir": str(self.directory),
            "--save": "",
            "--maxmemory-policy": "noeviction",
        }
        argv = [
            str(redis_server.server()),
            *(word for option in options.items() for word in option),
        ]
        return Process("valkey", argv, env={}, directory=self.directory)


def run(replicas: Sequence[Replica], limit: float = 90.0) -> None:
    """Start *replicas* at once and wait until each is ready."""
    for replica in replicas:
        replica.start(wait=0)
    for replica in replicas:
        replica.wait_ready(limit)
