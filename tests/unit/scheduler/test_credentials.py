"""Tokens of OAuth credentials as they are leased: which version, for how long, and not after their end."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay.keys import sealing_key
from patchbay.secrets import SecretOpener
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.snapshot import OAuth2Entry
from patchbay_gateway.scheduler.catalogue import Catalogue
from patchbay_gateway.scheduler.credentials import SEALED_FOR, Credentials, Material
from patchbay_gateway.scheduler.durable.port import CredentialRecord
from patchbay_gateway.scheduler.grants import Grants
from patchbay_gateway.scheduler.selection import Candidate

ROOT = b"p" * 32
TEAM = make_credential(
    "team", kind="oauth2", version=1, oauth2=OAuth2Entry("https://id.example/token", "client")
)
PROVIDER = make_provider("p", TEAM, base_url="https://api.example/v1")
MATERIAL = {"refresh_token": "test-refresh", "access_token": "test-access", "client_secret": "x"}


class World:
    """Credentials and a clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.credentials = Credentials((ROOT,), clock=self.clock)
        self.grants = Grants(
            self.credentials, clock=self.clock, installation="tests", lease_ttl=60.0
        )
        self.candidate = Candidate(PROVIDER, TEAM, "m")

    def take(self, **changes: Any) -> None:
        record = CredentialRecord(
            "team", version=7, material=MATERIAL, expires_at=self.clock.now() + 3600
        )
        self.credentials.take("team", record.replace(**changes))

    @property
    def usable(self) -> bool:
        return self.credentials.usable(PROVIDER, TEAM)

    @property
    def obstacle(self) -> str:
        return self.credentials.obstacle(PROVIDER, TEAM)

    def lease(self) -> Any:
        grant = self.grants.of(make_snapshot(PROVIDER), self.candidate, self.clock.now())
        return grant.lease

    def opened(self) -> dict[str, str]:
        opener = SecretOpener([sealing_key(plugin_key(ROOT, PROVIDER.plugin))])
        return opener.open(self.lease().secret, self.clock.now()).material()


@pytest.fixture
def world() -> World:
    return World()


def test_lease_carries_access_material_alone_and_the_records_version(world: World) -> None:
    world.take(attributes={"plan": "team"})
    lease = world.lease()
    assert world.opened() == {"access_token": "test-access"}
    assert (lease.credential_version, lease.refreshable) == (7, True)
    assert lease.secret.version == 7
    assert list(lease.secret.allowed_origins) == ["https://api.example"]
    assert dict(lease.attributes) == {"plan": "team"}


def test_token_without_refresh_token_is_leased_as_not_refreshable(world: World) -> None:
    world.take(material={"access_token": "test-access"})
    assert not world.lease().refreshable


def test_newer_version_is_leased_at_once(world: World) -> None:
    world.take()
    before = world.lease()
    assert world.lease() is before
    world.take(version=8, material={**MATERIAL, "access_token": "test-new"})
    assert world.opened() == {"access_token": "test-new"}
    assert world.lease().credential_version == 8


def test_change_of_the_record_without_material_keeps_the_grant(world: World) -> None:
    """An intent is written twice an hour for each credential."""
    world.take()
    before = world.lease()
    world.take(status="backoff", failures=1)
    assert world.lease() is before


async def test_expired_token_is_not_usable_until_a_newer_one_is_there(world: World) -> None:
    world.take()
    await world.clock.advance(3599)
    assert world.usable
    await world.clock.advance(1)
    assert not world.usable
    assert world.obstacle == "expired"
    world.take(version=8)
    assert world.usable
    assert world.obstacle == ""


def test_model_that_was_not_listed_for_want_of_a_token_is_listed_with_it(world: World) -> None:
    """It would be missing from the lists until the next change of the configuration."""
    catalogue, snapshot = Catalogue(world.credentials), make_snapshot(PROVIDER)
    world.take(expires_at=world.clock.now() - 1)
    assert catalogue.models(snapshot) == ()
    world.take(version=8)
    assert [name for name, _ in catalogue.models(snapshot)] == ["m"]


async def test_model_whose_token_ran_out_and_was_taken_away_is_listed_no_more(world: World) -> None:
    """It was listed while the token was good, and that list may still be shown."""
    catalogue, snapshot = Catalogue(world.credentials), make_snapshot(PROVIDER)
    world.take(expires_at=world.clock.now() + 100)
    assert [name for name, _ in catalogue.models(snapshot)] == ["m"]
    await world.clock.advance(101)
    world.take(version=8, material={})
    assert catalogue.models(snapshot) == ()


async def test_secret_outlives_its_token_only_by_what_an_attempt_needs(world: World) -> None:
    world.take(expires_at=world.clock.now() + 100)
    secret = world.lease().secret
    assert secret.not_after.seconds - world.clock.now() < 100 + SEALED_FOR / 2


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"material": {}}, "no_material"),
        ({"material": {"refresh_token": "test-refresh"}}, "expired"),
        ({"expires_at": 1.0, "status": "needs_login"}, "needs_login"),
        ({"expires_at": 1.0, "material": {"access_token": "test-access"}}, "needs_login"),
        ({"disabled": True}, "disabled"),
        ({"status": "needs_login"}, ""),
        ({"expires_at": 0.0}, ""),
    ],
)
def test_obstacle_says_why_a_credential_is_not_usable(
    world: World, changes: dict[str, Any], obstacle: str
) -> None:
    world.take(**changes)
    assert world.obstacle == obstacle
    assert world.usable == (obstacle == "")


def test_credential_without_record_has_no_material(world: World) -> None:
    assert world.obstacle == "no_material"
    world.take()
    world.credentials.take("team", None)
    assert world.obstacle == "no_material"


def test_key_that_management_disabled_is_not_usable_by_its_record(world: World) -> None:
    key = make_credential("key", kind="api_key", fingerprint="f")
    provider = make_provider("q", key)
    world.credentials.replace({"key": Material("api_key", {"api_key": "test-key"}, "f")})
    assert world.credentials.usable(provider, key)
    generation = world.credentials.generation
    world.credentials.take("key", CredentialRecord("key", disabled=True))
    assert world.credentials.obstacle(provider, key) == "disabled"
    assert world.credentials.generation > generation
    world.credentials.take("key", CredentialRecord("key"))
    assert world.credentials.usable(provider, key)
