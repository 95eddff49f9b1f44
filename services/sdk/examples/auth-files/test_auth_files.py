"""Tests of the example: listing, reading, keeping, what is not granted, the contract."""

import asyncio
import json
from typing import Any

from auth_files import AuthFiles

from patchbay.management import ManagementRequest
from patchbay.testing.fake_host import FakeHost, Grants
from patchbay.testing.harness import conformance_of, serving

PATH = "/v0/management/auth-files"


def test_credentials_are_listed_read_and_kept() -> None:
    async def scenario() -> None:
        documents = {"a.json": {"type": "x", "token": "test-token"}}
        host = FakeHost(grants=Grants(auths="all"), documents=documents)
        async with host, serving(AuthFiles(), host=host) as served:

            async def ask(method: str, *query: tuple[str, str]) -> Any:
                request = ManagementRequest(method, PATH, query=list(query))
                return json.loads((await served.call("HandleManagement", request)).body)

            assert await ask("GET") == [{"index": "a.json", "status": "ready"}]
            shown = await ask("GET", ("index", "a.json"))
            assert shown == {"name": "a.json", "keys": ["token", "type"]}
            await ask("POST", ("index", "a.json"), ("note", "mine"))
            assert host.documents["a.json"]["note"] == "mine"
            assert await ask("GET", ("index", "b.json")) == {"error": "AUTH_UNKNOWN"}

    asyncio.run(scenario())


def test_without_a_grant_it_says_so() -> None:
    async def scenario() -> Any:
        async with FakeHost() as host, serving(AuthFiles(), host=host) as served:
            return await served.call("HandleManagement", ManagementRequest("GET", PATH))

    answer = asyncio.run(scenario())
    assert (answer.status_code, answer.body) == (502, b'{"error": "HOST_ACCESS_DENIED"}')


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(AuthFiles()))
    assert report.passed, report.table()
