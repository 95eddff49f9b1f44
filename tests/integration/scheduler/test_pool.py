"""Two schedulers and one pool: cooldowns, probes, caps, resets and lists, on a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.scheduler.conftest import FILE, USUAL, acquire, events, eventually, report

from patchbay.errors import FailedPrecondition, NotFound
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import ValkeyProcess
    from tests.integration.scheduler.conftest import Gateway

    from patchbay_gateway.scheduler.service import SchedulerServicer

ONE = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m, n]
    credentials: [{id: one, api_key: test-key-one%s}]
routing: {queue: {length: 0}}
"""
QUOTA = scheduler_pb2.FAULT_KIND_QUOTA


@contextlib.asynccontextmanager
async def two(
    gateway: Gateway, config: str = ONE % "", **more: Any
) -> AsyncIterator[tuple[SchedulerServicer, SchedulerServicer, int]]:
    """Run two schedulers; yield them and the version of their snapshot."""
    async with (
        gateway.scheduler("a", config, **more) as (first, holder),
        gateway.scheduler("b", config, **more) as (second, _),
    ):
        assert holder.current is not None
        yield first, second, holder.current.version


# A Report is answered when it is in the write-ahead file; the same scheduler's next call, such as the
# Acquires named flush, brings it to Redis first.
async def ask(
    scheduler: SchedulerServicer, version: int, uid: str, **more: Any
) -> scheduler_pb2.AcquireResult:
    return (await scheduler.Acquire(acquire(version, uid, **more))).results[0]


def fault(
    lease: scheduler_pb2.Lease,
    kind: scheduler_pb2.FaultKind.ValueType = QUOTA,
    retry_after: float = 0.0,
    **more: Any,
) -> scheduler_pb2.ReportRequest:
    """Return the report of an attempt that its provider refused."""
    request = scheduler_pb2.ReportRequest(edge_id="edge")
    item = request.items.add(attempt=lease.attempt)
    item.settlement.outcome = journal_pb2.OUTCOME_FAILED
    item.fault.kind = kind
    item.fault.scope = more.pop("scope", error_pb2.FAULT_SCOPE_MODEL)
    item.fault.error.http_status = 429
    item.fault.error.message = "slow down"
    if retry_after:
        item.fault.retry_after.FromMilliseconds(int(retry_after * 1000))
    return request


async def states(scheduler: SchedulerServicer) -> dict[tuple[str, str], tuple[str, str]]:
    listed = await scheduler.ListCredentials(scheduler_pb2.ListCredentialsRequest())
    return {(c.id, m.model): (m.state, m.reason) for c in listed.credentials for m in c.models}


async def test_cooldown_binds_the_other_scheduler_from_its_next_lease_on(gateway: Gateway):
    async with two(gateway) as (a, b, version):
        lease = (await ask(a, version, "R1-1")).lease
        await a.Report(fault(lease, retry_after=600))
        mine = await ask(a, version, "R2-1")
        theirs = await ask(b, version, "R3-1")
        for refused in (mine.refusal, theirs.refusal):
            assert (refused.code, refused.reason) == (8, "MODEL_COOLDOWN")
            assert 500 < refused.retry_after.ToMilliseconds() / 1000 <= 600
            assert (refused.last_error.http_status, refused.last_error.message) == (
                429,
                "slow down",
            )
        # What is refused leaves no trace in the journal.
        assert {e.attempt.attempt_uid for e in await events(gateway.store())} <= {"R1-1"}
        # The other model of the credential serves on.
        assert (await ask(b, version, "R4-1", model="n")).HasField("lease")


async def test_twenty_way_race_for_the_probe_has_one_winner(gateway: Gateway):
    async with two(gateway) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=0.3))
        await ask(a, version, "flush-1", model="n")  # which rests never, so this is no probe
        await asyncio.sleep(0.35)  # the window is real time, as the race is
        results = await asyncio.gather(
            *[ask(s, version, f"{n}{i}-1") for i in range(20) for n, s in (("A", a), ("B", b))]
        )
        winners = [r.lease for r in results if r.HasField("lease")]
        assert [w.probe for w in winners] == [True]
        assert {r.refusal.reason for r in results if r.HasField("refusal")} == {"MODEL_COOLDOWN"}
        assert (await states(b))["one", "m"] == ("probing", "QUOTA")
        await b.Report(report(*winners))
        assert not (await ask(b, version, "after-1")).lease.probe

        async def open_again() -> bool:
            return (await states(a))["one", "m"] == ("ready", "")

        await eventually(open_again)
        assert (await ask(a, version, "after-2")).HasField("lease")


