"""What an auth provider gets for a refresh, what is taken of its answer, and what is not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import pytest
from tests.unit.scheduler.conftest import make_snapshot

from patchbay.auth_provider import AuthData, AuthProvider, AuthRefreshResponse, invalid_grant
from patchbay.errors import (
    FailedPrecondition,
    PatchbayError,
    PermissionDenied,
    Unavailable,
    UpstreamError,
)
from patchbay.keys import channel_key
from patchbay.serve import build_servicers
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.dns import DnsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.registry import PluginRegistry
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.plugins.snapshot import OAuth2Entry, PluginEntry
from patchbay_gateway.scheduler import refresh_rules as rules
from patchbay_gateway.scheduler.auth_calls import RENEWAL_UNREADABLE, Ask, PluginAuthProviders
from patchbay_gateway.scheduler.durable.port import CredentialRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from patchbay.auth_provider import AuthRefreshRequest

ROOT = b"p" * 32
SETTINGS = OAuth2Entry("https://id.example/oauth/token", "client", ("a", "b"), "basic", {"x": "y"})
RECORD = CredentialRecord(
    "team",
    version=3,
    material={"refresh_token": "test-refresh", "access_token": "test-old"},
    metadata={"plan": "team"},
    attributes={"region": "eu"},
)


class Provider(AuthProvider):
    """Does what the test says."""

    id: ClassVar = "stub"
    name: ClassVar = "Stub"
    version: ClassVar = "1"
    author: ClassVar = "Tests"

    def __init__(self) -> None:
        self.answer: Callable[[AuthRefreshRequest], AuthData] = lambda _: AuthData()

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        return AuthRefreshResponse(self.answer(request))


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def scopes() -> ScopeTable:
    return ScopeTable("127.0.0.1:7001")


@pytest.fixture
async def providers(provider: Provider, scopes: ScopeTable) -> AsyncIterator[PluginAuthProviders]:
    clock = SystemClock()
    key = plugin_key(ROOT, "stub")
    channel = InProcessChannel(build_servicers([provider], {"stub": [key]}))

    async def keys(_: str) -> Sequence[bytes]:
        return [channel_key(key)]

    registry = PluginRegistry(
        host=Host("scheduler-test", "1"),
        keys=keys,
        resolver=DnsResolver(),
        clock=clock,
        local={"stub": channel},
    )
    snapshot = msgspec.structs.replace(
        make_snapshot(), plugins=(PluginEntry(id="stub", builtin=True),)
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(channel.close)
        stack.push_async_callback(registry.aclose)
        await registry.apply(snapshot)
        assert not await registry.wait_ready(["stub"], 90)
        entry = PluginEntry(id="stub", host_access={"http": {"hosts": ["id.example"]}})
        hook = Hook("stub", "auth_provider", entry, policy("auth_provider"))
        yield PluginAuthProviders(
            registry,
            plugins_roots=(ROOT,),
            clock=clock,
            scope=lambda _: scopes.open(hook, None),
        )


def ask(**changes: Any) -> Ask:
    given = {
        "plugin_id": "stub",
        "provider": "fake",
        "settings": SETTINGS,
        "record": RECORD,
        "client_secret": "test-secret",
        "proxy_url": "http://proxy:1",
        "deadline": SystemClock().now() + 60,
    }
    return Ask(**{**given, **changes})


async def test_provider_gets_all_it_needs_sealed_and_bound(
    providers: PluginAuthProviders, provider: Provider
) -> None:
    seen: dict[str, Any] = {}

    def answer(request: AuthRefreshRequest) -> AuthData:
        secret = request.secret()
        seen["material"] = secret.material()
        seen["origins"] = secret.allowed_origins
        seen["until"] = secret.not_after
        seen["rest"] = (request.auth_id, request.auth_provider, request.proxy_url)
        seen["config"], seen["metadata"] = request.config, request.metadata
        seen["attributes"] = dict(request.attributes)
        seen["wire"] = request.message.SerializeToString()
        secret.check(SETTINGS.token_url)
        return AuthData(
            storage={
                "access_token": "test-new",
                "refresh_token": "test-next",
                "client_secret": "no",
            },
            expires_at=1_900_000_000.0,
            next_refresh_after=1_800_000_000.0,
            metadata={"plan": "big"},
            access_keys=("access_token", "refresh_token"),
        )

    provider.answer = answer
    asked = ask()
    renewal = await providers.refresh(asked)
    assert seen["material"] == {**RECORD.material, "client_secret": "test-secret"}
    assert seen["origins"] == {"https://id.example"}
    assert seen["until"] == pytest.approx(asked.deadline)
    assert seen["rest"] == ("team", "fake", "http://proxy:1")
    assert seen["config"] == {
        "token_url": SETTINGS.token_url,
        "client_id": "client",
        "client_auth": "basic",
        "scopes": ["a", "b"],
        "extra": {"x": "y"},
    }
    assert seen["metadata"] == {"plan": "team"}
    assert seen["attributes"] == {"region": "eu"}
    assert b"test-refresh" not in seen["wire"]
    assert renewal.storage == {"access_token": "test-new", "refresh_token": "test-next"}
    assert renewal.access_keys == ("access_token",)
    assert (renewal.expires_at, renewal.next_refresh_after) == (1_900_000_000.0, 1_800_000_000.0)
    assert renewal.metadata == {"plan": "big"}


async def test_secret_is_not_for_other_origins(
    providers: PluginAuthProviders, provider: Provider
) -> None:
    def answer(request: AuthRefreshRequest) -> AuthData:
        request.secret().check("https://elsewhere.example/token")
        return AuthData()

    provider.answer = answer
    with pytest.raises(PermissionDenied) as caught:
        await providers.refresh(ask())
    assert rules.certain(caught.value)


async def test_refusals_arrive_with_how_far_they_came(
    providers: PluginAuthProviders, provider: Provider
) -> None:
    def answer(_: AuthRefreshRequest) -> AuthData:
        raise invalid_grant("used up")

    provider.answer = answer
    with pytest.raises(UpstreamError) as caught:
        await providers.refresh(ask())
    record = rules.failed(RECORD, caught.value, 1.0)
    assert record.status == "needs_login"
    assert record.last_error is not None
    assert "used up" in record.last_error.message


async def test_answer_without_access_material_counts_as_perhaps_used_up(
    providers: PluginAuthProviders,
) -> None:
    bare = RECORD.replace(material={"refresh_token": "test-refresh"})
    with pytest.raises(FailedPrecondition) as caught:
        await providers.refresh(ask(record=bare))
    assert caught.value.reason == RENEWAL_UNREADABLE
    assert not rules.certain(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"plugin_id": "absent"},
        {"deadline": SystemClock().now() - 1},
        {"settings": OAuth2Entry("https://user:pw@id.example/token", "client")},
    ],
    ids=["no plugin", "too late", "unfit URL"],
)
async def test_what_was_never_sent_is_known_not_to_be(
    providers: PluginAuthProviders, changes: dict[str, Any]
) -> None:
    with pytest.raises(PatchbayError) as caught:
        await providers.refresh(ask(**changes))
    assert rules.certain(caught.value)
    assert isinstance(caught.value, Unavailable) == ("plugin_id" in changes)
    assert providers.ready("stub")
    assert not providers.ready("absent")


async def test_provider_may_call_back_while_it_is_asked(
    providers: PluginAuthProviders, provider: Provider, scopes: ScopeTable
) -> None:
    seen: dict[str, Any] = {}

    def answer(request: AuthRefreshRequest) -> AuthData:
        seen["live"], seen["reachable"] = len(scopes), request.callbacks.reachable
        return AuthData()

    provider.answer = answer
    with contextlib.suppress(PatchbayError):
        await providers.refresh(ask())
    assert seen == {"live": 1, "reachable": True}
    assert not len(scopes)
