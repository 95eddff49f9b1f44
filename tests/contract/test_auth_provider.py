"""The auth provider `oauth2` behind both channels, before an identity server that judges by its log."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from tests.fakes.identity import Client, FakeIdentity, running_identity

from patchbay import errors, keys, secrets, tokens
from patchbay.plugin.v1 import auth_provider_pb2, identifier_pb2, plugin_pb2
from patchbay.serve import PluginServer
from patchbay_gateway.executors.main import built_executors, running_executors
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.channels.port import Channel

ROOT = b"r" * 32
KEY = plugin_key(ROOT, "oauth2")
CALLBACK = "http://127.0.0.1:8081/v0/management/oauth-callback"


@pytest.fixture
async def identity() -> AsyncIterator[FakeIdentity]:
    async with running_identity("a") as fake:
        yield fake


@pytest.fixture(params=["inprocess", "remote"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    if request.param == "inprocess":
        async with running_executors(["oauth2"], roots=[ROOT], env={}) as running:
            made: Channel = InProcessChannel(running.servicers, strict=True)
            yield made
            await made.close()
        return
    async with built_executors(["oauth2"], env={}) as plugins:
        server = PluginServer(plugins, {"oauth2": [KEY]})
        remote = RemoteChannel(f"127.0.0.1:{await server.start('127.0.0.1:0')}")
        yield remote
        await remote.close()
        await server.stop()


@dataclass
class Caller:
    """What a scheduler does: seals, calls, opens."""

    channel: Channel
    identity: FakeIdentity
    deadline: float = 60.0
    config: dict[str, Any] = field(default_factory=dict)
    origins: tuple[str, ...] = ()
    not_after: float = 0.0
    plugin_id: str = "oauth2"

    async def call(self, method: Any, request: Any) -> Any:
        token = tokens.mint(keys.channel_key(KEY), "oauth2", "test", int(time.time()) + 60)
        metadata = (("patchbay-plugin", "oauth2"), ("patchbay-token", token))
        return await self.channel.unary(method, request, deadline=self.deadline, metadata=metadata)

    def settings(self, **more: Any) -> bytes:
        fixed = {"token_url": self.identity.token_url, "client_id": "c"}
        return orjson.dumps(fixed | self.config | more)

    def seal(self, **material: str) -> Any:
        return secrets.seal(
            keys.sealing_key(KEY),
            self.plugin_id,
            "team",
            7,
            self.origins or (self.identity.url,),
            self.not_after or time.time() + 300,
            material,
        )

    async def refresh(self, refresh_token: str, **material: str) -> Any:
        return await self.call(
            methods.REFRESH_AUTH,
            auth_provider_pb2.AuthRefreshRequest(
                auth_id="team",
                auth_provider="somebody",
                secret=self.seal(refresh_token=refresh_token, **material),
                config=self.settings(),
            ),
        )

    @staticmethod
    def opened(auth: Any) -> secrets.OpenedSecret:
        return secrets.SecretOpener([keys.return_key(KEY)]).open(auth.storage)


@pytest.fixture
def caller(channel: Channel, identity: FakeIdentity) -> Caller:
    return Caller(channel, identity)


async def refused(caller: Caller, token: str = "test-refresh-a-0") -> errors.UpstreamError:
    with pytest.raises(errors.UpstreamError) as caught:
        await caller.refresh(token)
    assert token not in str(caught.value)
    return caught.value


async def test_identifier(caller: Caller) -> None:
    answer = await caller.call(methods.AUTH_IDENTIFIER, identifier_pb2.IdentifierRequest())

    assert answer.identifier == "oauth2"


async def test_capability_is_declared() -> None:
    async with built_executors(["oauth2"], env={}) as (plugin,):
        assert plugin.capabilities() == plugin_pb2.Capabilities(auth_provider=True)


async def test_refresh_rotates_and_answers_sealed_for_the_scheduler(
    caller: Caller, identity: FakeIdentity
) -> None:
    answer = await caller.refresh("test-refresh-a-0")

    stored = caller.opened(answer.auth)
    assert identity.books.valid(stored["access_token"])
    assert identity.books.name_of(stored["refresh_token"]) == "a.1"
    assert stored["token_type"] == "Bearer"
    assert (stored.credential_id, stored.version) == ("team", 7)
    assert abs(answer.auth.expires_at.seconds - time.time() - 3600) < 60
    assert stored["access_token"].encode() not in answer.SerializeToString()
    with pytest.raises(errors.FailedPrecondition):
        # A lease's opener has another key: what comes back is for the scheduler alone.
        secrets.SecretOpener([keys.sealing_key(KEY)]).open(answer.auth.storage)
    again = await caller.refresh(stored["refresh_token"])
    assert identity.books.name_of(caller.opened(again.auth)["refresh_token"]) == "a.2"
    assert identity.books.repeated() == {}


async def test_answer_without_refresh_token_leaves_the_old_one(
    caller: Caller, identity: FakeIdentity
) -> None:
    identity.behave(rotate=False)
    for _ in range(2):
        answer = await caller.refresh("test-refresh-a-0")
        assert caller.opened(answer.auth).get("refresh_token", "none") == "none"


async def test_same_refresh_token_again_is_no_news(caller: Caller, identity: FakeIdentity) -> None:
    identity.behave(rotate=False, extra={"refresh_token": "test-refresh-a-0"})
    answer = await caller.refresh("test-refresh-a-0")

    assert caller.opened(answer.auth).get("refresh_token", "none") == "none"


@pytest.mark.parametrize("how", ["body", "basic"])
async def test_client_secret_goes_as_configured(
    caller: Caller, identity: FakeIdentity, how: str
) -> None:
    identity.clients["c"] = Client("test-secret: %", how)
    caller.config = {"client_auth": how, "scopes": ["a", "b"], "extra": {"audience": "x"}}

    await caller.refresh("test-refresh-a-0", client_secret="test-secret: %")

    shown = identity.log[0]
    assert (shown.client, shown.client_auth, shown.outcome) == ("c", how, "issued")
    assert shown.form["scope"] == "a b"
    assert shown.form["audience"] == "x"


async def test_wrong_client_is_told_and_the_token_lives(
    caller: Caller, identity: FakeIdentity
) -> None:
    identity.clients["c"] = Client("test-other")

    assert (await refused(caller)).reason == "OAUTH_CLIENT_REFUSED"
    identity.clients.clear()
    assert (await caller.refresh("test-refresh-a-0")).auth.HasField("storage")


async def test_used_token_is_invalid_grant_and_costs_the_family(
    caller: Caller, identity: FakeIdentity
) -> None:
    first = caller.opened((await caller.refresh("test-refresh-a-0")).auth)

    error = await refused(caller)

    assert (error.reason, error.http_status) == ("INVALID_GRANT", 400)
    assert error.scope is errors.FaultScope.CREDENTIAL
    assert not identity.books.valid(first["access_token"])
    assert [p.outcome for p in identity.log] == ["issued", "reuse"]


@pytest.mark.parametrize(
    ("status", "told", "seconds"), [(500, "", None), (503, "7", 7), (429, "0", 0)]
)
async def test_failure_of_the_server_carries_its_status_and_hint(
    caller: Caller, identity: FakeIdentity, status: int, told: str, seconds: float | None
) -> None:
    identity.behave(status=status, retry_after=told)

    error = await refused(caller)

    assert (error.http_status, error.retry_after, error.sent) == (status, seconds, errors.Sent.YES)
    assert len(identity.log) == 1


async def test_garbage_is_a_clear_error(caller: Caller, identity: FakeIdentity) -> None:
    identity.behave(garbage="<html>welcome to this hotel</html>")

    error = await refused(caller)

    assert (error.http_status, error.reason) == (502, "TOKEN_ANSWER_INVALID")
    assert "hotel" not in str(error)


async def test_cut_connection_leaves_open_what_became_of_the_token(
    caller: Caller, identity: FakeIdentity
) -> None:
    identity.behave(cut=True, consume=True)

    assert (await refused(caller)).sent is errors.Sent.UNKNOWN
    assert len(identity.log) == 1, "sent twice"


async def test_server_that_is_down_was_not_reached(caller: Caller, free_port: int) -> None:
    caller.config = {"token_url": f"http://127.0.0.1:{free_port}/token"}
    caller.origins = (f"http://127.0.0.1:{free_port}",)

    assert (await refused(caller)).sent is errors.Sent.NO


async def test_silent_server_is_left_before_the_deadline(
    caller: Caller, identity: FakeIdentity
) -> None:
    """So that its answer, whatever it is, still reaches the scheduler as an answer of the plugin."""
    identity.behave(hold=True)
    caller.deadline = 1.5

    error = await refused(caller)

    assert (error.http_status, error.reason) == (504, "UPSTREAM_TIMEOUT")


async def test_cancelled_call_leaves_the_server_at_once(
    caller: Caller, identity: FakeIdentity
) -> None:
    identity.behave(hold=True)
    calling = asyncio.create_task(caller.refresh("test-refresh-a-0"))
    await identity.books.until(lambda: bool(identity.log))

    calling.cancel()
    await asyncio.wait([calling])

    await identity.books.until(lambda: identity.log[0].ended_at > 0)
    assert identity.log[0].outcome == "open"


async def test_token_goes_nowhere_but_to_the_allowed_origin(
    caller: Caller, identity: FakeIdentity
) -> None:
    caller.origins = ("https://id.example",)

    with pytest.raises(errors.PermissionDenied) as caught:
        await caller.refresh("test-refresh-a-0")

    assert caught.value.reason == "SECRET_ORIGIN"
    assert identity.log == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"not_after": 1.0}, "SECRET_EXPIRED"), ({"plugin_id": "other"}, "SECRET_FOREIGN")],
)
async def test_secret_that_is_old_or_foreign_is_not_opened(
    caller: Caller, identity: FakeIdentity, change: dict[str, Any], reason: str
) -> None:
    for name, value in change.items():
        setattr(caller, name, value)

    with pytest.raises(errors.FailedPrecondition) as caught:
        await caller.refresh("test-refresh-a-0")

    assert caught.value.reason == reason
    assert identity.log == []


async def test_settings_without_token_url_are_refused(caller: Caller) -> None:
    caller.config = {"token_url": None, "client_id": None}

    with pytest.raises(errors.InvalidRequest) as caught:
        await caller.refresh("test-refresh-a-0")

    assert "token_url" in str(caught.value)


async def test_generic_document_is_parsed_and_its_material_sealed(caller: Caller) -> None:
    document = {
        "type": "oauth2",
        "refresh_token": "test-r",
        "token_url": "https://id.example/token",
        "client_id": "c",
        "client_secret": "test-secret",
        "email": "person@example.com",
    }
    answer = await caller.call(
        methods.PARSE_AUTH,
        auth_provider_pb2.AuthParseRequest(
            provider="oauth2",
            file_name="a.json",
            raw_json=caller.seal(document=orjson.dumps(document).decode()),
        ),
    )

    assert answer.handled
    assert answer.auths[0].label == "person@example.com"
    assert orjson.loads(answer.auths[0].metadata)["token_url"] == "https://id.example/token"
    assert caller.opened(answer.auths[0])["client_secret"] == "test-secret"


@pytest.mark.parametrize("document", ["{}", "[]", '{"type": "claude", "access_token": "test-a"}'])
async def test_other_documents_are_left_to_others(caller: Caller, document: str) -> None:
    answer = await caller.call(
        methods.PARSE_AUTH,
        auth_provider_pb2.AuthParseRequest(raw_json=caller.seal(document=document)),
    )
    assert not answer.handled


@dataclass
class Login:
    """One login as the scheduler drives it."""

    caller: Caller
    config: bytes
    started: Any = None
    metadata: bytes = b""

    async def start(self, **asked: str) -> Any:
        self.started = await self.caller.call(
            methods.START_LOGIN,
            auth_provider_pb2.AuthLoginStartRequest(
                provider="somebody",
                base_url=CALLBACK,
                metadata=orjson.dumps(asked),
                config=self.config,
                secret=self.caller.seal(client_secret="test-secret"),
            ),
        )
        self.metadata = self.started.metadata
        return self.started

    async def poll(self, **callback: str) -> Any:
        request = auth_provider_pb2.AuthLoginPollRequest(
            provider="somebody",
            state=self.started.state,
            metadata=self.metadata,
            config=self.config,
            secret=self.caller.seal(client_secret="test-secret"),
            base_url=CALLBACK,
        )
        if callback:
            request.callback.CopyFrom(auth_provider_pb2.LoginCallback(**callback))
        answer = await self.caller.call(methods.POLL_LOGIN, request)
        self.metadata = answer.metadata or self.metadata
        return answer


async def redirected(url: str) -> dict[str, str]:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as browser:
        answer = await browser.get(url)
    return dict(httpx.URL(answer.headers["location"]).params)


async def test_login_by_code_with_pkce(caller: Caller, identity: FakeIdentity) -> None:
    identity.clients["c"] = Client("test-secret")
    extra = {"prompt": "consent"}
    login = Login(
        caller,
        caller.settings(
            authorization_url=f"{identity.url}/authorize", scopes=["a"], authorization_extra=extra
        ),
    )
    started = await login.start()
    query = dict(httpx.URL(started.url).params)
    assert query["redirect_uri"] == CALLBACK
    assert (query["code_challenge_method"], query["prompt"]) == ("S256", "consent")
    assert (await login.poll()).status == auth_provider_pb2.AUTH_LOGIN_STATUS_PENDING

    answer = await login.poll(**await redirected(started.url))

    assert answer.status == auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS
    stored = caller.opened(answer.auths[0])
    assert identity.books.valid(stored["access_token"])
    refreshed = await caller.refresh(stored["refresh_token"], client_secret="test-secret")
    assert refreshed.auth.HasField("storage")


@pytest.mark.parametrize(
    "callback",
    [
        {"state": "other", "code": "test-code"},
        {"error": "access_denied", "error_description": "not today"},
        {"code": "test-code-unknown"},
    ],
)
async def test_callback_that_brings_no_code_of_ours_ends_the_login(
    caller: Caller, identity: FakeIdentity, callback: dict[str, str]
) -> None:
    login = Login(caller, caller.settings(authorization_url=f"{identity.url}/authorize"))
    started = await login.start()

    answer = await login.poll(**{"state": started.state, **callback})

    assert answer.status == auth_provider_pb2.AUTH_LOGIN_STATUS_ERROR
    assert answer.message


async def test_stolen_code_is_worth_nothing_without_the_verifier(
    caller: Caller, identity: FakeIdentity
) -> None:
    login = Login(caller, caller.settings(authorization_url=f"{identity.url}/authorize"))
    callback = await redirected((await login.start()).url)
    login.metadata = b'{"verifier":"guessed"}'

    assert (await login.poll(**callback)).status == auth_provider_pb2.AUTH_LOGIN_STATUS_ERROR


async def test_login_by_device(caller: Caller, identity: FakeIdentity) -> None:
    login = Login(caller, caller.settings(device_authorization_url=f"{identity.url}/device/code"))
    started = await login.start(flow="device")
    assert started.user_code in started.url
    assert started.interval.seconds == 1
    assert (await login.poll()).status == auth_provider_pb2.AUTH_LOGIN_STATUS_PENDING

    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as person:
        await person.post(f"{identity.url}/__approve", params={"user_code": started.user_code})
    answer = await login.poll()

    assert answer.status == auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS
    assert identity.books.valid(caller.opened(answer.auths[0])["access_token"])


async def test_device_login_slows_down_when_told(caller: Caller, identity: FakeIdentity) -> None:
    login = Login(caller, caller.settings(device_authorization_url=f"{identity.url}/device/code"))
    await login.start()
    identity.behave(times=2, status=400, error="slow_down")

    assert [(await login.poll()).interval.seconds for _ in range(2)] == [6, 11]


async def test_device_login_that_is_refused_ends(caller: Caller, identity: FakeIdentity) -> None:
    login = Login(caller, caller.settings(device_authorization_url=f"{identity.url}/device/code"))
    await login.start()
    identity.behave(times=1, status=400, error="access_denied")

    assert (await login.poll()).status == auth_provider_pb2.AUTH_LOGIN_STATUS_ERROR


async def test_passing_failure_does_not_end_a_login(caller: Caller, identity: FakeIdentity) -> None:
    login = Login(caller, caller.settings(device_authorization_url=f"{identity.url}/device/code"))
    await login.start()
    identity.behave(times=1, status=503)

    with pytest.raises(errors.UpstreamError):
        await login.poll()


async def test_login_needs_an_address_to_send_people_to(caller: Caller) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await Login(caller, caller.settings()).start()

    assert caught.value.reason == "LOGIN_NOT_CONFIGURED"
