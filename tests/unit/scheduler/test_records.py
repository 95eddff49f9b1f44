"""How schedulers learn what others wrote."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.scheduler.durable.memory import MemoryStore
from patchbay_gateway.scheduler.durable.port import (
    CredentialRecord,
    RecordChanged,
    RecordUnreadable,
)
from patchbay_gateway.scheduler.records import LOOK_ALONE, LOOK_EVERY, Records

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Hub:
    """News between the schedulers of one test."""

    def __init__(self) -> None:
        self.available = True
        self.queues: list[asyncio.Queue[bytes]] = []

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *command: Any) -> int:
        if not self.available:
            raise Unavailable("away")
        for queue in self.queues:
            queue.put_nowait(command[2].encode())
        return len(self.queues)

    async def subscribe(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.queues.append(queue)
        yield None
        while True:
            yield await queue.get()


class World:
    """Two schedulers."""

    def __init__(self) -> None:
        self.clock, self.hub, self.store = ManualClock(), Hub(), MemoryStore()
        self.one, self.two = (
            Records(self.store, store=self.hub, clock=self.clock) for _ in range(2)
        )

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


async def test_change_is_known_to_others_at_once_and_told_to_listeners(world: World) -> None:
    heard: list[tuple[str, int]] = []
    world.two.on_change(lambda id_, r: heard.append((id_, r.version if r else -1)))
    watching = asyncio.create_task(world.two.watch())
    await world.settle()
    await world.one.update("a", lambda _: CredentialRecord("a", version=3))
    await world.settle()
    record = world.two.get("a")
    assert record is not None
    assert record.version == 3
    assert heard == [("a", 3)]
    watching.cancel()
    await asyncio.wait({watching})


async def test_change_without_news_is_found_by_looking(world: World) -> None:
    watching = asyncio.create_task(world.two.watch())
    await world.settle()
    world.hub.available = False
    await world.one.update("a", lambda _: CredentialRecord("a", version=3))
    await world.settle()
    await world.clock.advance(max(LOOK_EVERY, LOOK_ALONE))
    await world.settle()
    assert world.two.get("a") is not None
    stored = await world.store.read("a")
    assert stored is not None
    await world.store.delete("a", expected=stored.revision)
    await world.clock.advance(LOOK_EVERY)
    await world.settle()
    assert world.two.get("a") is None
    watching.cancel()
    await asyncio.wait({watching})


async def test_update_is_made_again_on_what_another_wrote(world: World) -> None:
    await world.one.update("a", lambda _: CredentialRecord("a", version=1))
    calls = 0

    def grow(record: CredentialRecord | None) -> CredentialRecord:
        nonlocal calls
        assert record is not None
        calls += 1
        return record.replace(version=record.version + 1)

    await asyncio.gather(*(records.update("a", grow) for records in (world.one, world.two) * 3))
    stored = await world.store.read("a")
    assert stored is not None
    assert stored.record.version == 7
    assert calls >= 6


async def test_update_that_changes_nothing_writes_nothing(world: World) -> None:
    stored = await world.one.update("a", lambda _: CredentialRecord("a"))
    assert await world.one.update("a", lambda _: None) == stored


async def test_update_gives_up_where_others_write_without_end(world: World) -> None:
    async def refuse(record: CredentialRecord, **_: Any) -> str:
        assert record.id == "a"
        raise RecordChanged("again")

    world.store.write = refuse  # type: ignore[method-assign] # others are faster each time
    with pytest.raises(RecordChanged, match="without end"):
        await world.one.update("a", lambda _: CredentialRecord("a"))


async def test_record_that_cannot_be_read_is_told_and_the_others_are_read(world: World) -> None:
    await world.store.write(CredentialRecord("a"), expected=None)
    await world.store.write(CredentialRecord("b"), expected=None)
    read = world.store.read

    async def partly(credential_id: str) -> Any:
        if credential_id == "a":
            raise RecordUnreadable("another key")
        return await read(credential_id)

    world.store.read = partly  # type: ignore[method-assign] # a damaged record
    await world.one.load()
    assert world.one.get("b") is not None
    assert world.one.get("a") is None
    assert world.one.problem("a") == "another key"
    world.store.read = read  # type: ignore[method-assign] # mended
    await world.one.load()
    assert world.one.problem("a") == ""


async def test_old_content_read_during_a_write_does_not_win(world: World) -> None:
    await world.one.update("a", lambda _: CredentialRecord("a", version=1))
    stored = await world.store.read("a")
    assert stored is not None
    read, slow = world.store.read, asyncio.Event()
    old = [stored]

    async def late(credential_id: str) -> Any:
        if old:
            found = old.pop()
            await slow.wait()
            return found
        return await read(credential_id)

    world.store.read = late  # type: ignore[method-assign] # a slow disk
    reading = asyncio.create_task(world.one.read("a"))
    await world.settle()
    await world.one.write(CredentialRecord("a", version=2), expected=stored.revision)
    slow.set()
    await reading
    record = world.one.get("a")
    assert record is not None
    assert record.version == 2


def held(method: Any, *events: asyncio.Event) -> Any:
    """Return *method* of a store whose first answers are made at once and come when *events* are set."""
    waiting = list(events)

    async def late(*args: Any, **kwargs: Any) -> Any:
        answer = await method(*args, **kwargs)
        if waiting:
            await waiting.pop(0).wait()
        return answer

    return late


async def test_record_written_while_revisions_are_listed_stays_known(world: World) -> None:
    """A login's credential would be gone for seconds: the list is older than the record."""
    heard: list[CredentialRecord | None] = []
    world.one.on_change(lambda _, record: heard.append(record))
    listed = asyncio.Event()
    world.store.revisions = held(world.store.revisions, listed)  # type: ignore[method-assign] # slow
    looking = asyncio.create_task(world.one.load())
    await world.settle()
    await world.one.update("a", lambda _: CredentialRecord("a", version=1))
    listed.set()
    await looking
    assert world.one.get("a") is not None
    assert None not in heard