async def test_probe_that_streams_output_opens_the_credential(gateway: Gateway):
    async with two(gateway) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=0.2))
        await ask(a, version, "flush-1", model="n")
        await asyncio.sleep(0.25)  # see above
        probe = (await ask(b, version, "P-1")).lease
        assert probe.probe
        assert (await ask(b, version, "Q-1")).HasField("refusal")
        renewal = scheduler_pb2.RenewRequest(edge_id="edge")
        renewal.items.add(attempt=probe.attempt, n=1).usage.items.add(
            unit="output_tokens", quantity=1
        )
        assert list((await b.Renew(renewal)).alive) == [True]
        assert (await ask(b, version, "S-1")).HasField("lease")


async def test_reset_opens_the_credential_for_all_schedulers(gateway: Gateway):
    async with two(gateway) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=999_999))
        await ask(a, version, "flush-1")
        assert (await ask(b, version, "S-1")).refusal.retry_after.seconds <= 3600
        assert (await states(b))["one", "m"] == ("cooling", "QUOTA")
        status = await b.ResetCredential(scheduler_pb2.ResetCredentialRequest(credential_id="one"))
        assert {m.state for m in status.models} == {"ready"}
        assert not status.HasField("last_error")
        assert (await ask(b, version, "T-1")).HasField("lease")

        async def there_too() -> bool:
            return (await ask(a, version, "U-1")).HasField("lease")

        await eventually(there_too)
        with pytest.raises(NotFound):
            await a.ResetCredential(scheduler_pb2.ResetCredentialRequest(credential_id="nobody"))


async def test_flushed_redis_forgets_cooldowns(own_gateway: Gateway):
    store = own_gateway.store()
    async with two(own_gateway) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=600))
        await ask(a, version, "flush-1")
        assert (await ask(b, version, "S-1")).HasField("refusal")
        await store.call("FLUSHALL")
        count = 0

        async def forgotten() -> bool:
            nonlocal count
            count += 1
            found = [await ask(s, version, f"{n}{count}-1") for n, s in (("A", a), ("B", b))]
            return all(r.HasField("lease") for r in found)

        await eventually(forgotten)


async def test_cooldown_made_while_redis_is_away_reaches_the_others_later(
    own_gateway: Gateway, own_valkey: ValkeyProcess
):
    own_gateway.timeout = USUAL
    async with two(own_gateway) as (a, b, version):
        own_valkey.signal(signal.SIGSTOP)
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=600))

        async def known_here() -> bool:
            return (await ask(a, version, "S-1")).refusal.reason == "MODEL_COOLDOWN"

        await eventually(known_here)
        listed = await a.ListCredentials(scheduler_pb2.ListCredentialsRequest())
        assert listed.degraded
        own_valkey.signal(signal.SIGCONT)
        count = 0

        async def known_there() -> bool:
            nonlocal count
            count += 1
            return (await ask(b, version, f"T{count}-1")).refusal.reason == "MODEL_COOLDOWN"

        await eventually(known_there)


async def test_cap_holds_while_two_schedulers_race(gateway: Gateway):
    async with two(gateway, ONE % ", max_in_flight: 3") as (a, b, version):
        for turn in range(5):
            results = await asyncio.gather(
                *[
                    ask(s, version, f"{n}{turn}{i}-1")
                    for i in range(20)
                    for n, s in (("A", a), ("B", b))
                ]
            )
            leases = [r.lease for r in results if r.HasField("lease")]
            assert len(leases) == 3
            assert {r.refusal.reason for r in results if r.HasField("refusal")} == {
                "CREDENTIALS_BUSY"
            }
            assert (await states(b))["one", "m"] == ("full", "MAX_IN_FLIGHT")
            await a.Report(report(*leases))

            async def free() -> bool:
                found = [await states(s) for s in (a, b)]
                return all(state["one", "m"] == ("ready", "") for state in found)

            await eventually(free)


async def test_attempts_under_way_are_listed_wherever_they_were_leased(gateway: Gateway):
    async with two(gateway, ONE % ", max_in_flight: 1") as (a, b, version):
        assert (await ask(a, version, "R-1")).HasField("lease")
        assert (await states(b))["one", "m"] == ("full", "MAX_IN_FLIGHT")
    async with two(gateway, FILE) as (a, b, version):
        first = (await ask(a, version, "S-1")).lease.attempt.credential_id
        listed = await b.ListCredentials(scheduler_pb2.ListCredentialsRequest(ids=[first]))
        assert [(c.id, c.in_flight) for c in listed.credentials] == [
            (first, 2 if first == "one" else 1)
        ]


