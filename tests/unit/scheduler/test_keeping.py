"""Credentials that plugins bring: where they go, who may bring them, all or none."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay.errors import FailedPrecondition, NotFound, Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import OAuth2Entry
from patchbay_gateway.scheduler.auth_data import BroughtAuth
from patchbay_gateway.scheduler.durable.memory import MemoryStore
from patchbay_gateway.scheduler.keeping import Keeper
from patchbay_gateway.scheduler.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from patchbay_gateway.scheduler.durable.port import CredentialRecord

OAUTH2 = OAuth2Entry("https://id.example/token", "test-client", plugin="mine")


class Silence:
    """No news from other schedulers."""

    available = True

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, *command: Any) -> int:
        return 0

    async def subscribe(self, channel: str) -> AsyncGenerator[bytes | None, None]:
        return
        yield None


class Store(MemoryStore):
    """One that may be for declared credentials alone, or fail at one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_all = True
        self.fails_at = ""
        self.wrote, self.slow = asyncio.Event(), asyncio.Event()
        self.slow.set()

    @property
    def open(self) -> bool:
        return self.takes_all

    async def write(self, record: CredentialRecord, *, expected: str | None) -> str:
        if record.id == self.fails_at:
            raise Unavailable("full")
        revision = await super().write(record, expected=expected)
        self.wrote.set()
        await self.slow.wait()
        return revision


class World:
    """A keeper with one provider of the plugin `mine`, which knows its key, and one of others."""

    def __init__(self) -> None:
        self.store, self.clock = Store(), ManualClock()
        self.records = Records(self.store, store=Silence(), clock=self.clock)
        self.holder = SnapshotHolder()
        declared = make_credential("declared", kind="oauth2", oauth2=OAUTH2)
        self.snapshot = make_snapshot(
            make_provider("fake", declared, make_credential("key", kind="api_key")),
            make_provider("other", "else", plugin="q"),
        )
        self.holder.set(self.snapshot)
        plugins = SimpleNamespace(
            identifier=lambda id_: "fake" if id_ == "mine" else "", look=self._look
        )
        self.keeper = Keeper(
            self.records, holder=self.holder, plugins=cast("Any", plugins), clock=self.clock
        )

    async def _look(self, _: object) -> None:
        pass

    async def keep(self, *auths: BroughtAuth, plugin: str = "mine", **more: Any) -> list[str]:
        return await self.keeper.keep(plugin, auths, origin="login", **more)

    def record(self, id_: str) -> CredentialRecord:
        found = self.records.get(id_)
        assert found is not None
        return found


@pytest.fixture
def world() -> World:
    return World()


def auth(label: str = "", **more: Any) -> BroughtAuth:
    material = more.pop("material", {"access_token": f"test-{label}", "refresh_token": "test-r"})
    return BroughtAuth(more.pop("provider", ""), label=label, material=material, **more)


async def test_new_credential_is_kept_beside_the_declared(world: World) -> None:
    ids = await world.keep(auth("ann", prefix="p", metadata={"n": 1}, attributes={"tier": "x"}))
    assert ids == ["fake-ann"]
    record = world.record("fake-ann")
    assert (record.provider, record.plugin, record.origin) == ("fake", "mine", "login")
    assert (record.metadata, record.attributes, record.label) == ({"n": 1}, {"tier": "x"}, "ann")
    ((provider, entry),) = world.keeper.entries(world.snapshot)
    assert (provider, entry.id, entry.kind, entry.prefix) == ("fake", "fake-ann", "oauth2", "p")
    assert (entry.brought_by, entry.origin) == ("mine", "login")
    # The provider's own login says where tokens come from.
    assert entry.oauth2 == OAUTH2


async def test_several_accounts_are_all_kept_and_find_their_credentials_again(world: World) -> None:
    first = await world.keep(auth("ann"), auth("bob"), base="declared", target="declared")
    assert first == ["declared", "declared.bob"]
    again = await world.keep(auth("bob"), auth("ann"), base="declared", target="declared")
    assert again == ["declared.bob", "declared"]
    assert world.record("declared").label == "ann"


