"""
Faults: real processes under load, hurt, and the ledger compared with the upstream's own log.

`make test` runs them with outages and lease times shortened by configuration; `make test-faults` sets
PATCHBAY_TEST_FULL_LENGTH=1 and runs them at the lengths that are promised.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.harness.judge import Judge
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Lengths:
    """Seconds and counts of one run."""

    outage: float
    usage_away: float
    lease_ttl: float
    lease_grace: float
    renew_interval: float
    kills: int
    streams: int = 1000
    settle: float = 60.0
    slack: float = 0.3
    """What a busy machine may add to a promised time; three processes take turns."""

    @property
    def env(self) -> dict[str, str]:
        """The lease times as the processes read them."""
        return {
            "PATCHBAY_LEASE_TTL": str(self.lease_ttl),
            "PATCHBAY_LEASE_GRACE": str(self.lease_grace),
            "PATCHBAY_RENEW_INTERVAL": str(self.renew_interval),
        }


AT_FULL_LENGTH = os.environ.get("PATCHBAY_TEST_FULL_LENGTH") == "1"

SHORT = Lengths(
    outage=4.0,
    usage_away=4.0,
    lease_ttl=3.0,
    lease_grace=2.0,
    renew_interval=0.5,
    kills=2,
    slack=5.0,
)
FULL = Lengths(
    outage=30.0, usage_away=60.0, lease_ttl=15.0, lease_grace=5.0, renew_interval=4.0, kills=5
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each fault the time it needs at full length."""
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def lengths() -> Lengths:
    """How long this run hurts."""
    return FULL if AT_FULL_LENGTH else SHORT


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    """A provider that does as it is told."""
    fake = Upstream(tmp_path)
    fake.process.start()
    yield fake
    fake.process.kill()


@pytest.fixture
def make_up(tmp_path: Path, upstream: Upstream, lengths: Lengths) -> Iterator[Callable[..., Up]]:
    """Start `patchbay up`; stopped and checked for a clean end afterwards."""
    made: list[Up] = []

    def make(**config: object) -> Up:
        gateway = Up(tmp_path, make_config(upstream.url, **config), lengths.env)
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def make_services(
    tmp_path: Path, upstream: Upstream, lengths: Lengths
) -> Iterator[Callable[..., Services]]:
    """Start Valkey and the four services."""
    made: list[Services] = []

    def make(*, schedulers: int = 2, executors: int = 2, **config: object) -> Services:
        gateway = Services(
            tmp_path,
            make_config(upstream.url, **config),
            lengths.env,
            schedulers=schedulers,
            executors=executors,
        )
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def judge(upstream: Upstream, lengths: Lengths) -> Callable[..., Judge]:
    """Compare a gateway's ledger with the upstream's log."""

    def make(gateway: Up | Services) -> Judge:
        return Judge(gateway, upstream, settle=lengths.settle)

    return make
