"""The consumer and the sweeper over a stream in memory: order of steps, failures, pace."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.fakes.journal_events import START, make_bytes

from patchbay.errors import InvalidRequest, Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.usage.consumer import COUNT, Consumer
from patchbay_gateway.usage.stream import DeadLetter, Entry
from patchbay_gateway.usage.sweeper import Sweeper
from patchbay_gateway.usage.watermarks import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from patchbay_gateway.usage.events import Event


class FakeStream:
    """A stream of one consumer; `away` fails every call, `away_after_read` those that follow a read."""

    def __init__(self) -> None:
        self.new: list[Entry] = []
        self.given: list[Entry] = []
        self.others: list[Entry] = []
        self.dead: list[DeadLetter] = []
        self.published: dict[str, int] = {}
        self.log: list[str] = []
        self.away = self.away_after_read = False
        self.life = "one"
        self.behind = 0
        self.leases: set[str] = set()
        self._arrived = asyncio.Event()

    def add(self, *data: bytes) -> None:
        for each in data:
            self.new.append(Entry(f"{len(self.new) + len(self.given)}-{len(data)}".encode(), each))
        self._arrived.set()

    def _check(self) -> None:
        if self.away:
            raise Unavailable("Redis is not available", reason="REDIS_UNAVAILABLE")

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        if not self.new and block_ms:
            self._arrived.clear()
            await self._arrived.wait()
        self._check()
        taken, self.new = self.new[:count], self.new[count:]
        self.given += taken
        self.log.append(f"read {len(taken)}")
        self.away = self.away_after_read
        return taken

    def nudge(self) -> None:
        self._arrived.set()

    async def unacknowledged(self, count: int) -> list[Entry]:
        self._check()
        return self.given[:count]

    async def claim(self, count: int, idle_ms: int) -> list[Entry]:
        self._check()
        self.given += self.others
        claimed, self.others = self.others, []
        return claimed

    async def acknowledge(
        self, ids: Sequence[bytes], dead: Sequence[DeadLetter], watermarks: Mapping[str, int]
    ) -> None:
        self._check()
        self.dead += dead
        self.given = [entry for entry in self.given if entry.id not in ids]
        self.published |= watermarks
        self.log.append(f"acknowledge {len(ids)}")

    async def publish(self, watermarks: Mapping[str, int]) -> None:
        self._check()
        self.published |= watermarks

    async def epoch(self) -> str:
        self._check()
        return self.life

    async def held_by_others(self) -> int:
        return len(self.others)

    async def backlog(self) -> int:
        return self.behind

    async def leased(self, uids: Sequence[str]) -> set[str]:
        return self.leases & set(uids)

    async def dead_letters(self) -> int:
        return len(self.dead)


class FakeLedger:
    """Counts; refuses attempts of one request, and everything while it is away."""

    def __init__(self, stream: FakeStream) -> None:
        self._log = stream.log
        self.recorded: list[str] = []
        self.marks: dict[str, Progress] = {}
        self.refuses = "-"
        self.away = False
        self.silent: list[str] = []
        self.lost: list[tuple[Sequence[str], int]] = []

    async def record(
        self, events: Sequence[Event], *, skipped: Iterable[tuple[str, int]] = ()
    ) -> dict[str, Progress]:
        if self.away:
            raise Unavailable("the ledger's database: locked", reason="DATABASE")
        if any(self.refuses in event.uid for event in events):
            raise InvalidRequest("the ledger cannot hold this", reason="DATA")
        self._log.append(f"record {len(events)}")
        self.recorded += [event.uid for event in events]
        for writer, sequence in [*((e.writer, e.sequence) for e in events), *skipped]:
            if writer:
                self.marks[writer] = self.marks.get(writer, Progress()).committed([sequence])
        return dict(self.marks)

    async def watermarks(self) -> dict[str, Progress]:
        return self.marks

    async def skip_gaps(self, writers: Mapping[str, int]) -> dict[str, Progress]:
        for writer in writers:
            self.marks[writer] = self.marks[writer].without_gaps()
        return {writer: self.marks[writer] for writer in writers}

    async def silent_since(self, before: int, limit: int) -> list[str]:
        return self.silent

    async def mark_lost(self, uids: Sequence[str], before: int) -> int:
        self.lost.append((uids, before))
        return len(uids)


class NoPrices:
    async def ready(self, version: int) -> None:
        pass


class Scene:
    """A consumer that runs."""

    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.stream = FakeStream()
        self.ledger = FakeLedger(self.stream)
        self.ledger.refuses = "nobody"
        self.consumer = Consumer(
            self.stream,
            self.ledger,  # type: ignore[arg-type]  # a fake of the part that is used
            NoPrices(),
            clock=self.clock,
            linger=0.1,
        )

    async def rest(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    task = asyncio.create_task(made.consumer.run())
    await made.rest()
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def events(*requests: int) -> list[bytes]:
    return [make_bytes("settled", request, sequence=request) for request in requests]


async def test_batch_is_committed_before_it_is_acknowledged(scene: Scene) -> None:
    scene.stream.add(*events(1, 2))
    await scene.rest()
    assert scene.stream.log == ["read 2", "record 2", "acknowledge 2"]
    assert scene.stream.published == {"w1": 2}
    assert scene.consumer.trouble == ""


async def test_next_batch_gathers_for_the_linger(scene: Scene) -> None:
    scene.stream.add(*events(1))
    await scene.rest()
    scene.stream.add(*events(2))
    await scene.rest(0.05)
    scene.stream.add(*events(3))
    await scene.rest(0.04)
    assert scene.ledger.recorded.count("x") == 0
    assert scene.stream.log.count("read 1") == 1
    await scene.rest(0.02)
    assert scene.stream.log[-3:] == ["read 2", "record 2", "acknowledge 2"]


async def test_full_batch_is_followed_at_once(scene: Scene) -> None:
    scene.stream.add(*events(*range(1, COUNT + 2)))
    await scene.rest()
    assert [line for line in scene.stream.log if line.startswith("read")] == [
        f"read {COUNT}",
        "read 1",
    ]


async def test_database_away_leaves_entries_unacknowledged_until_it_is_back(scene: Scene) -> None:
    scene.ledger.away = True
    scene.stream.add(*events(1))
    await scene.rest()
    assert "locked" in scene.consumer.trouble
    assert scene.consumer.caught_up_at is None
    assert len(scene.stream.given) == 1
    scene.ledger.away = False
    await scene.rest(0.3)
    assert scene.stream.given == []
    assert scene.consumer.trouble == ""
    assert len(scene.ledger.recorded) == 1


async def test_redis_away_at_acknowledging_repeats_the_batch(scene: Scene) -> None:
    scene.stream.away_after_read = True
    scene.stream.add(*events(1))
    await scene.rest()
    assert len(scene.ledger.recorded) == 1
    scene.stream.away_after_read = False
    scene.stream.away = False
    await scene.rest(0.3)
    assert scene.stream.published == {"w1": 1}
    assert len(scene.ledger.recorded) == 2


async def test_event_that_the_database_refuses_is_the_only_one_put_aside(scene: Scene) -> None:
    scene.ledger.refuses = "0000005-"
    scene.stream.add(*events(*range(1, 9)))
    await scene.rest()
    assert [letter.reason for letter in scene.stream.dead] == ["the ledger cannot hold this"]
    assert len(scene.ledger.recorded) == 7
    assert scene.stream.published == {"w1": 8}


async def test_new_epoch_publishes_watermarks_again(scene: Scene) -> None:
    scene.stream.add(*events(1))
    await scene.rest(2)
    scene.stream.published.clear()
    scene.stream.life = "two"
    scene.stream.nudge()
    await scene.rest(2)
    assert scene.stream.published == {"w1": 1}


async def test_entries_of_others_that_died_are_taken_over(scene: Scene) -> None:
    scene.stream.others = [Entry(b"9-9", events(7)[0])]
    scene.stream.nudge()
    await scene.rest(6)
    scene.stream.nudge()
    await scene.rest(1)
    assert scene.stream.given == []
    assert len(scene.ledger.recorded) == 1


async def test_gap_is_given_up_when_nobody_can_fill_it(scene: Scene) -> None:
    scene.stream.add(*events(5))
    await scene.rest()
    assert scene.stream.published == {"w1": 0}
    for _ in range(3):
        await scene.rest(301)
        scene.stream.nudge()
        await scene.rest()
    assert scene.stream.published == {"w1": 5}


async def test_finish_takes_what_is_left(scene: Scene) -> None:
    scene.stream.given = [Entry(b"1-1", events(1)[0])]
    scene.stream.new = [Entry(b"2-1", events(2)[0])]
    await scene.consumer.finish(1.0)
    assert scene.stream.published == {"w1": 2}


async def test_finish_ends_when_redis_is_away(scene: Scene) -> None:
    scene.stream.away = True
    await scene.consumer.finish(1.0)
    assert scene.ledger.recorded == []


# -- sweeper --------------------------------------------------------------------------------------


@pytest.fixture
def sweeper(scene: Scene) -> Sweeper:
    return Sweeper(
        scene.stream,
        scene.ledger,  # type: ignore[arg-type]  # a fake of the part that is used
        scene.consumer,
        clock=scene.clock,
        lease_ttl=60,
        lease_grace=30,
    )


async def test_sweep_waits_for_calm_after_an_outage(scene: Scene, sweeper: Sweeper) -> None:
    scene.ledger.silent = ["a", "b"]
    assert await sweeper.sweep() == 0
    scene.stream.nudge()
    await scene.rest(29)
    assert await sweeper.sweep() == 0
    await scene.rest(2)
    scene.stream.nudge()
    await scene.rest(1)
    scene.stream.nudge()
    await scene.rest()
    scene.stream.leases = {"b"}
    assert await sweeper.sweep() == 0
    await scene.rest(1)
    scene.stream.nudge()
    await scene.rest()
    scene.stream.nudge()
    await scene.rest()
    assert await sweeper.sweep() == 1
    read_to = scene.consumer.caught_up_at
    assert read_to is not None
    assert scene.ledger.lost == [(["a"], int((read_to - 90) * 1e6))]


@pytest.mark.parametrize("reason", ["backlog", "others", "away"])
async def test_sweep_holds_while_something_may_be_on_its_way(
    scene: Scene, sweeper: Sweeper, reason: str
) -> None:
    scene.ledger.silent = ["a"]
    for _ in range(3):
        await scene.rest(40)
        scene.stream.nudge()
        await scene.rest()
    assert await sweeper.sweep() == 0
    for _ in range(2):
        await scene.rest(1)
        scene.stream.nudge()
        await scene.rest()
    scene.ledger.silent = ["a", "b"]
    assert await sweeper.sweep() == 1
    for _ in range(2):
        await scene.rest(1)
        scene.stream.nudge()
        await scene.rest()
    if reason == "backlog":
        scene.stream.behind = 3
    elif reason == "others":
        scene.stream.others = [Entry(b"1-1", b"")]
    else:
        scene.stream.away = True
        scene.stream.nudge()
        await scene.rest()
    assert await sweeper.sweep() == 0


async def test_attempt_that_ends_between_two_looks_is_not_lost(
    scene: Scene, sweeper: Sweeper
) -> None:
    """Long and silent, then its lease goes and its settlement comes: in the stream, not yet in the ledger."""
    for _ in range(3):
        await scene.rest(40)
        scene.stream.nudge()
        await scene.rest()
    scene.ledger.silent = ["a"]
    scene.stream.new = [Entry(b"1-1", events(1)[0])]  # nobody has told the consumer
    assert await sweeper.sweep() == 0
    scene.stream.nudge()
    await scene.rest(1)
    assert scene.ledger.recorded
    scene.ledger.silent = []
    for _ in range(2):
        await scene.rest(1)
        scene.stream.nudge()
        await scene.rest()
        assert await sweeper.sweep() == 0
    assert scene.ledger.lost == []
