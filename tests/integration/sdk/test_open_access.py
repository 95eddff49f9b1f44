"""`patchbay up` without client keys: for programs of this machine, not for web pages in its browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.harness.topology import Services, Up

PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def anyone(open_gateway: Up | Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with httpx.AsyncClient(
        base_url=open_gateway.base_url, timeout=60, trust_env=False, verify=False
    ) as client:
        yield client


async def test_answers_without_a_key(anyone: httpx.AsyncClient) -> None:
    assert (await anyone.post(PATH, json=BODY)).status_code == 200
    assert (await anyone.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1"])
async def test_loopback_host_is_answered(anyone: httpx.AsyncClient, host: str) -> None:
    assert (await anyone.post(PATH, json=BODY, headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1:8080"])
async def test_foreign_host_is_403(anyone: httpx.AsyncClient, host: str) -> None:
    """A name of the attacker's that resolves to 127.0.0.1."""
    for answer in (
        await anyone.post(PATH, json=BODY, headers={"host": host}),
        await anyone.get("/v1/models", headers={"host": host}),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
async def test_foreign_origin_is_403(anyone: httpx.AsyncClient, origin: str) -> None:
    answer = await anyone.post(PATH, json=BODY, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_own_origin_is_answered(
    anyone: httpx.AsyncClient, open_gateway: Up | Services
) -> None:
    headers = {"origin": open_gateway.base_url}
    assert (await anyone.post(PATH, json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_form_post_is_refused(anyone: httpx.AsyncClient, media: str) -> None:
    """What a page can send without asking the browser first."""
    answer = await anyone.post(
        PATH, content=json.dumps(BODY), headers={"content-type": media} if media else {}
    )
    assert answer.status_code == 415


async def test_headers_of_ours_can_be_switched_off(anyone: httpx.AsyncClient) -> None:
    """`headers: {patchbay: false}` leaves the request id."""
    answer = await anyone.post(PATH, json=BODY)
    assert [name for name in answer.headers if name.startswith("x-patchbay")] == []
    assert answer.headers["x-request-id"]


async def test_headers_of_ours_are_there_by_default(http: httpx.AsyncClient) -> None:
    for body in (BODY, {**BODY, "stream": True}):
        answer = await http.post(PATH, json=body)
        assert answer.headers["x-patchbay-model"] == "echo"
        assert answer.headers["x-patchbay-provider"] == "echo"
        assert answer.headers["x-patchbay-attempts"] == "1"
        assert float(answer.headers["x-patchbay-overhead-ms"]) >= 0
        assert "server" not in answer.headers