async def test_what_comes_together_is_kept_together_or_not_at_all(world: World) -> None:
    await world.keep(auth("old"), base="declared", target="declared")
    world.store.fails_at = "declared.bob"
    with pytest.raises(Unavailable, match="full"):
        await world.keep(auth("ann"), auth("bob"), base="declared", target="declared")
    assert world.record("declared").label == "old"
    assert world.record("declared").material["access_token"] == "test-old"
    assert world.records.get("declared.bob") is None


async def test_what_comes_is_kept_whole_though_its_caller_leaves(world: World) -> None:
    """A login's code is used up: what it gave exists nowhere else."""
    world.store.slow.clear()
    keeping = asyncio.create_task(
        world.keep(auth("ann"), auth("bob"), base="declared", target="declared")
    )
    async with asyncio.timeout(60):
        await world.store.wrote.wait()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    world.store.slow.set()
    await world.keeper.aclose()
    assert world.record("declared").label == "ann"
    assert world.record("declared.bob").label == "bob"


async def test_key_of_the_configuration_is_not_replaced(world: World) -> None:
    with pytest.raises(FailedPrecondition, match="choose another name") as caught:
        await world.keep(auth(id="key"))
    assert caught.value.reason == "AUTH_CONFIGURED"


async def test_plugin_brings_credentials_of_its_own_providers_alone(world: World) -> None:
    with pytest.raises(NotFound, match="not one that plugin mine serves"):
        await world.keep(auth("ann", provider="other"))
    assert await world.keep(auth("ann", provider="other"), everywhere=True) == ["other-ann"]
    with pytest.raises(FailedPrecondition, match="no provider has that name"):
        await world.keep(auth("ann", provider="nowhere"))


async def test_where_records_are_secrets_only_declared_credentials_are_kept(world: World) -> None:
    world.store.takes_all = False
    with pytest.raises(
        FailedPrecondition, match="declare a ProviderCredential named fake-ann"
    ) as no:
        await world.keep(auth("ann"))
    assert no.value.reason == "CREDENTIAL_NOT_DECLARED"
    assert await world.keep(auth("ann", id="declared")) == ["declared"]
    assert world.record("declared").provider == ""


@pytest.mark.parametrize(
    "wrong",
    [
        auth("ann", material={"other": "test"}),
        auth("ann", material={}),
        auth("ann", proxy_url="nowhere"),
    ],
)
async def test_unusable_credentials_are_refused(world: World, wrong: BroughtAuth) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await world.keep(auth("bob"), wrong)
    assert caught.value.reason == "AUTH_UNREADABLE"
    assert not world.records.kept()


async def test_another_account_inherits_nothing(world: World) -> None:
    await world.keep(auth("ann", attributes={"tier": "x"}), base="declared", target="declared")
    before = world.record("declared")
    await world.keep(auth("ann"), base="declared", target="declared")
    assert world.record("declared").lineage == before.lineage
    await world.keep(auth("bob"), base="declared", target="declared")
    after = world.record("declared")
    assert after.lineage != before.lineage
    assert after.attributes == {}
    assert after.version > before.version


async def test_kept_credential_is_removed_and_others_stay_where_they_stand(world: World) -> None:
    await world.keep(auth("ann"))
    changes: list[None] = []
    world.keeper.on_change(lambda: changes.append(None))
    await world.keeper.remove("fake-ann")
    assert world.keeper.entries(world.snapshot) == []
    assert len(changes) == 1
    with pytest.raises(FailedPrecondition, match="stands in the configuration; remove it there"):
        await world.keeper.remove("declared")
    with pytest.raises(NotFound):
        await world.keeper.remove("fake-ann")


async def test_kept_credential_of_a_provider_that_is_gone_is_told(world: World) -> None:
    await world.keep(auth("ann"))
    world.holder.set(make_snapshot(make_provider("other", "else", plugin="q"), version=2))
    assert world.keeper.told() == [("fake-ann", "is for provider fake, which is not configured")]
