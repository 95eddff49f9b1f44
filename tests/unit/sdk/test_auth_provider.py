"""The wire adapter of auth providers: dataclasses to messages, what is missing, what must not show."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from patchbay import errors, keys, secrets
from patchbay.auth_provider import (
    AuthData,
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthLoginStatus,
    AuthParseRequest,
    AuthParseResponse,
    AuthProvider,
    AuthRefreshRequest,
    AuthRefreshResponse,
    invalid_grant,
)
from patchbay.auth_servicer import AUTH_PROVIDER_SERVICE
from patchbay.executor import Executor
from patchbay.plugin.v1 import auth_provider_pb2, identifier_pb2
from patchbay.serve import build_servicers

KEY = bytes(range(32))
# Of the collection: a whole run takes minutes, so what is to hold holds an hour.
NOW = time.time()


class Context:
    def __init__(self, plugin: str = "told") -> None:
        self._plugin = plugin

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("patchbay-plugin", self._plugin)]

    def time_remaining(self) -> float:
        return 3.0


class Told(AuthProvider):
    """Answers what the test put in, and remembers."""

    id: ClassVar = "told"
    name: ClassVar = "Told"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.seen: Any = None

    async def _give(self, request: Any) -> Any:
        self.seen = request
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        found: AuthParseResponse = await self._give(request)
        return found

    async def start_login(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        found: AuthLoginStartResponse = await self._give(request)
        return found

    async def poll_login(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        found: AuthLoginPollResponse = await self._give(request)
        return found

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        found: AuthRefreshResponse = await self._give(request)
        return found


class Bare(AuthProvider):
    """Serves no method."""

    id: ClassVar = "bare"
    name: ClassVar = "Bare"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Runner(Executor):
    """No auth provider."""

    id: ClassVar = "runner"
    name: ClassVar = "Runner"
    version: ClassVar = "1"
    author: ClassVar = "tests"


def serving(*plugins: Any, keyed: bool = True) -> Any:
    plugin_keys = {plugin.id: [KEY] if keyed else [] for plugin in plugins}
    return build_servicers(plugins, plugin_keys)[AUTH_PROVIDER_SERVICE]


def sealed(**material: str) -> Any:
    return secrets.seal(
        keys.sealing_key(KEY), "told", "team", 3, ["https://id.example"], NOW + 86_400, material
    )


def opened(auth: Any) -> secrets.OpenedSecret:
    return secrets.SecretOpener([keys.return_key(KEY)]).open(auth.storage)


def refresh_request(**more: Any) -> auth_provider_pb2.AuthRefreshRequest:
    return auth_provider_pb2.AuthRefreshRequest(
        auth_id="team", auth_provider="p", secret=sealed(refresh_token="test-r"), **more
    )


@pytest.mark.parametrize("told", [9.3e18, 1e300, float("inf")])
async def test_refresh_token_that_never_ends_is_handed_back(told: float) -> None:
    """Else what was just issued would be lost for a number that no calendar has."""
    plugin = Told(AuthRefreshResponse(AuthData(storage={"access_token": "a"}, expires_at=told)))
    answer = await serving(plugin).RefreshAuth(refresh_request(), Context())
    assert answer.auth.expires_at.ToDatetime().year == 9999


async def test_refresh_message_has_all_fields_and_storage_sealed() -> None:
    auth = AuthData(
        provider="p",
        id="team",
        file_name="team.json",
        label="somebody",
        prefix="x",
        proxy_url="direct",
        disabled=True,
        storage={"access_token": "test-a", "refresh_token": ""},
        metadata={"plan": "pro"},
        attributes={"region": "eu"},
        next_refresh_after=NOW + 5,
        expires_at=NOW + 10,
        access_keys=("access_token",),
    )
    plugin = Told(AuthRefreshResponse(auth, next_refresh_after=NOW + 6))

    answer = await serving(plugin).RefreshAuth(
        refresh_request(config=b'{"a":1}', metadata=b'{"b":2}', attributes={"c": "3"}), Context()
    )

    made = answer.auth
    assert (made.provider, made.id, made.file_name, made.label) == (
        "p",
        "team",
        "team.json",
        "somebody",
    )
    assert (made.prefix, made.proxy_url, made.disabled) == ("x", "direct", True)
    assert (made.metadata, dict(made.attributes)) == (b'{"plan":"pro"}', {"region": "eu"})
    assert list(made.access_keys) == ["access_token"]
    assert made.expires_at.seconds == int(NOW + 10)
    assert made.next_refresh_after.seconds == int(NOW + 5)
    assert answer.next_refresh_after.seconds == int(NOW + 6)
    stored = opened(made)
    # An empty value travels: it removes the old one.
    assert (stored["access_token"], stored["refresh_token"]) == ("test-a", "")
    assert (stored.credential_id, stored.version, stored.allowed_origins) == (
        "team",
        3,
        frozenset(),
    )
    seen = plugin.seen
    assert (seen.config, seen.metadata, dict(seen.attributes)) == ({"a": 1}, {"b": 2}, {"c": "3"})
    assert seen.secret()["refresh_token"] == "test-r"
    assert seen.time_remaining == 3.0


async def test_what_is_left_alone_is_not_in_the_message() -> None:
    answer = await serving(Told(AuthRefreshResponse(AuthData()))).RefreshAuth(
        refresh_request(), Context()
    )

    assert answer.auth.ByteSize() == 0
    assert not answer.HasField("next_refresh_after")


async def test_metadata_emptied_on_purpose_is_an_empty_object() -> None:
    answer = await serving(Told(AuthRefreshResponse(AuthData(metadata={})))).RefreshAuth(
        refresh_request(), Context()
    )
    assert answer.auth.metadata == b"{}"


async def test_parse_gives_the_document_and_returns_several_credentials() -> None:
    plugin = Told(
        AuthParseResponse(True, [AuthData(id="a", storage={"k": "test-1"}), AuthData(id="b")])
    )

    answer = await serving(plugin).ParseAuth(
        auth_provider_pb2.AuthParseRequest(
            provider="p", path="/x/a.json", file_name="a.json", raw_json=sealed(document='{"x":1}')
        ),
        Context(),
    )

    assert plugin.seen.raw_json == b'{"x":1}'
    assert (plugin.seen.provider, plugin.seen.file_name) == ("p", "a.json")
    assert [auth.id for auth in answer.auths] == ["a", "b"]
    assert opened(answer.auths[0])["k"] == "test-1"
    assert not answer.auths[1].HasField("storage")


async def test_login_messages() -> None:
    plugin = Told(AuthLoginStartResponse("https://x", "s-1", metadata={"v": 1}, interval=2.5))
    servicer = serving(plugin)

    started = await servicer.StartLogin(
        auth_provider_pb2.AuthLoginStartRequest(provider="p", base_url="http://b"), Context()
    )
    assert (started.provider, started.url, started.state) == ("p", "https://x", "s-1")
    assert (started.metadata, started.interval.ToMilliseconds()) == (b'{"v":1}', 2500)
    assert plugin.seen.secret() is None

    plugin.answer = AuthLoginPollResponse(AuthLoginStatus.SUCCESS, auths=[AuthData(label="me")])
    request = auth_provider_pb2.AuthLoginPollRequest(state="s-1", metadata=b'{"v":"test-v"}')
    polled = await servicer.PollLogin(request, Context())
    assert polled.status == auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS
    assert [auth.label for auth in polled.auths] == ["me"]
    assert polled.metadata == b""
    assert plugin.seen.callback is None
    assert "test-v" not in repr(plugin.seen)


def test_secrets_do_not_show() -> None:
    shown = [
        AuthData(storage={"access_token": "test-a"}),
        AuthLoginStartResponse("u", "s", metadata={"verifier": "test-v"}),
        AuthLoginPollResponse(AuthLoginStatus.PENDING, metadata={"device_code": "test-d"}),
    ]
    assert "test-" not in repr(shown)


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("ParseAuth", auth_provider_pb2.AuthParseRequest),
        ("StartLogin", auth_provider_pb2.AuthLoginStartRequest),
        ("PollLogin", auth_provider_pb2.AuthLoginPollRequest),
        ("RefreshAuth", auth_provider_pb2.AuthRefreshRequest),
    ],
)
async def test_method_that_a_provider_lacks_is_unimplemented(
    method: str, request_type: Any
) -> None:
    with pytest.raises(errors.Unimplemented):
        await getattr(serving(Bare()), method)(request_type(), Context("bare"))


async def test_plugin_that_is_no_auth_provider_is_refused() -> None:
    with pytest.raises(errors.NotFound) as caught:
        await serving(Told(), Runner()).Identifier(
            identifier_pb2.IdentifierRequest(), Context("runner")
        )
    assert caught.value.reason == "CAPABILITY_NOT_SERVED"


async def test_storage_without_a_key_to_seal_it_is_refused() -> None:
    plugin = Told(AuthParseResponse(True, [AuthData(storage={"k": "test-1"})]))

    with pytest.raises(errors.FailedPrecondition) as caught:
        await serving(plugin, keyed=False).ParseAuth(
            auth_provider_pb2.AuthParseRequest(), Context()
        )
    assert caught.value.reason == "SECRET_KEY_UNKNOWN"


async def test_configuration_that_is_no_object_is_refused_without_its_text() -> None:
    plugin = Told(AuthRefreshResponse(AuthData()))
    await serving(plugin).RefreshAuth(refresh_request(config=b'["test-x"]'), Context())

    with pytest.raises(errors.InvalidRequest) as caught:
        _ = plugin.seen.config
    assert "test-x" not in str(caught.value)


def test_invalid_grant_says_that_only_a_login_helps() -> None:
    error = invalid_grant("log in again")

    assert (error.http_status, error.reason) == (400, "INVALID_GRANT")
    assert error.scope is errors.FaultScope.CREDENTIAL
