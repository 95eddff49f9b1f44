"""Gateways to stop, kill and reconfigure, made once a session: whoever ends one leaves it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.harness.observing import NOWHERE
from tests.harness.topology import Services, Up, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`patchbay up`, not yet started."""
    gateway = Up(tmp_path_factory.mktemp("up"), make_config(NOWHERE))
    yield gateway
    gateway.stop()


@pytest.fixture
def up(made_up: Up) -> Up:
    """`patchbay up`, started again if an earlier test ended it."""
    made_up.start()
    return made_up


@pytest.fixture(scope="session")
def made_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The services, two of those that may be two."""
    gateway = Services(
        tmp_path_factory.mktemp("services"), make_config(NOWHERE), schedulers=2, executors=2
    )
    yield gateway
    gateway.stop()


@pytest.fixture
def services(made_services: Services) -> Services:
    """The services, all of them running."""
    made_services.start()
    return made_services
