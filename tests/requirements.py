"""
What tests need beyond Python, make, git and PyPI: named, probed, and listed when missing.

A test says `@pytest.mark.requires("docker")`, a fixture `need("postgres")`. What is missing skips the test,
and the end of the run lists it under "Not run on this machine". Any other skip fails the run: a test that
nobody runs anywhere is no test. Not here: fixtures.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PREFIX: Final = "requires "
_ROOT: Final = Path(__file__).resolve().parents[1]
# A hung daemon must not hang the tests; Helm may have to be fetched.
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something of the machine."""

    why: str
    """What is not tested without it."""
    probe: Callable[[], str]
    """Returns what is missing, '' when it is there."""


def _answers(*argv: str) -> str:
    """Return why the command *argv* does not succeed, '' when it does."""
    if shutil.which(argv[0]) is None:
        return f"{argv[0]} is not on PATH"
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return f"{' '.join(argv)} does not answer"
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return f"{' '.join(argv)} fails: {lines[-1][:160] if lines else done.returncode}"


def _first(*probes: Callable[[], str]) -> str:
    """Return '' if one of *probes* does, else what the last one misses."""
    missing = ""
    for probe in probes:
        if not (missing := probe()):
            return ""
    return missing


def _compose() -> str:
    return _answers("docker", "info") or _first(
        lambda: _answers("docker-compose", "version"),
        lambda: _answers("docker", "compose", "version"),
    )


def _postgres() -> str:
    for program in ("initdb", "pg_ctl"):
        if not shutil.which(program) and not any(
            Path("/usr/lib/postgresql").glob(f"*/bin/{program}")
        ):
            return f"{program} is not on PATH or in /usr/lib/postgresql"
    return ""


def _api_server() -> str:
    directory = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin")
    for program in ("etcd", "kube-apiserver"):
        if not os.access(directory / program, os.X_OK):
            return f"{program} is not in the directory that KUBEBUILDER_ASSETS names"
    return ""


def _control_plane() -> str:
    directory = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin")
    for program in ("kube-controller-manager", "kube-scheduler", "kwok"):
        if not os.access(directory / program, os.X_OK):
            return f"{program} is not in the directory that KUBEBUILDER_ASSETS names"
    return _api_server()


def _named(variable: str) -> str:
    return (
        "" if os.environ.get(variable) else f"{variable} names no command (tests/e2e/conftest.py)"
    )


def _pyright() -> str:
    program = Path(sys.executable).with_name("basedpyright")
    return "" if program.exists() else "basedpyright is not in this environment"


def _linux() -> str:
    return "" if sys.platform == "linux" else f"this is {sys.platform}"


def _proc() -> str:
    return "" if Path("/proc/self/fd").exists() else "there is no /proc"


REQUIREMENTS: Final[dict[str, Requirement]] = {
    "linux": Requirement("what only Linux's kernel offers", _linux),
    "proc": Requirement("memory and descriptors of processes", _proc),
    "docker": Requirement("images", lambda: _answers("docker", "info")),
    "compose": Requirement("docker-compose.yml on a real engine", _compose),
    "kubernetes": Requirement(
        "operator and charts against an API server",
        lambda: _answers("kubectl", "get", "--raw", "/readyz"),
    ),
    "kube-apiserver": Requirement(
        "the operator and its rules against a real API server", _api_server
    ),
    "kwok": Requirement(
        "rollouts by real controllers on nodes that only seem to be", _control_plane
    ),
    "cluster-api-server": Requirement(
        "a cluster whose API server stops under load", lambda: _named("PATCHBAY_E2E_API_SERVER")
    ),
    "cluster-kill": Requirement(
        "a leading operator that is killed on its node", lambda: _named("PATCHBAY_E2E_KILL")
    ),
    "cluster-dns": Requirement(
        "new pods where DNS caches for half a minute", lambda: _named("PATCHBAY_E2E_DNS")
    ),
    "helm": Requirement(
        "charts", lambda: _answers(str(_ROOT / "scripts" / "kube-tools"), "helm", "version")
    ),
    "go": Requirement("a plugin in another language", lambda: _answers("go", "version")),
    "node": Requirement("clients and peers on Node", lambda: _answers("node", "--version")),
    "pyright": Requirement("types of the SDK by a second checker", _pyright),
    "postgres": Requirement("the ledger on PostgreSQL", _postgres),
    "network-namespaces": Requirement(
        "networks that lose packets", lambda: _linux() or _answers("unshare", "-rn", "true")
    ),
}


@functools.cache
def missing(name: str) -> str:
    """
    Return why this machine lacks *name*, '' when it does not. Asked once a run.

    Raises:
        KeyError: No requirement of that name.
    """
    requirement = REQUIREMENTS[name]
    if name in os.environ.get("PATCHBAY_TEST_WITHOUT", "").split(","):
        return "PATCHBAY_TEST_WITHOUT names it"
    return requirement.probe()


def need(name: str) -> None:
    """Skip the running test unless this machine has *name*; for fixtures, which cannot be marked."""
    if why := missing(name):
        pytest.skip(f"{_PREFIX}{name}: {why}")


def lack(name: str, why: str) -> None:
    """Skip the running test, for *name* is here and of no use."""
    assert name in REQUIREMENTS
    pytest.skip(f"{_PREFIX}{name}: {why}")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "requires(name, ...): skip unless the machine has these")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Refuse unknown names before anything runs."""
    for item in items:
        for mark in item.iter_markers("requires"):
            if unknown := set(mark.args) - set(REQUIREMENTS):
                raise pytest.UsageError(f"{item.nodeid} requires unknown {sorted(unknown)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here."""
    for mark in item.iter_markers("requires"):
        for name in mark.args:
            need(name)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run for a skip that no requirement explains."""
    if exitstatus == pytest.ExitCode.OK and _unexplained(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List what was not run, by requirement, and what should not have been skipped."""
    by_name: dict[str, list[str]] = {}
    for node, reason in _skips(config):
        if reason.startswith(_PREFIX):
            by_name.setdefault(reason.removeprefix(_PREFIX), []).append(node)
    if by_name:
        terminalreporter.section("Not run on this machine")
        for reason, nodes in sorted(by_name.items()):
            name = reason.partition(":")[0]
            terminalreporter.line(
                f"{reason} ({REQUIREMENTS[name].why}; {len(nodes)} {'test' if len(nodes) == 1 else 'tests'})"
            )
            for node in sorted(nodes):
                terminalreporter.line(f"  {node}")
    if others := _unexplained(config):
        terminalreporter.section("Skipped without a named requirement", red=True)
        for node, reason in others:
            terminalreporter.line(f"{node}: {reason} (tests/requirements.py)", red=True)


def _skips(config: pytest.Config) -> list[tuple[str, str]]:
    """Return test or file, and reason, of each skip so far."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found = []
    for report in reporter.stats.get("skipped", ()) if reporter is not None else ():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found.append((report.nodeid, reason.removeprefix("Skipped: ")))
    return found


def _unexplained(config: pytest.Config) -> list[tuple[str, str]]:
    return [(n, r) for n, r in _skips(config) if not r.startswith(_PREFIX)]
