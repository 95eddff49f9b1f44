"""What waits for usage plugins."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.fakes.journal_events import make_event

from patchbay.errors import Unavailable
from patchbay.plugin.v1 import usage_plugin_pb2
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot
from patchbay_gateway.usage.deliveries import Deliveries
from patchbay_gateway.usage.fan_out import FanOut, record_of

if TYPE_CHECKING:
    from patchbay_gateway.usage.ledger import Ledger

PLUGIN = PluginEntry("a")
LATER = 1 << 60
TOKENS = {"input_tokens": 10, "output_tokens": 5, "images": 2}


async def uids(ledger: Ledger, plugin: str = "a") -> list[str]:
    return [d.row.info.request_uid for d in await ledger.deliveries.due(plugin, LATER, 10)]


async def end(ledger: Ledger, request: int, sequence: int = 1) -> None:
    await ledger.record(
        [
            make_event("opened", request, sequence=sequence),
            make_event("settled", request, at=1, usage=TOKENS, sequence=sequence + 1),
        ]
    )


async def test_final_rows_wait_for_each_plugin_until_taken(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["a", "b"])
    await end(ledger, 1)
    await end(ledger, 2, 3)
    assert await ledger.deliveries.waiting() == {"a": 2, "b": 2}
    taken = await ledger.deliveries.due("a", LATER, 1)
    await ledger.deliveries.settle("a", taken, [])
    assert len(await uids(ledger, "a")) == 1
    assert len(await uids(ledger, "b")) == 2


async def test_open_rows_and_repetitions_are_no_news(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["a"])
    await ledger.record([make_event("opened", 1, sequence=1)])
    assert not await uids(ledger)
    settled = make_event("settled", 1, at=1, usage=TOKENS, sequence=2)
    await ledger.record([settled])
    await ledger.deliveries.settle("a", await ledger.deliveries.due("a", LATER, 10), [])
    await ledger.record([settled])
    await ledger.record([make_event("renewed", 1, n=1, at=1, usage=TOKENS, sequence=3)])
    assert not await uids(ledger)


async def test_settled_after_lost_is_told_again(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["a"])
    opened = make_event("opened", 1, sequence=1)
    await ledger.record([opened])
    assert await ledger.mark_lost([opened.uid], LATER) == 1
    (lost,) = await ledger.deliveries.due("a", LATER, 10)
    assert lost.row.outcome == "lost"
    await ledger.record([make_event("settled", 1, at=1, usage=TOKENS, sequence=2)])
    await ledger.deliveries.settle("a", [lost], [])
    (corrected,) = await ledger.deliveries.due("a", LATER, 10)
    assert corrected.row.outcome == "succeeded"


async def test_refused_row_waits_and_is_counted(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["a"])
    await end(ledger, 1)
    (row,) = await ledger.deliveries.due("a", LATER, 10)
    await ledger.deliveries.settle("a", [], [(row, LATER + 5)])
    assert not await uids(ledger)
    (again,) = await ledger.deliveries.due("a", LATER + 5, 10)
    assert again.tries == 1


async def test_who_is_followed_outlives_the_process(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["b", "a"])
    ledger.deliveries.plugins = ()
    await ledger.deliveries.load()
    assert list(ledger.deliveries.plugins) == ["a", "b"]


async def test_what_waits_for_a_plugin_that_went_is_forgotten(ledger: Ledger) -> None:
    await ledger.deliveries.follow(["a", "b"])
    await end(ledger, 1)
    await ledger.deliveries.follow(["b"])
    assert await ledger.deliveries.waiting() == {"b": 1}


async def test_row_recorded_right_after_a_plugin_is_followed_waits_for_it(ledger: Ledger) -> None:
    """The ledger's thread goes on before this loop hears that the plugin is followed."""
    written = threading.Event()
    following = [
        asyncio.create_task(ledger.deliveries.follow(["a"])),
        asyncio.create_task(end(ledger, 1)),
        asyncio.create_task(ledger._database.write(lambda _: written.set())),
    ]
    await asyncio.sleep(0)
    written.wait()
    await asyncio.gather(*following)
    assert await ledger.deliveries.waiting() == {"a": 1}


class Hung:
    """A usage plugin that never answers, known to everybody who asks."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def unary(self, *_: object) -> None:
        self.called.set()
        await asyncio.Event().wait()

    def of(self, *_: object) -> list[Hook]:
        return [Hook("a", "usage_plugin", PLUGIN, policy("usage_plugin"))]

    def declared(self, _: str) -> frozenset[str]:
        return frozenset()


async def test_fan_out_that_is_cancelled_while_the_database_is_away_has_ended(
    ledger: Ledger,
) -> None:
    """A process that stops would wait ten seconds for it."""

    class Away(Deliveries):
        async def settle(self, *_: object) -> None:
            raise Unavailable("the ledger's database is away")

    async def leads() -> bool:
        return True

    plugin, holder, away = Hung(), SnapshotHolder(), Away(ledger._database)
    holder.set(Snapshot(version=1, plugins=(PLUGIN,)))
    await ledger.deliveries.follow(["a"])
    await end(ledger, 1)
    await away.load()
    fan_out = FanOut(
        away,
        registry=cast("Any", plugin),
        hooks=cast("Any", plugin),
        calls=cast("Any", plugin),
        snapshots=holder,
        leads=leads,
        clock=ManualClock(2e9),
    )
    running = asyncio.create_task(fan_out.run())
    async with asyncio.timeout(60):
        await plugin.called.wait()
    running.cancel()
    # What waits for a clock that stands waits longer than this.
    await asyncio.wait([running], timeout=20)
    ended = running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
async def test_record_says_what_the_row_says(ledger: Ledger, outcome: str) -> None:
    await ledger.deliveries.follow(["a"])
    await ledger.record([make_event("settled", 1, at=1, usage=TOKENS, outcome=outcome, sequence=1)])
    (delivery,) = await ledger.deliveries.due("a", LATER, 10)
    record = record_of(delivery.row, lambda _: "api_key")
    assert record.attempt_uid.endswith("-1")
    assert record.request_id == record.attempt_uid[:-2]
    assert (record.provider, record.executor_type) == ("openai", "openai-compatible")
    assert (record.model, record.alias) == ("gpt", "")
    assert (record.api_key, record.auth_id, record.auth_type) == ("laptop", "main", "api_key")
    assert len(record.auth_index) == 12
    assert record.failed is (outcome != "succeeded")
    assert record.HasField("failure") is record.failed
    assert {i.unit: i.quantity for i in record.detail.items} == TOKENS
    assert record == usage_plugin_pb2.UsageRecord.FromString(record.SerializeToString())
