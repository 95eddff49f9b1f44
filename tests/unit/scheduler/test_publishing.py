"""What changes while a snapshot is on its way to Redis."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from patchbay.errors import FailedPrecondition, Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import Config
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.scheduler.watching import Configuration, Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def publishing(
    publisher: Publisher,
    extend: Callable[[Snapshot], Snapshot],
    *,
    path: Path | None = None,
    load: Callable[[], Config] = lambda: CONFIG,
    store: Lock | None = None,
    parsed: Callable[[], dict[str, Any]] = dict,
    grown: Callable[[Callable[[], None]], None] = lambda _: None,
) -> Configuration:
    return Configuration(
        Source(load, path, {}, Roots((b"s" * 32,), (), (b"c" * 32,)), lambda _: False),
        credentials=cast("Any", SimpleNamespace(replace=lambda _: None)),
        sow=nothing,
        holder=SnapshotHolder(),
        publisher=cast("Any", publisher),
        store=cast("Any", store or Lock()),
        clock=ManualClock(),
        parsed=parsed,
        extend=lambda draft, _: extend(draft),
        grown=grown,
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


async def test_what_grows_while_the_first_snapshot_is_published_is_published_next() -> None:
    """A login elsewhere, heard of in the moment in which this scheduler starts."""
    publisher = Publisher()
    listeners: list[Callable[[], None]] = []
    configuration = publishing(publisher, lambda draft: draft, grown=listeners.append)

    def elsewhere() -> None:
        listeners.pop()()

    publisher.meanwhile.append(elsewhere)
    await configuration.start(CONFIG)
    assert not listeners
    publisher.published.get_nowait()
    running = asyncio.create_task(configuration.run())
    async with asyncio.timeout(60):
        await publisher.published.get()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_problem_of_publishing_is_told_until_it_is_over() -> None:
    publisher = Publisher()
    configuration = publishing(publisher, lambda draft: draft)

    def newer() -> None:
        raise FailedPrecondition("published by a newer release")

    publisher.meanwhile.append(newer)
    await configuration.start(CONFIG)
    assert [p for p in configuration.problems if "newer release" in p]
    publisher.meanwhile.append(newer)
    configuration.look()
    running = asyncio.create_task(configuration.run())
    async with asyncio.timeout(60):
        while publisher.meanwhile:  # noqa: ASYNC110 - a thread reads the file
            await asyncio.sleep(0)
    assert [p for p in configuration.problems if "newer release" in p]
    configuration.glance()
    async with asyncio.timeout(60):
        await publisher.published.get()
    for _ in range(5):
        await asyncio.sleep(0)
    assert configuration.problems == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_publishing_that_is_cancelled_while_redis_is_away_has_ended() -> None:
    class Away(Lock):
        async def script(self, *_: object) -> int:
            raise Unavailable("Redis is away")

    publisher, begun = Publisher(), asyncio.Event()

    async def publish(draft: Snapshot) -> Snapshot:
        begun.set()
        await asyncio.Event().wait()
        return draft

    publisher.publish = publish  # type: ignore[method-assign] # Redis hangs
    configuration = publishing(publisher, lambda draft: draft, store=Away())
    starting = asyncio.create_task(configuration.start(CONFIG))
    async with asyncio.timeout(60):
        await begun.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert starting.cancelled()


async def test_file_that_changes_while_it_is_taken_is_taken_again(tmp_path: Path) -> None:
    """The second of two quick changes would wait for the third."""
    path = tmp_path / "patchbay.yaml"
    path.write_text("one")
    publisher = Publisher()

    def load() -> Config:
        name = path.read_text()
        return Config.model_validate({"providers": [{"name": name, "plugin": "echo"}]})

    configuration = publishing(publisher, lambda draft: draft, path=path, load=load)
    await configuration.start(load())
    publisher.published.get_nowait()
    publisher.meanwhile.append(lambda: cast("None", path.write_text("third")))
    path.write_text("second")
    running = asyncio.create_task(configuration.run())
    names = []
    for _ in range(2):
        configuration.glance()
        async with asyncio.timeout(60):
            snapshot = await publisher.published.get()
        names.append(snapshot.providers[0].name)
    assert names == ["second", "third"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_file_that_changed_between_its_reading_and_the_start_is_taken(tmp_path: Path) -> None:
    """A process reads it first of all, and may start for seconds."""
    path = tmp_path / "patchbay.yaml"
    path.write_text("first")
    publisher = Publisher()

    def load() -> Config:
        name = path.read_text()
        return Config.model_validate({"providers": [{"name": name, "plugin": "echo"}]})

    configuration = publishing(publisher, lambda draft: draft, path=path, load=load)
    read = load()
    path.write_text("second")
    await configuration.start(read)
    assert publisher.published.get_nowait().providers[0].name == "first"
    running = asyncio.create_task(configuration.run())
    configuration.glance()
    async with asyncio.timeout(60):
        assert (await publisher.published.get()).providers[0].name == "second"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_file_named_by_a_configuration_that_is_not_used_is_looked_for(tmp_path: Path) -> None:
    prices, wanted = tmp_path / "prices.yaml", [CONFIG]
    publisher = Publisher()
    configuration = publishing(publisher, lambda draft: draft, load=lambda: wanted[0])
    await configuration.start(CONFIG)
    publisher.published.get_nowait()
    document = {"usage": {"prices": str(prices)}, "providers": [{"name": "new", "plugin": "echo"}]}
    wanted[0] = Config.model_validate(document)
    configuration.look()
    running = asyncio.create_task(configuration.run())
    async with asyncio.timeout(60):
        while not configuration.problems:  # noqa: ASYNC110 - a thread reads the file
            await asyncio.sleep(0)
    prices.write_text("[]")
    configuration.glance()
    async with asyncio.timeout(60):
        assert (await publisher.published.get()).providers[0].name == "new"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_secret_that_is_gone_when_plugins_have_read_a_file_ends_nothing(
    tmp_path: Path,
) -> None:
    """The process went down for it."""
    prices, looks = tmp_path / "prices.yaml", list[int]()
    prices.write_text("[]")
    config = Config.model_validate(
        {"usage": {"prices": str(prices)}, "providers": [{"name": "fake", "plugin": "echo"}]}
    )
    publisher = Publisher()

    def parsed() -> dict[str, Any]:
        looks.append(1)
        return {}

    configuration = publishing(publisher, lambda draft: draft, load=lambda: config, parsed=parsed)
    await configuration.start(config)
    publisher.published.get_nowait()
    prices.unlink()
    running = asyncio.create_task(configuration.run())
    configuration.glance()
    async with asyncio.timeout(60):
        while not configuration.problems:  # noqa: ASYNC110 - a thread reads the file
            await asyncio.sleep(0)
    configuration.reparsed()
    before = len(looks)
    async with asyncio.timeout(60):
        while (
            len(looks) < before + 2 and not running.done()
        ):  # the second time, the first has failed
            configuration.glance()
            await asyncio.sleep(0)
    assert not running.done()
    prices.write_text("[]")
    configuration.glance()
    async with asyncio.timeout(60):
        await publisher.published.get()
    assert configuration.problems == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