async def test_lost_leases_free_their_places(gateway: Gateway):
    config = ONE % ", max_in_flight: 1"
    async with two(gateway, config, settings={"lease_ttl": 4.0, "renew_interval": 0.5}) as (
        a,
        b,
        version,
    ):
        assert (await ask(a, version, "R-1")).HasField("lease")
        assert (await ask(b, version, "S-1")).refusal.reason == "CREDENTIALS_BUSY"

        async def free() -> bool:
            return (await ask(b, version, "S-1")).HasField("lease")

        await eventually(free)


async def test_renewal_that_its_end_overtook_does_not_make_the_lease_again(gateway: Gateway):
    store = gateway.store()
    async with gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        version = holder.current.version
        for uid, age in (("young-1", 0), ("old-1", 3600)):
            lease = (await ask(scheduler, version, uid)).lease
            lease.attempt.opened_at.seconds -= age
            await scheduler.Report(report(lease))
            await ask(scheduler, version, f"flush-{uid}")
            renewal = scheduler_pb2.RenewRequest(edge_id="edge")
            renewal.items.add(attempt=lease.attempt)
            assert list((await scheduler.Renew(renewal)).alive) == [False]
            assert not await store.call("GET", store.key("lease", uid))


async def test_exhausted_rate_limit_rests_the_model_without_a_failure(gateway: Gateway):
    async with two(gateway) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        request = report(lease)
        limit = request.items[0].rate_limits.add(unit="requests", limit=60, remaining=0)
        limit.reset.FromMilliseconds(600_000)
        await a.Report(request)
        await ask(a, version, "flush-1")
        refusal = (await ask(b, version, "S-1")).refusal
        assert refusal.reason == "MODEL_COOLDOWN"
        assert (await states(b))["one", "m"] == ("cooling", "RATE_LIMIT")

        async def told() -> bool:
            listed = await b.ListCredentials(scheduler_pb2.ListCredentialsRequest())
            status = listed.credentials[0]
            return [(r.unit, r.remaining) for r in status.rate_limits] == [("requests", 0)] and (
                status.succeeded == 1
            )

        await eventually(told)


async def test_credential_disabled_by_management_stays_so(gateway: Gateway):
    disable = scheduler_pb2.SetCredentialDisabledRequest(credential_id="one", disabled=True)
    enable = scheduler_pb2.SetCredentialDisabledRequest(credential_id="one")
    async with gateway.scheduler("a", ONE % "") as (a, holder):
        assert holder.current is not None
        version = holder.current.version
        status = await a.SetCredentialDisabled(disable)
        assert (status.disabled, status.disabled_by) == (True, "management")
        assert {m.state for m in status.models} == {"disabled"}
        assert (await ask(a, version, "R-1")).HasField("refusal")
        models = await a.ListModels(scheduler_pb2.ListModelsRequest(include_unavailable=True))
        assert [(m.id, m.available, m.obstacles[0].reason) for m in models.models] == [
            ("m", False, "disabled"),
            ("n", False, "disabled"),
        ]
    async with gateway.scheduler("a", ONE % "") as (a, _):
        assert (await ask(a, version, "S-1")).HasField("refusal")
        status = await a.SetCredentialDisabled(enable)
        assert not status.disabled
        assert (await ask(a, version, "T-1")).HasField("lease")


async def test_credential_disabled_in_the_configuration_is_not_enabled_here(gateway: Gateway):
    enable = scheduler_pb2.SetCredentialDisabledRequest(credential_id="one")
    async with gateway.scheduler("a", ONE % ", disabled: true") as (a, _):
        with pytest.raises(FailedPrecondition, match="configuration"):
            await a.SetCredentialDisabled(enable)


async def test_other_credentials_serve_while_one_rests(gateway: Gateway):
    async with two(gateway, FILE) as (a, b, version):
        lease = (await ask(a, version, "R-1")).lease
        await a.Report(fault(lease, retry_after=600))
        await ask(a, version, "flush-1")
        used = {
            (await ask(s, version, f"{i}-1")).lease.attempt.credential_id
            for i, s in enumerate((a, b) * 6)
        }
        assert used == {"one", "two", "three"} - {lease.attempt.credential_id}
