"""Keys of credentials from Secrets: read when the snapshot means others, kept while the API server is off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from tests.fakes.secrets_api import FakeSecrets

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
from patchbay_gateway.scheduler.cluster_secrets import ClusterMaterial
from patchbay_gateway.scheduler.credentials import Credentials
from patchbay_gateway.scheduler.refresh_rules import Seed
from patchbay_gateway.scheduler.seeds import Seeds

if TYPE_CHECKING:
    from collections.abc import Callable


def entry(fingerprint: str, kind: str = "api_key") -> CredentialEntry:
    names = {"api_key": {"api_key": "s/api-key"}, "oauth2": {"refresh_token": "s/refresh-token"}}
    return CredentialEntry("main", "ix", kind, 1, fingerprint, secrets=names[kind])


def snapshot(
    version: int, *credentials: CredentialEntry, url: str = "https://api.example"
) -> Snapshot:
    provider = ProviderEntry("openai", "echo", url, credentials=credentials)
    return Snapshot(version=version, providers=(provider,))


class Scene:
    def __init__(self) -> None:
        self.api = FakeSecrets()
        self.holder = SnapshotHolder()
        self.credentials = Credentials((b"p" * 32,), clock=ManualClock())
        self.sown: list[Seeds] = []
        self.steps: list[str] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.material = ClusterMaterial(
            self.api,
            credentials=self.credentials,
            sow=self.sow,
            holder=self.holder,
            clock=ManualClock(),
        )

    async def sow(self, seeds: Seeds) -> None:
        if self.away:
            raise Unavailable("the durable store is away")
        self.steps.append("begin")
        await self.gate.wait()
        self.sown.append(seeds)
        self.steps.append("end")

    def usable(self, credential: CredentialEntry, url: str = "https://api.example") -> bool:
        provider = ProviderEntry("openai", "echo", url, credentials=(credential,))
        return self.credentials.usable(provider, credential)


@pytest.fixture
def make() -> Callable[[], Scene]:
    return Scene


async def with_one_key(make: Callable[[], Scene]) -> Scene:
    """Return a scene whose snapshot has one credential, its key read from its Secret."""
    scene = make()
    scene.api.put("s", api_key="test-key-one")
    scene.holder.set(snapshot(1, entry("f1")))
    await scene.material.look()
    return scene


async def test_key_of_the_snapshot_is_read_once_and_usable(make: Callable[[], Scene]) -> None:
    scene = make()
    scene.api.put("s", api_key="test-key-one")
    scene.holder.set(snapshot(1, entry("f1")))
    assert await scene.material.look()
    assert await scene.material.look()
    assert scene.api.reads == ["s"]
    assert scene.usable(entry("f1"))


async def test_rotated_key_is_read_anew_and_the_former_serves_pinned_requests(
    make: Callable[[], Scene],
) -> None:
    scene = await with_one_key(make)
    scene.api.put("s", api_key="test-key-two")
    scene.holder.set(snapshot(2, entry("f2")))
    await scene.material.look()
    assert scene.usable(entry("f2"))
    assert scene.usable(entry("f1"))


async def test_former_key_serves_its_own_address_until_the_new_one_is_read(
    make: Callable[[], Scene],
) -> None:
    scene = await with_one_key(make)
    assert scene.usable(entry("f2"))
    assert not scene.usable(entry("f2"), url="https://elsewhere.example")
    elsewhere = replace(entry("f2"), secrets={"api_key": "another/api-key"})
    assert not scene.usable(elsewhere)


async def test_key_of_a_credential_that_was_gone_stands_in_for_nothing(
    make: Callable[[], Scene],
) -> None:
    scene = await with_one_key(make)
    scene.holder.set(snapshot(2))
    await scene.material.look()
    assert not scene.usable(entry("f2"))


async def test_file_that_changes_takes_no_key_of_a_secret_back(make: Callable[[], Scene]) -> None:
    scene = await with_one_key(make)
    scene.credentials.replace({})
    assert scene.usable(entry("f1"))


async def test_api_server_that_is_away_takes_nothing_back_and_is_asked_again(
    make: Callable[[], Scene],
) -> None:
    scene = await with_one_key(make)
    scene.api.away = True
    scene.holder.set(snapshot(2, entry("f2")))
    assert not await scene.material.look()
    assert scene.usable(entry("f1"))
    scene.api.away = False
    assert await scene.material.look()
    assert scene.usable(entry("f2"))


async def test_secret_without_the_key_is_asked_again(make: Callable[[], Scene]) -> None:
    scene = make()
    scene.api.put("s", other="x")
    scene.holder.set(snapshot(1, entry("f1")))
    assert not await scene.material.look()
    assert not scene.usable(entry("f1"))


async def test_refresh_token_is_sown_beside_the_seeds_of_the_file(
    make: Callable[[], Scene],
) -> None:
    scene = make()
    scene.api.put("s", refresh_token="test-refresh")
    scene.holder.set(snapshot(1, entry("f1", "oauth2")))
    await scene.material.sow(Seeds({"file": Seed(hash="h", material={})}))
    await scene.material.look()
    assert set(scene.sown[-1].of) == {"file", "main"}
    assert scene.sown[-1].of["main"].material == {"refresh_token": "test-refresh"}


async def test_records_that_cannot_be_written_end_nothing_and_are_written_later(
    make: Callable[[], Scene],
) -> None:
    """The API server was there for the Secret and away for the record: the process went down."""
    scene = make()
    scene.api.put("s", refresh_token="test-refresh")
    scene.holder.set(snapshot(1, entry("f1", "oauth2")))
    scene.away = True
    assert not await scene.material.look()
    scene.away = False
    assert await scene.material.look()
    assert set(scene.sown[-1].of) == {"main"}
    assert scene.api.reads == ["s"]


async def test_seed_of_a_secret_that_changes_while_the_file_is_sown_is_sown_last(
    make: Callable[[], Scene],
) -> None:
    scene = make()
    scene.api.put("s", refresh_token="test-old")
    scene.holder.set(snapshot(1, entry("f1", "oauth2")))
    await scene.material.look()
    scene.gate.clear()
    from_file = asyncio.create_task(scene.material.sow(Seeds()))
    await asyncio.sleep(0)
    scene.api.put("s", refresh_token="test-new")
    scene.holder.set(snapshot(2, entry("f2", "oauth2")))
    looking = asyncio.create_task(scene.material.look())
    for _ in range(5):
        await asyncio.sleep(0)
    scene.gate.set()
    await asyncio.gather(from_file, looking)
    # What began with the old one has ended before the new one begins.
    assert scene.steps == ["begin", "end"] * 3
    assert scene.sown[-1].of["main"].material == {"refresh_token": "test-new"}
