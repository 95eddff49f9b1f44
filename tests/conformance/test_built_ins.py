"""The executors process, as compose runs it, keeps every rule of the contract for each built-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.harness.processes import PATCHBAY, Process, free_port

from patchbay.testing.conformance import PASS, check
from patchbay.testing.requests import CANARY
from patchbay_gateway.executors.main import BUILT_IN
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from patchbay.testing.conformance import Report

ROOT = bytes(range(32))
PROVIDERS = frozenset({"openai-compatible", "claude", "gemini"})
SEEN = (
    "streams.order", "streams.backpressure", "streams.cancellation", "calls.cancellation",
    "provider.once", "provider.failure", "provider.truncated", "provider.secret",
)  # fmt: skip
"""Rules that show at a provider."""


@dataclass(frozen=True)
class Executors:
    """The process and where it listens."""

    process: Process
    address: str


@pytest.fixture(scope="module")
def executors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executors]:
    """One process with all of them; its log is looked through when all is done."""
    directory: Path = tmp_path_factory.mktemp("executors")
    health, port = free_port(), free_port()
    process = Process(
        "executors",
        [
            PATCHBAY, "executors", "--data-dir", directory / "data",
            "--host", "127.0.0.1", "--grpc-port", str(port), "--health-port", str(health),
        ],
        env={"PATCHBAY_PLUGINS_KEY": ROOT.hex()},
        directory=directory,
        ready_url=f"http://127.0.0.1:{health}/readyz",
    )  # fmt: skip
    process.start()
    yield Executors(process, f"127.0.0.1:{port}")
    process.stop()
    log = process.log.read_bytes()
    assert CANARY.encode() not in log
    assert not [id_ for id_ in BUILT_IN if plugin_key(ROOT, id_).hex().encode() in log]


@pytest.mark.parametrize("plugin_id", BUILT_IN)
async def test_built_in_keeps_the_contract(plugin_id: str, executors: Executors) -> None:
    report: Report = await check(executors.address, plugin_id, plugin_key(ROOT, plugin_id))
    assert report.passed, report.table()
    if plugin_id in PROVIDERS:
        assert {r.id for r in report.results if r.result == PASS} >= set(SEEN), report.table()
