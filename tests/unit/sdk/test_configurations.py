"""Configurations of a plugin that several processes of a gateway bring at the same time."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from patchbay.capability import Plugin
from patchbay.handshake import Configurations


class Slow(Plugin):
    """Takes its time to be configured."""

    id: ClassVar = "slow"
    configured: list[tuple[int, bytes]]
    config = b""

    def __init__(self) -> None:
        self.configured = []
        self.go = asyncio.Event()

    async def configure(self, config: bytes) -> None:
        self.configured.append((id(self), config))
        await self.go.wait()
        self.config = config


async def test_configuration_that_two_processes_bring_at_once_is_taken_once() -> None:
    plugin = Slow()
    configurations = Configurations([plugin])
    both = [asyncio.create_task(configurations.configure("slow", b"one")) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    plugin.go.set()
    assert await asyncio.gather(*both) == [plugin, plugin]
    assert plugin.configured == [(id(plugin), b"one")]


async def test_two_first_configurations_at_once_are_two_objects() -> None:
    """Else calls that name the one run with the other."""
    plugin = Slow()
    configurations = Configurations([plugin])
    both = [asyncio.create_task(configurations.configure("slow", c)) for c in (b"one", b"two")]
    for _ in range(3):
        await asyncio.sleep(0)
    plugin.go.set()
    one, two = await asyncio.gather(*both)
    assert isinstance(one, Slow)
    assert isinstance(two, Slow)
    assert (one.config, two.config) == (b"one", b"two")


async def test_configuration_that_was_given_up_holds_up_no_other() -> None:
    plugin = Slow()
    configurations = Configurations([plugin])
    first = asyncio.create_task(configurations.configure("slow", b"one"))
    await asyncio.sleep(0)
    second = asyncio.create_task(configurations.configure("slow", b"one"))
    await asyncio.sleep(0)
    first.cancel()
    plugin.go.set()
    assert await second is plugin
    with pytest.raises(asyncio.CancelledError):
        await first
