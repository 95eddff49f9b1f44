"""The edge's integration tests run on the loop that serves; a client port of either adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop
from tests.integration.edge.client_port import Port

from patchbay_gateway.edge.asgi import AsgiConnections
from patchbay_gateway.edge.http1 import Connections

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[Connections, AsgiConnections])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[Port]:
    running = Port(request.param)
    async with running.server:
        yield running


@pytest.fixture
async def client(port: Port) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=port.url, timeout=60, verify=False) as made:
        yield made
