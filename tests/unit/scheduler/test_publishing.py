"""What changes while a snapshot is on its way to Redis."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import Config
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.scheduler.watching import Configuration, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.plugins.snapshot import Snapshot

CONFIG = Config.model_validate({"providers": [{"name": "fake", "plugin": "echo"}]})


class Lock:
    """A Redis in which the lock is always free."""

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *_: object) -> bytes:
        return b"OK"

    async def script(self, *_: object) -> int:
        return 1


class Publisher:
    """Keeps what is published; something happens while the first is on its way."""

    def __init__(self) -> None:
        self.published: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.meanwhile: list[Callable[[], None]] = []

    async def read(self) -> Snapshot | None:
        return None

    async def publish(self, draft: Snapshot) -> Snapshot:
        if self.meanwhile:
            self.meanwhile.pop()()
        self.published.put_nowait(draft)
        return msgspec.structs.replace(draft, version=self.published.qsize())


def publishing(publisher: Publisher, extend: Callable[[Snapshot], Snapshot]) -> Configuration:
    return Configuration(
        Source(lambda: CONFIG, None, {}, Roots((b"s" * 32,), (), (b"c" * 32,)), lambda _: False),
        credentials=cast("Any", SimpleNamespace(replace=lambda _: None)),
        sow=nothing,
        holder=SnapshotHolder(),
        publisher=cast("Any", publisher),
        store=cast("Any", Lock()),
        clock=ManualClock(),
        extend=lambda draft, _: extend(draft),
    )


async def nothing(_: object) -> None:
    pass


async def test_what_extends_a_snapshot_while_it_is_published_is_published_next() -> None:
    """A credential that a login brought in that moment would be unknown until something else changes."""
    publisher, names = Publisher(), [""]
    configuration = publishing(
        publisher,
        lambda draft: msgspec.structs.replace(
            draft,
            providers=tuple(msgspec.structs.replace(p, name=names[-1]) for p in draft.providers),
        ),
    )

    def grown() -> None:
        names.append("grown")
        configuration.extended()

    publisher.meanwhile.append(grown)
    await configuration.start(CONFIG)
    assert [p.name for p in publisher.published.get_nowait().providers] == [""]
    running = asyncio.create_task(configuration.run())
    async with asyncio.timeout(60):
        again = await publisher.published.get()
    assert [p.name for p in again.providers] == ["grown"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_could_not_be_published_is_published_at_the_next_look() -> None:
    publisher = Publisher()
    configuration = publishing(publisher, lambda draft: draft)

    def away() -> None:
        raise Unavailable("Redis is away")

    publisher.meanwhile.append(away)
    await configuration.start(CONFIG)
    assert publisher.published.empty()
    running = asyncio.create_task(configuration.run())
    configuration.glance()
    async with asyncio.timeout(60):
        assert (await publisher.published.get()).providers
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
