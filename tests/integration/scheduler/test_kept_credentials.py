"""Credentials that logins and commands bring, in a scheduler: kept, used, told, removed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.integration.scheduler.conftest import ROOTS, acquire, eventually

from patchbay import errors
from patchbay.auth_provider import (
    AuthData,
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthLoginStatus,
    AuthProvider,
)
from patchbay.auth_wire import auth_message
from patchbay.keys import return_key, sealing_key
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.secrets import SecretOpener
from patchbay.serve import PluginServer
from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.scheduler.service import SchedulerServicer

FILE = """
providers:
  - {{name: fake, plugin: openai-compatible, base_url: "http://127.0.0.1:9/v1", models: [m]}}
  - name: team
    plugin: openai-compatible
    base_url: "http://127.0.0.1:9/v1"
    models: [t]
    credentials:
      - id: ann
        oauth2: {{token_url: "https://id.example/t", client_id: c, plugin: logger}}
plugins:
  - {{id: logger, address: "127.0.0.1:{port}"}}
"""
KEY = plugin_key(ROOTS.plugins[0], "logger")


class Logger(AuthProvider):
    """Its logins are done at once, with the accounts that it is told."""

    id: ClassVar = "logger"
    name: ClassVar = "Logger"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self) -> None:
        self.accounts: tuple[str, ...] = ("ann",)

    @property
    def identifier(self) -> str:
        return "fake"

    async def start_login(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        return AuthLoginStartResponse("https://id.example/", f"state-{'-'.join(self.accounts)}")

    async def poll_login(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        auths = [brought(name) for name in self.accounts]
        return AuthLoginPollResponse(AuthLoginStatus.SUCCESS, auths=auths)


def brought(label: str, **more: Any) -> AuthData:
    return AuthData(label=label, storage={"access_token": f"test-{label}"}, **more)


@contextlib.asynccontextmanager
async def serving(
    gateway: Any, plugin: Logger
) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder]]:
    server = PluginServer([plugin], {plugin.id: [KEY]})
    port = await server.start("127.0.0.1:0")
    try:
        async with gateway.scheduler(config=FILE.format(port=port)) as running:
            yield running
    finally:
        await server.stop()


async def login(servicer: SchedulerServicer, provider: str) -> list[str]:
    """Log in, once the plugin is there; return who got tokens."""
    request = scheduler_pb2.StartLoginRequest(provider=provider, callback_url="http://127.0.0.1/")
    async with asyncio.timeout(60):
        while True:
            try:
                started = await servicer.StartLogin(request)
                break
            except (errors.NotFound, errors.Unavailable):
                await asyncio.sleep(0.05)  # polls the handshake
    asked = scheduler_pb2.PollLoginRequest(state=started.state)
    done = await servicer.PollLogin(asked)
    assert done.status == "ok", done
    return list(done.credential_ids)


async def keep(servicer: SchedulerServicer, *auths: AuthData) -> list[str]:
    messages = [auth_message(auth, "logger", return_key(KEY), 4e9) for auth in auths]
    request = scheduler_pb2.KeepAuthsRequest(plugin_id="logger", auths=messages)
    return list((await servicer.KeepAuths(request)).credential_ids)


async def serves(holder: SnapshotHolder, *ids: str) -> None:
    """Wait until the snapshot has all of *ids*."""

    async def there() -> bool:
        return holder.current is not None and set(ids) <= set(holder.current.credential_by_id)

    await eventually(there, 60)


async def test_several_accounts_of_one_login_are_all_kept_over_a_restart(gateway: Any) -> None:
    plugin = Logger()
    plugin.accounts = ("ann", "bob", "cid")
    async with serving(gateway, plugin) as (servicer, holder):
        assert await login(servicer, "team") == ["ann", "ann.bob", "ann.cid"]
        await serves(holder, "ann.bob", "ann.cid")
        # Only the declared one is meant by the provider's name.
        plugin.accounts = ("ann",)
        assert await login(servicer, "team") == ["ann"]
    async with serving(gateway, plugin) as (servicer, holder):
        await serves(holder, "ann.bob", "ann.cid")
        assert holder.current is not None
        assert holder.current.provider_of["ann.bob"].name == "team"


async def test_login_of_a_provider_without_credential_makes_one(gateway: Any) -> None:
    async with serving(gateway, Logger()) as (servicer, holder):
        assert await login(servicer, "fake") == ["fake-ann"]
        await serves(holder, "fake-ann")
        assert holder.current is not None
        assert "fake-default" not in holder.current.credential_by_id
        answer = await servicer.Acquire(acquire(holder.current.version, "R-1"))
        lease = answer.results[0].lease
        key = sealing_key(plugin_key(ROOTS.plugins[0], "openai-compatible"))
        assert SecretOpener([key]).open(lease.secret)["access_token"] == "test-ann"


async def test_login_that_brings_nothing_to_keep_ends_with_the_reason(gateway: Any) -> None:
    plugin = Logger()
    async with serving(gateway, plugin) as (servicer, _):
        await login(servicer, "team")
        plugin.accounts = ()
        started = await servicer.StartLogin(scheduler_pb2.StartLoginRequest(provider="team"))
        asked = scheduler_pb2.PollLoginRequest(state=started.state)
        done = await servicer.PollLogin(asked)
        assert done.status == "error"
        assert done.message == "not kept: auth provider logger answered without material"


async def test_what_a_command_brings_is_kept_listed_and_removed(gateway: Any) -> None:
    async with serving(gateway, Logger()) as (servicer, holder):
        await login(servicer, "team")  # the plugin is registered, its key known
        assert await keep(servicer, brought("dan", provider="fake")) == ["fake-dan"]
        await serves(holder, "fake-dan")
        listed = await servicer.ListCredentials(scheduler_pb2.ListCredentialsRequest())
        (told,) = [c for c in listed.credentials if c.id == "fake-dan"]
        assert (told.source, told.brought_by, told.provider) == ("command", "logger", "fake")
        await servicer.RemoveCredential(
            scheduler_pb2.RemoveCredentialRequest(credential_id="fake-dan")
        )

        async def gone() -> bool:
            current = holder.current
            return current is not None and "fake-dan" not in current.credential_by_id

        await eventually(gone, 60)


async def test_what_others_sealed_is_not_kept(gateway: Any) -> None:
    async with serving(gateway, Logger()) as (servicer, _):
        await login(servicer, "team")
        foreign = auth_message(brought("eve"), "logger", return_key(b"x" * 32), 4e9)
        request = scheduler_pb2.KeepAuthsRequest(plugin_id="logger", auths=[foreign])
        with pytest.raises(errors.FailedPrecondition) as caught:
            await servicer.KeepAuths(request)
        assert caught.value.reason == "AUTH_UNREADABLE"


async def test_another_account_under_an_id_does_not_inherit_its_rests(gateway: Any) -> None:
    plugin = Logger()
    async with serving(gateway, plugin) as (servicer, holder):
        await login(servicer, "fake")
        await serves(holder, "fake-ann")
        assert holder.current is not None
        answer = await servicer.Acquire(acquire(holder.current.version, "R-1"))
        item = scheduler_pb2.ReportItem(attempt=answer.results[0].lease.attempt)
        item.settlement.outcome = journal_pb2.OUTCOME_FAILED
        item.fault.kind = scheduler_pb2.FAULT_KIND_QUOTA
        item.fault.scope = error_pb2.FAULT_SCOPE_CREDENTIAL
        item.fault.retry_after.FromSeconds(900)
        await servicer.Report(scheduler_pb2.ReportRequest(edge_id="edge", items=[item]))

        async def state() -> str:
            listed = await servicer.ListCredentials(
                scheduler_pb2.ListCredentialsRequest(ids=["fake-ann"])
            )
            return listed.credentials[0].models[0].state

        async def cools() -> bool:
            return await state() == "cooling"

        await eventually(cools, 60)  # a report is answered before Redis has it
        await keep(servicer, brought("ann", id="fake-ann"))
        assert await state() == "cooling"
        await keep(servicer, brought("zoe", id="fake-ann"))

        async def ready() -> bool:
            return await state() == "ready"

        await eventually(ready, 60)
