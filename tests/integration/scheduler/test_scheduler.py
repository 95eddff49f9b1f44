"""One scheduler and two of them on a real Valkey that is well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.integration.scheduler.conftest import ROOTS, acquire, events, eventually, report

from patchbay import keys
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.secrets import SecretOpener
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.instances import list_instances

if TYPE_CHECKING:
    from tests.integration.scheduler.conftest import Gateway

    from patchbay_gateway.plugins.distribution import SnapshotHolder


def version_of(holder: SnapshotHolder) -> int:
    assert holder.current is not None
    return holder.current.version


async def test_attempt_acquired_and_reported_is_journaled_and_its_lease_gone(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, holder):
        response = await scheduler.Acquire(acquire(version_of(holder), "R-1"))
        lease = response.results[0].lease
        assert await store.call("EXISTS", store.key("lease", "R-1")) == 1
        await scheduler.Report(report(lease))

        async def settled() -> bool:
            return len(await events(store)) == 2

        await eventually(settled)
        opened, settlement = await events(store)
        assert opened.kind == journal_pb2.EVENT_KIND_OPENED
        assert opened.attempt == lease.attempt
        assert settlement.kind == journal_pb2.EVENT_KIND_SETTLED
        assert settlement.usage.items[0].quantity == 7
        assert settlement.settlement.outcome == journal_pb2.OUTCOME_SUCCEEDED
        assert [opened.sequence, settlement.sequence] == [1, 2]
        assert await store.call("EXISTS", store.key("lease", "R-1")) == 0


async def test_lease_carries_a_secret_that_only_the_plugin_opens(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, holder):
        response = await scheduler.Acquire(acquire(version_of(holder), "R-1"))
    lease = response.results[0].lease
    opener = SecretOpener([keys.sealing_key(plugin_key(ROOTS.plugins[0], "openai-compatible"))])
    opened = opener.open(lease.secret)
    assert opened["api_key"] == "test-key-one"
    assert list(lease.secret.allowed_origins) == ["http://127.0.0.1:9"]
    assert lease.attempt.provider == "fake"
    assert lease.attempt.upstream_model == "m"
    assert lease.attempt.plugin_id == "openai-compatible"
    assert lease.attempt.tenant == "default"
    assert lease.ttl.seconds == 60
    assert len(lease.auth_index) == 12


async def test_batch_with_good_and_bad_items_answers_each_in_order(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, holder):
        version = version_of(holder)
        request = acquire(version, "A-1", "B-1", "C-1", "D-1")
        request.items[1].attempt.snapshot_version = 5
        request.items[2].attempt.model = "nobody"
        request.items[3].exclude_credential_ids.extend(["one", "two", "three"])
        response = await scheduler.Acquire(request)
    first, second, third, fourth = response.results
    assert first.HasField("lease")
    assert (second.refusal.code, second.refusal.reason) == (10, "SNAPSHOT_UNKNOWN")
    assert (third.refusal.code, third.refusal.reason) == (5, "MODEL_NOT_FOUND")
    assert (fourth.refusal.code, fourth.refusal.reason) == (14, "CREDENTIALS_TRIED")


async def test_request_in_process_is_not_changed(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, holder):
        request = acquire(version_of(holder), "A-1")
        before = request.SerializeToString(deterministic=True)
        await scheduler.Acquire(request)
        assert request.SerializeToString(deterministic=True) == before


async def test_attempt_acquired_at_both_schedulers_gets_one_lease(gateway: Gateway):
    async with (
        gateway.scheduler("a") as (first, holder),
        gateway.scheduler("b") as (second, _),
    ):
        version = version_of(holder)
        await first.Acquire(acquire(version, "X-1"))
        mine = (await first.Acquire(acquire(version, "Y-1"))).results[0].lease
        again = (await second.Acquire(acquire(version, "Y-1"))).results[0].lease
        here = (await first.Acquire(acquire(version, "Y-1"))).results[0].lease
    # The second scheduler would have begun its rotation at the first credential.
    assert mine.attempt.credential_id == "three"
    for repeated in (again, here):
        assert repeated.attempt.credential_id == "three"
        assert repeated.secret.credential_id == "three"
        assert repeated.auth_index == mine.auth_index


async def test_attempts_at_the_same_time_share_calls_and_rotate(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, holder):
        version = version_of(holder)
        responses = await asyncio.gather(
            *[scheduler.Acquire(acquire(version, f"R{i}-1")) for i in range(30)]
        )
        used = [r.results[0].lease.attempt.credential_id for r in responses]
        assert {id_: used.count(id_) for id_ in used} == {"one": 10, "two": 10, "three": 10}
        await asyncio.gather(*[scheduler.Report(report(r.results[0].lease)) for r in responses])

        async def all_there() -> bool:
            return len(await events(store)) == 60

        await eventually(all_there)
        assert [event.sequence for event in await events(store)] == list(range(1, 61))


async def test_renewal_extends_the_lease_and_journals_new_usage_only(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, holder):
        lease = (await scheduler.Acquire(acquire(version_of(holder), "R-1"))).results[0].lease
        key = store.key("lease", "R-1")
        await store.call("PEXPIRE", key, 45_000)
        request = scheduler_pb2.RenewRequest(edge_id="edge")
        request.items.add(attempt=lease.attempt, n=1).usage.items.add(
            unit="output_tokens", quantity=3
        )
        gone = request.items.add(attempt=lease.attempt)
        gone.attempt.attempt_uid = "gone-1"
        alive = await scheduler.Renew(request)
        assert list(alive.alive) == [True, False]
        assert await store.call("PTTL", key) > 50_000
        renewals = [e for e in await events(store) if e.kind == journal_pb2.EVENT_KIND_RENEWED]
        assert [(e.n, e.usage.items[0].quantity) for e in renewals] == [(1, 3)]


async def test_refusal_of_a_request_is_journaled_without_a_lease(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, _):
        request = scheduler_pb2.ReportRequest(edge_id="edge")
        item = request.items.add()
        item.attempt.attempt_uid = "R-0"
        item.attempt.request_uid = "R"
        item.settlement.reason = "MODEL_NOT_FOUND"
        await scheduler.Report(request)
    # The end of a scheduler sends what waits.
    (event,) = await events(store)
    assert event.kind == journal_pb2.EVENT_KIND_REFUSED
    assert event.attempt.installation == gateway.installation


async def test_models_are_listed_with_their_providers(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, _):
        listed = await scheduler.ListModels(scheduler_pb2.ListModelsRequest())
        assert [(m.id, list(m.providers), m.owned_by) for m in listed.models] == [
            ("m", ["fake"], "fake")
        ]


async def test_channel_keys_are_those_of_known_plugins(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, _):
        some = await scheduler.ListChannelKeys(
            scheduler_pb2.ListChannelKeysRequest(plugin_ids=["echo", "stranger"])
        )
        every = await scheduler.ListChannelKeys(scheduler_pb2.ListChannelKeysRequest())
    expected = keys.channel_key(plugin_key(ROOTS.plugins[0], "echo"))
    assert [(k.plugin_id, k.key) for k in some.keys] == [("echo", expected)]
    assert {"echo", "openai-compatible"} <= {k.plugin_id for k in every.keys}


async def test_schedulers_tell_that_they_run(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler("a") as (_, holder), gateway.scheduler("b"):

        async def both() -> bool:
            versions = [instance.snapshot for instance in await list_instances(store)]
            return versions == [version_of(holder)] * 2

        await eventually(both)
        told = await list_instances(store)
        assert {i.kind for i in told} == {"scheduler"}
        assert {i.snapshot for i in told} == {version_of(holder)}
    assert await list_instances(store) == []
