"""One gateway of real processes behind a name server of the tests' own, made once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.harness.name_server import NameServer
from tests.harness.observing import NOWHERE
from tests.harness.scaled import Scaled
from tests.harness.topology import make_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def names() -> Iterator[NameServer]:
    made = NameServer()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def made_gateway(names: NameServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    """One executor and one scheduler in their names, two edges, a usage service."""
    made = Scaled(tmp_path_factory.mktemp("scaled"), make_config(NOWHERE), names)
    made.start(edges=2)
    yield made
    made.stop()


@pytest.fixture
def gateway(made_gateway: Scaled, names: NameServer) -> Iterator[Scaled]:
    """The gateway, with one replica of each at least, and with a name server that tells the truth."""
    names.cache(False)
    yield made_gateway
    names.cache(False)
