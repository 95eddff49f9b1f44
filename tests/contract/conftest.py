"""One channel of each kind before one servicer: the contract suite runs over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.fakes import probe_service

from patchbay.server import Server
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from patchbay_gateway.kernel.channels.port import Channel

MESSAGE_LIMIT = 2 << 20


@dataclass
class Wire:
    """A channel, what it is, and the servicer at its end."""

    kind: str
    channel: Channel
    servicer: probe_service.ProbeServicer


@pytest.fixture(scope="session", autouse=True)
def described() -> None:
    probe_service.describe()


@pytest.fixture(params=["inprocess strict", "inprocess", "grpc"])
async def wire(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after the channel is closed
) -> AsyncIterator[Wire]:
    servicer = probe_service.ProbeServicer()
    servicers = {probe_service.SERVICE: servicer}
    if request.param != "grpc":
        strict = request.param.endswith("strict")
        local = InProcessChannel(servicers, strict=strict, message_limit=MESSAGE_LIMIT)
        yield Wire(request.param, local, servicer)
        servicer.go_on.set()
        await local.close()
        return
    server = Server(servicers, message_limit=MESSAGE_LIMIT)
    await server.start(f"unix:{tmp_path}/s")
    remote = RemoteChannel(f"unix:{tmp_path}/s", message_limit=MESSAGE_LIMIT)
    yield Wire("grpc", remote, servicer)
    servicer.go_on.set()
    await remote.close()
    await server.stop()
