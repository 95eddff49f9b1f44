"""What `patchbay doctor` says of servers that it cannot reach, over real sockets."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.reaching import unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener() -> Iterator[str]:
    """A server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_server_that_accepts_is_reached(listener: str) -> None:
    assert unreachable([f"http://{listener}/v1"]) == {}


def test_closed_port_is_told(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"

    assert unreachable([url]) == {url: f"127.0.0.1:{free_port}: Connection refused"}


def test_silent_servers_are_given_up_together(listener: str) -> None:
    urls = [f"https://{listener}/{i}" for i in range(60)]
    began = time.monotonic()

    found = unreachable(urls, 0.5)

    assert set(found) == set(urls)
    assert all(why == "no answer within 0.5 s" for why in found.values())
    assert time.monotonic() - began < 25, "one after the other it would be 30 s"


def test_name_that_does_not_exist_is_told() -> None:
    url = "https://nobody.invalid"

    why = unreachable([url])[url]

    assert "nobody.invalid cannot be resolved" in why or why.startswith("no answer")
