"""Flights of one and of several schedulers over one durable store."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay.auth_provider import invalid_grant
from patchbay.errors import (
    FailedPrecondition,
    NotFound,
    PatchbayError,
    ResourceExhausted,
    Sent,
    Unavailable,
    UpstreamError,
)
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.plugins.snapshot import OAuth2Entry
from patchbay_gateway.scheduler.durable.memory import MemoryStore
from patchbay_gateway.scheduler.durable.port import CredentialRecord, Intent, token_hash
from patchbay_gateway.scheduler.records import Records
from patchbay_gateway.scheduler.refresh import Refresher
from patchbay_gateway.scheduler.refresh_rules import SKEW, Renewal, Seed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from patchbay_gateway.scheduler.auth_calls import Ask

TIMEOUT = 60.0


class NoNews:
    """Redis is away: nobody is told."""

    available = False

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *command: Any) -> Any:
        raise Unavailable("away")

    async def subscribe(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        yield None


@dataclass
class Identity:
    """An auth provider that rotates, and does as it is told."""

    clock: ManualClock
    presented: list[str] = field(default_factory=list)
    errors: list[PatchbayError] = field(default_factory=list)
    gate: asyncio.Event | None = None
    here: bool = True
    asks: list[Ask] = field(default_factory=list)

    def ready(self, plugin_id: str) -> bool:
        return self.here

    async def refresh(self, ask: Ask) -> Renewal:
        self.asks.append(ask)
        self.presented.append(ask.record.refresh_token)
        number = len(self.presented)
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        storage = {"access_token": f"test-access-{number}", "refresh_token": f"test-next-{number}"}
        return Renewal(storage, self.clock.now() + 3600)


@dataclass
class World:
    """Some schedulers, one store, one provider."""

    clock: ManualClock = field(default_factory=ManualClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    identity: Identity = field(init=False)
    schedulers: list[tuple[Records, Refresher]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = Identity(self.clock)

    async def scheduler(self, seed: str = "test-refresh") -> Refresher:
        entry = OAuth2Entry("https://id.example/token", "client")
        credential = make_credential("team", kind="oauth2", oauth2=entry)
        records = Records(self.store, store=NoNews(), clock=self.clock)
        refresher = Refresher(
            records,
            self.identity,
            clock=self.clock,
            timeout=TIMEOUT,
            name=f"s{len(self.schedulers)}",
            metrics=NoMetrics(),
        )
        refresher.apply(make_snapshot(make_provider("p", credential)))
        await records.load()
        await refresher.sow(
            {"team": Seed(token_hash(seed), {"refresh_token": seed}, "test-secret")}
        )
        self.schedulers.append((records, refresher))
        return refresher

    async def record(self) -> CredentialRecord:
        stored = await self.store.read("team")
        assert stored is not None
        return stored.record

    async def put(self, **changes: Any) -> None:
        stored = await self.store.read("team")
        assert stored is not None
        await self.store.write(stored.record.replace(**changes), expected=stored.revision)
        for records, _ in self.schedulers:
            await records.load()

    async def turn(self, seconds: float = 0.0) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await self.clock.advance(seconds)


@pytest.fixture
def world() -> World:
    return World()


async def test_refresh_writes_the_new_material_with_a_newer_version(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    assert await refresher.refresh_now("team", before) == before + 1
    record = await world.record()
    assert record.access == {"access_token": "test-access-1"}
    assert record.refresh_token == "test-next-1"
    assert record.intent is None
    ask = world.identity.asks[0]
    assert ask.deadline == world.clock.now() + TIMEOUT
    assert ask.client_secret == "test-secret"
    assert ask.record.intent is not None
    assert ask.record.intent.token_hash == token_hash("test-refresh")
    assert (await refresher.refresh_now("team", before)) == before + 1
    assert world.identity.presented == ["test-refresh"]


async def test_many_callers_in_many_schedulers_present_once(world: World) -> None:
    refreshers = [await world.scheduler() for _ in range(5)]
    before = (await world.record()).version
    world.identity.gate = asyncio.Event()
    calls = [
        asyncio.create_task(refresher.refresh_now("team", before))
        for refresher in refreshers
        for _ in range(4)
    ]
    await world.turn(1.0)
    assert len(world.identity.presented) == 1
    assert all(refresher.status("team") is not None for refresher in refreshers)
    world.identity.gate.set()
    for _ in range(10):
        await world.turn(0.3)
    assert {await call for call in calls} == {before + 1}
    assert world.identity.presented == ["test-refresh"]


async def test_caller_that_leaves_does_not_end_the_flight(world: World) -> None:
    refresher = await world.scheduler()
    world.identity.gate = asyncio.Event()
    call = asyncio.create_task(refresher.refresh_now("team", (await world.record()).version))
    await world.turn()
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    world.identity.gate.set()
    await world.turn()
    assert (await world.record()).refresh_token == "test-next-1"


async def test_foreign_intent_is_waited_for_and_then_tried_once(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    deadline = world.clock.now() + 10
    await world.put(intent=Intent(token_hash("test-refresh"), deadline, "killed"))
    call = asyncio.create_task(refresher.refresh_now("team", before))
    await world.turn(9.9)
    assert world.identity.presented == []
    world.identity.gate = asyncio.Event()
    for _ in range(20):
        await world.turn(SKEW / 10)
    assert world.identity.presented == ["test-refresh"]
    status = refresher.status("team")
    assert status is not None
    assert status.state == "ambiguous"
    world.identity.gate.set()
    assert await call == before + 1


async def test_timer_does_not_wait_for_a_foreign_intent(world: World) -> None:
    refresher = await world.scheduler()
    deadline = world.clock.now() + 10
    await world.put(intent=Intent("h", deadline, "other"))
    await refresher.fly("team")
    assert refresher.due("team") == deadline + SKEW
    assert world.identity.presented == []


async def test_joining_a_flight_that_was_not_due_begins_one_of_its_own(world: World) -> None:
    refresher = await world.scheduler()
    await refresher.refresh_now("team", 0)
    before = (await world.record()).version
    timer = asyncio.create_task(refresher.fly("team"))
    await asyncio.sleep(0)
    call = asyncio.create_task(refresher.refresh_now("team", before))
    await timer
    assert await call == before + 1


async def test_refused_token_is_never_presented_again_until_a_new_seed(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.errors = [invalid_grant("no")]
    for _ in range(3):
        with pytest.raises(FailedPrecondition) as caught:
            await refresher.refresh_now("team", before)
        assert caught.value.reason == "NEEDS_LOGIN"
    assert world.identity.presented == ["test-refresh"]
    await refresher.sow({"team": Seed("other", {"refresh_token": "test-other"})})
    assert await refresher.refresh_now("team", before + 1) == before + 2
    assert world.identity.presented == ["test-refresh", "test-other"]


async def test_failure_is_told_at_once_to_those_who_ask_again(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.errors = [UpstreamError(500, "broken", sent=Sent.YES)]
    for _ in range(2):
        with pytest.raises(ResourceExhausted) as caught:
            await refresher.refresh_now("team", before)
        assert caught.value.retry_after == 2.0
        assert "broken" in caught.value.message
    assert len(world.identity.presented) == 1
    await world.turn(2.0)
    assert await refresher.refresh_now("team", before) == before + 1


async def test_unknown_outcome_keeps_the_intent_until_its_deadline(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.errors = [Unavailable("cut", reason="TRANSPORT", sent=Sent.UNKNOWN)]
    with pytest.raises(ResourceExhausted):
        await refresher.refresh_now("team", before)
    assert (await world.record()).intent is not None
    await world.turn(TIMEOUT + SKEW - 1)
    with pytest.raises(ResourceExhausted):
        await refresher.refresh_now("team", before)
    assert len(world.identity.presented) == 1
    await world.turn(1)
    assert await refresher.refresh_now("team", before) == before + 1


async def test_late_success_after_anothers_intent_is_kept(world: World) -> None:
    """The token is still the one that was presented: what the provider issued must not be lost."""
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.gate = asyncio.Event()
    call = asyncio.create_task(refresher.refresh_now("team", before))
    await world.turn(1)
    await world.put(intent=Intent(token_hash("test-refresh"), world.clock.now() + 99, "other"))
    world.identity.gate.set()
    assert await call == before + 1
    assert (await world.record()).refresh_token == "test-next-1"


async def test_late_success_after_a_new_seed_is_dropped(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.gate = asyncio.Event()
    call = asyncio.create_task(refresher.refresh_now("team", before))
    await world.turn(1)
    await refresher.sow({"team": Seed("other", {"refresh_token": "test-other"})})
    world.identity.gate.set()
    assert await call == before + 1
    assert (await world.record()).refresh_token == "test-other"


async def test_store_that_fails_after_the_answer_is_tried_until_it_works(world: World) -> None:
    refresher = await world.scheduler()
    before = (await world.record()).version
    world.identity.gate = asyncio.Event()
    call = asyncio.create_task(refresher.refresh_now("team", before))
    await world.turn(1)
    write, failures = world.store.write, [Unavailable("full"), Unavailable("full")]

    async def failing(record: CredentialRecord, *, expected: str | None) -> str:
        if failures:
            raise failures.pop()
        return await write(record, expected=expected)

    world.store.write = failing  # type: ignore[method-assign] # a disk that fills up
    world.identity.gate.set()
    for _ in range(5):
        await world.turn(0.5)
    assert await call == before + 1
    assert (await world.record()).refresh_token == "test-next-1"


async def test_stopping_waits_for_flights_and_begins_none(world: World) -> None:
    refresher = await world.scheduler()
    world.identity.gate = asyncio.Event()
    call = asyncio.create_task(refresher.refresh_now("team", (await world.record()).version))
    await world.turn(1)
    closing = asyncio.create_task(refresher.aclose())
    await world.turn(1)
    assert not closing.done()
    world.identity.gate.set()
    await closing
    version = await call
    with pytest.raises(Unavailable):
        await refresher.refresh_now("team", version)
    assert len(world.identity.presented) == 1


async def test_without_auth_provider_nothing_is_promised(world: World) -> None:
    refresher = await world.scheduler()
    world.identity.here = False
    with pytest.raises(Unavailable) as caught:
        await refresher.refresh_now("team", (await world.record()).version)
    assert caught.value.reason == "REFRESH_FAILED"
    assert (await world.record()).intent is None


async def test_scheduler_without_the_secrets_leaves_it_to_others(world: World) -> None:
    refresher = await world.scheduler()
    await refresher.sow({}, frozenset({"team"}))
    assert not refresher.able("team")
    await refresher.fly("team", newer_than=1 << 60)
    assert world.identity.presented == []


async def test_unknown_credential_is_not_refreshed(world: World) -> None:
    refresher = await world.scheduler()
    with pytest.raises(NotFound):
        await refresher.refresh_now("nobody", 1)
    assert refresher.status("nobody") is None
