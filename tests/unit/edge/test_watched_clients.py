"""For what a connection is watched, when a client is slow in two ways at once (edge/http1.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from patchbay_gateway.edge.http1 import Connections, HttpProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

GET = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"


class Sweeper:
    """Remembers what the one connection is watched for."""

    def __init__(self) -> None:
        self.reason = ""

    def watch(self, _: Any, limit: float | None = None) -> None:
        self.reason = "what it takes" if limit is None else "its head"

    def unwatch(self, _: Any) -> None:
        self.reason = ""


class Transport:
    """Takes everything."""

    def get_extra_info(self, _: str) -> None:
        return None

    def write(self, _: bytes) -> None: ...

    def pause_reading(self) -> None: ...


@pytest.fixture
async def sweeper() -> Sweeper:
    return Sweeper()


@pytest.fixture
async def connection(sweeper: Sweeper) -> Any:
    """One whose first request is being answered."""

    async def serve(_: Any) -> None:
        await asyncio.Event().wait()

    shared = Connections(serve, cast("Any", sweeper), lambda: None)
    made = HttpProtocol(shared)
    made.connection_made(cast("Any", Transport()))
    made.data_received(GET)
    yield made
    made.connection_lost(None)
    for task in list(shared.tasks):
        task.cancel()
    await asyncio.gather(*shared.tasks, return_exceptions=True)


def halves() -> Iterator[bytes]:
    yield GET[:20]
    yield GET[20:]


async def test_client_that_takes_nothing_is_watched_whatever_it_sends(
    connection: HttpProtocol, sweeper: Sweeper
) -> None:
    connection.pause_writing()
    for half in halves():
        connection.data_received(half)
        assert sweeper.reason == "what it takes"
    connection.resume_writing()
    assert sweeper.reason == ""


async def test_client_that_takes_again_still_owes_the_rest_of_its_head(
    connection: HttpProtocol, sweeper: Sweeper
) -> None:
    first, rest = halves()
    connection.data_received(first)
    assert sweeper.reason == "its head"
    connection.pause_writing()
    connection.resume_writing()
    assert sweeper.reason == "its head"
    connection.data_received(rest)
    assert sweeper.reason == ""


async def test_client_that_takes_nothing_is_watched_after_what_is_no_http(
    connection: HttpProtocol, sweeper: Sweeper
) -> None:
    connection.pause_writing()
    connection.data_received(b"GET /a HT")
    connection.data_received(b"\0\0\0\r\n\r\n")
    assert sweeper.reason == "what it takes"
