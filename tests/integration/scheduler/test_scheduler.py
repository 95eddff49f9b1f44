"""A scheduler and two of them on a real Valkey, healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.scheduler.conftest import acquire, events, eventually, report

from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from tests.integration.scheduler.conftest import Gateway


async def test_attempt_acquired_and_reported_is_journaled_and_its_lease_gone(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        response = await scheduler.Acquire(acquire(holder.current.version, "R-1"))
        lease = response.results[0].lease
        assert lease.attempt.credential_id == "one"
        assert await store.call("EXISTS", store.key("lease", "R-1")) == 1
        await scheduler.Report(report(lease))

        async def settled() -> bool:
            return len(await events(store)) == 2

        await eventually(settled)
        opened, settlement = await events(store)
        assert opened.kind == journal_pb2.EVENT_KIND_OPENED
        assert settlement.kind == journal_pb2.EVENT_KIND_SETTLED
        assert await store.call("EXISTS", store.key("lease", "R-1")) == 0
    await store.aclose()
