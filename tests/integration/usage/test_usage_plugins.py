"""Usage plugins hear of every final row, whatever dies, and the ledger does not wait for them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar

from tests.fakes.journal_events import make_bytes
from tests.harness.ports import free_port
from tests.integration.usage.conftest import Bench, eventually

from patchbay import errors
from patchbay.serve import PluginServer
from patchbay.usage_plugin import UsagePlugin, UsageRecord
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.channel_keys import derived
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = b"p" * 32
TOKENS = {"input_tokens": 10, "output_tokens": 5}


class Sink(UsagePlugin):
    id: ClassVar = "sink"
    name: ClassVar = "Sink"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.refuses: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.configured: list[bytes] = []

    async def configure(self, config: bytes) -> None:
        self.configured.append(config)

    async def handle_usage(self, record: UsageRecord) -> None:
        await self.hold.wait()
        self.records.append(record)
        if record.attempt_uid in self.refuses:
            raise errors.Internal("not now")

    @property
    def uids(self) -> list[str]:
        """Attempts of all records, in order."""
        return [record.attempt_uid for record in self.records]

    async def heard(self, count: int, *, within: float = 90.0) -> None:
        """Return when *count* records have come."""

        async def enough() -> bool:
            return len(self.records) >= count

        await eventually(enough, within=within)


@contextlib.asynccontextmanager
async def serving(sink: Sink, port: int = 0) -> AsyncIterator[int]:
    """Serve the plugin; yield its port."""
    server = PluginServer([sink], {sink.id: [plugin_key(ROOT, sink.id)]})
    try:
        # Nobody else's while the plugin is away.
        yield await server.start(f"127.0.0.1:{port or free_port()}")
    finally:
        sink.hold.set()
        await server.stop()


def declare(
    bench: Bench, port: int, version: int = 2, config: str = "", deadline: float = 60.0
) -> None:
    """Publish the plugin."""
    address = AddressEntry(f"127.0.0.1:{port}")
    timeouts = {"usage_plugin": deadline}
    entry = PluginEntry("sink", addresses=(address,), config=config, timeouts=timeouts)
    bench.holder.set(Snapshot(version=version, plugins=(entry,)))


def pair(request: int, sequence: int) -> list[bytes]:
    """Return opened and settled of one attempt."""
    return [
        make_bytes("opened", request, sequence=sequence),
        make_bytes("settled", request, at=1, usage=TOKENS, sequence=sequence + 1),
    ]


async def test_every_final_row_is_told_once_in_order(bench: Bench) -> None:
    sink = Sink()
    async with serving(sink) as port:
        declare(bench, port)
        async with bench.service(plugin_keys=derived([ROOT])):
            for n in range(1, 101):
                await bench.send(pair(n, 2 * n - 1))
            await sink.heard(100)
            await bench.reaches(200)
    uids = [record.attempt_uid for record in sink.records]
    assert len(set(uids)) == 100
    assert uids == sorted(uids)
    first = sink.records[0]
    assert (first.outcome, first.failed, first.tenant) == ("succeeded", False, "default")
    assert first.detail is not None
    assert first.detail.quantity("input_tokens") == 10
    assert first.latency is not None


async def test_plugin_that_registers_again_hears_nothing_twice(bench: Bench) -> None:
    """With another configuration, and as a process of its own that takes the former's place."""
    before, after = Sink(), Sink()
    async with contextlib.AsyncExitStack() as until_restart:
        port = await until_restart.enter_async_context(serving(before))
        declare(bench, port)
        async with bench.service(plugin_keys=derived([ROOT])) as servicer:

            async def reconfigured() -> bool:
                return before.configured[-1] == b"a: 1"

            async def all_taken() -> bool:
                return not any((await servicer._ledger.deliveries.waiting()).values())

            await bench.send(pair(1, 1))
            await before.heard(1)
            declare(bench, port, version=3, config="a: 1")
            await eventually(reconfigured)
            await bench.send(pair(2, 3))
            await before.heard(2)
            await eventually(all_taken)
            await until_restart.aclose()
            async with serving(after, port):
                await bench.send(pair(3, 5))
                await after.heard(1)
                await eventually(all_taken)
    assert after.configured == [b"a: 1"]
    uids = [record.attempt_uid for record in (*before.records, *after.records)]
    assert uids == [f"01J{n:023d}-1" for n in (1, 2, 3)]


async def test_rows_wait_for_a_plugin_that_is_away_and_over_a_restart(bench: Bench) -> None:
    sink = Sink()
    async with serving(sink) as port:
        declare(bench, port)
        async with bench.service(plugin_keys=derived([ROOT])):
            await bench.send(pair(1, 1))
            await sink.heard(1)
    async with bench.service(plugin_keys=derived([ROOT])):
        await bench.send(pair(2, 3))
        await bench.reaches(4)
    async with bench.service(plugin_keys=derived([ROOT])) as servicer:
        await bench.send(pair(3, 5))
        await bench.reaches(6)
        assert servicer.health() is None
        async with serving(sink, port):
            await sink.heard(3)
    assert [r.attempt_uid for r in sink.records] == sorted(r.attempt_uid for r in sink.records)


async def test_plugin_that_hangs_does_not_hold_the_ledger(bench: Bench) -> None:
    sink = Sink()
    sink.hold.clear()
    async with serving(sink) as port:
        # So long that a ledger that waited for it would not be through before it is let go.
        declare(bench, port, deadline=600.0)
        async with bench.service(plugin_keys=derived([ROOT])):
            for n in range(1, 4):
                await bench.send(pair(n, 2 * n - 1))
            await bench.reaches(6)
            assert not sink.records
            sink.hold.set()
            await sink.heard(3)


async def test_row_that_is_refused_comes_again_and_others_go_on(bench: Bench) -> None:
    sink = Sink()
    first, second = (f"01J{n:023d}-1" for n in (1, 2))
    sink.refuses = {first}
    async with serving(sink) as port:
        declare(bench, port)
        async with bench.service(plugin_keys=derived([ROOT])):
            await bench.send([*pair(1, 1), *pair(2, 3)])

            async def second_came() -> bool:
                return second in sink.uids

            await eventually(second_came)
            sink.refuses.clear()
            told = len(sink.records)
            await sink.heard(told + 1)
    uids = sink.uids
    assert uids[0] == first
    assert uids.count(second) == 1
    assert set(uids[told:]) == {first}
