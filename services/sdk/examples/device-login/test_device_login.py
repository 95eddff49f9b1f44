"""Tests of the example against an identity server of its own: login, refresh, parsing, contract."""

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from device_login import DeviceLogin

from patchbay.host.v1 import http_pb2
from patchbay.keys import return_key
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.secrets import SecretOpener
from patchbay.testing.connection import TEST_KEY, CallFailed
from patchbay.testing.fake_host import FakeHost, Grants
from patchbay.testing.harness import Served, conformance_of, serving

SERVER = "https://identity.example"


class Identity:
    """An identity server behind the gateway's HTTP: one device, one account."""

    def __init__(self) -> None:
        self.typed = False
        self.refresh_token = "test-refresh-1"

    def __call__(self, request: Any) -> http_pb2.HTTPResponse:
        form = {k: v[0] for k, v in parse_qs(request.body.decode()).items()}
        status, answer = self.answer(request.url.removeprefix(SERVER), form)
        return http_pb2.HTTPResponse(status_code=status, body=json.dumps(answer).encode())

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if path == "/device":
            told = {"device_code": "test-device", "user_code": "AB-CD", "interval": 1}
            return 200, {**told, "verification_uri": f"{SERVER}/type-it"}
        if form["grant_type"].endswith("device_code"):
            if not self.typed:
                return 400, {"error": "authorization_pending"}
        elif form["refresh_token"] != self.refresh_token:
            return 400, {"error": "invalid_grant"}
        else:
            self.refresh_token = "test-refresh-2"
        token = {"access_token": "test-access", "refresh_token": self.refresh_token}
        return 200, {**token, "expires_in": 60}


def stored(auth: Any) -> dict[str, str]:
    """Open what the plugin gave to keep, as a scheduler does."""
    opened = SecretOpener([return_key(TEST_KEY)]).open(auth.storage)
    return {name: opened[name] for name in ("access_token", "refresh_token")}


async def refresh(served: Served, token: str) -> Any:
    connection = await served.connection()
    secret = connection.seal({"refresh_token": token}, [SERVER], version=3)
    asked = auth_provider_pb2.AuthRefreshRequest(auth_id="a", secret=secret)
    return await served.call("RefreshAuth", asked)


async def login_and_refresh() -> None:
    identity = Identity()
    async with FakeHost(grants=Grants(http_hosts=("identity.example",))) as host:
        host.answers["HttpDo"] = identity
        async with serving(DeviceLogin(), host=host) as served:
            begun = await served.call("StartLogin", auth_provider_pb2.AuthLoginStartRequest())
            assert (begun.user_code, begun.url) == ("AB-CD", f"{SERVER}/type-it")
            poll = auth_provider_pb2.AuthLoginPollRequest(
                state=begun.state, metadata=begun.metadata
            )
            waiting = await served.call("PollLogin", poll)
            assert waiting.status == auth_provider_pb2.AUTH_LOGIN_STATUS_PENDING
            identity.typed = True
            done = await served.call("PollLogin", poll)
            assert done.status == auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS
            assert stored(done.auths[0])["refresh_token"] == "test-refresh-1"
            renewed = await refresh(served, "test-refresh-1")
            assert stored(renewed.auth)["refresh_token"] == "test-refresh-2"
            with pytest.raises(CallFailed) as refused:
                await refresh(served, "test-refresh-1")
            assert refused.value.failure.reason == "INVALID_GRANT"


def test_login_and_refresh() -> None:
    asyncio.run(login_and_refresh())


def test_documents_of_its_type_are_read() -> None:
    async def scenario() -> tuple[bool, bool]:
        async with serving(DeviceLogin()) as served:
            connection = await served.connection()
            handled = []
            for kind in ("device-login", "other"):
                document = json.dumps({"type": kind, "refresh_token": "test-refresh"})
                raw = connection.seal({"document": document})
                asked = auth_provider_pb2.AuthParseRequest(raw_json=raw)
                handled.append((await served.call("ParseAuth", asked)).handled)
            return handled[0], handled[1]

    assert asyncio.run(scenario()) == (True, False)


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(DeviceLogin()))
    assert report.passed, report.table()