async def test_record_read_twice_is_never_taken_back_to_what_was_read_first(world: World) -> None:
    await world.store.write(CredentialRecord("a", version=1), expected=None)
    first, second = asyncio.Event(), asyncio.Event()
    slowest = held(world.store.read, first, second)
    quick, world.store.read = world.store.read, slowest  # type: ignore[method-assign] # a slow disk
    versions: list[int] = []
    world.one.on_change(lambda _, record: versions.append(record.version if record else -1))

    async def others_write(version: int) -> None:
        stored = await quick("a")
        assert stored is not None
        await world.store.write(CredentialRecord("a", version=version), expected=stored.revision)
        world.store.read = quick  # type: ignore[method-assign] # this one is quick
        await world.one.read("a")
        world.store.read = slowest  # type: ignore[method-assign] # and the others slow again

    reading = asyncio.create_task(world.one.read("a"))
    await world.settle()
    await others_write(2)
    first.set()
    await world.settle()
    await others_write(3)
    second.set()
    await reading
    assert versions == [2, 3]


async def test_write_heard_of_late_does_not_hide_what_others_wrote_after_it(world: World) -> None:
    stored = await world.one.update("a", lambda _: CredentialRecord("a", version=1))
    assert stored is not None
    written = asyncio.Event()
    write = world.store.write
    world.store.write = held(write, written)  # type: ignore[method-assign] # a slow answer
    writing = asyncio.create_task(
        world.one.write(CredentialRecord("a", version=2), expected=stored.revision)
    )
    await world.settle()
    second = await world.store.read("a")
    assert second is not None
    await write(CredentialRecord("a", version=3), expected=second.revision)
    await world.one.read("a")
    written.set()
    await writing
    record = world.one.get("a")
    assert record is not None
    assert record.version == 3


async def test_removal_heard_of_late_does_not_hide_what_came_after_it(world: World) -> None:
    await world.one.update("a", lambda _: CredentialRecord("a", version=1))
    removed = asyncio.Event()
    world.store.delete = held(world.store.delete, removed)  # type: ignore[method-assign] # slow
    removing = asyncio.create_task(world.one.delete("a"))
    await world.settle()
    await world.store.write(CredentialRecord("a", version=2), expected=None)
    await world.one.read("a")
    removed.set()
    await removing
    assert world.one.get("a") is not None
