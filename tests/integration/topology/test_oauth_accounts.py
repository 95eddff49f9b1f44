"""Accounts with OAuth from the client to the token endpoint: real processes, and no key anywhere."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.identity import Identity
from tests.harness.processes import Verb
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.topology import Gateway

FAMILIES = ("configured", "filed", "dead")


@pytest.fixture(scope="module", params=[Up, Services], ids=["up", "services"])
def topology(request: pytest.FixtureRequest) -> type[Up | Services]:
    made: type[Up | Services] = request.param
    return made


@pytest.fixture(scope="module")
def identity(
    topology: type[Up | Services],  # noqa: ARG001 - another log for each
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Identity]:
    made = Identity(tmp_path_factory.mktemp("identity"), families=FAMILIES)
    made.process.start()
    yield made
    made.process.kill()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Upstream]:
    """A provider that takes none but the live tokens of the identity server."""
    directory = tmp_path_factory.mktemp("upstream")
    made = Upstream(directory, "--introspect", f"{identity.url}/introspect")
    made.process.start()
    yield made
    made.process.kill()


@pytest.fixture(scope="module")
def gateway(
    topology: type[Up | Services],
    tmp_path_factory: pytest.TempPathFactory,
    identity: Identity,
    upstream: Upstream,
) -> Iterator[Gateway]:
    directory: Path = tmp_path_factory.mktemp("gateway")
    (directory / "auths").mkdir()
    document = {
        "type": "filed",
        "access_token": "test-long-ago",
        "refresh_token": "test-refresh-filed-0",
        "expired": "2026-01-01T00:00:00Z",
        "token_url": identity.token_url,
        "client_id": "c",
    }
    (directory / "auths" / "person@example.com.json").write_text(json.dumps(document))

    def provider(name: str, *credentials: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "plugin": "openai-compatible",
            "base_url": upstream.url,
            "models": [{"name": "fake-model", "alias": name}],
            "credentials": list(credentials),
        }

    def account(family: str) -> dict[str, Any]:
        token = f"test-refresh-{family}-0"
        settings = {"token_url": identity.token_url, "client_id": "c", "refresh_token": token}
        return {"id": f"account-{family}", "oauth2": settings}

    providers = [
        {"name": "echo", "plugin": "echo", "models": ["echo"]},
        provider("configured", account("configured")),
        provider("dead", account("dead")),
        provider("filed"),
    ]
    config = make_config(upstream.url, providers=providers, auth_dir=str(directory / "auths"))
    made: Gateway = topology(directory, config)
    made.start()
    yield made
    made.stop()
    for process in made.processes.values():
        log = process.tail(1 << 24)
        assert "test-refresh-" not in log, process.name
        assert "test-access-" not in log, process.name


async def chat(gateway: Gateway, model: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60, verify=False) as client:
        return await client.post(
            f"{gateway.base_url}/v1/chat/completions",
            headers=gateway.headers(),
            json={"model": model, "messages": [{"role": "user", "content": "hi"}]},
        )


async def served(gateway: Gateway, model: str, limit: float = 60.0) -> None:
    """Ask until it is answered: the first refresh is under way when a gateway is ready."""
    async with asyncio.timeout(limit):
        while (answer := await chat(gateway, model)).status_code != 200:
            assert answer.status_code in {429, 503}, answer.text
            await asyncio.sleep(0.1)


async def counts(identity: Identity, family: str) -> list[int]:
    """Return how often each token of a family was presented, in the order of generations."""
    found = await asyncio.to_thread(identity.counts)
    named = {k: n for k, n in found.items() if k.startswith(f"{family}.")}
    return [named[key] for key in sorted(named)]


@pytest.mark.parametrize("model", ["configured", "filed"])
async def test_account_serves_and_its_refresh_token_was_presented_once(
    gateway: Gateway, identity: Identity, model: str
) -> None:
    await served(gateway, model)

    assert (await counts(identity, model))[0] == 1


async def test_token_that_the_provider_ended_early_is_replaced_without_the_client_seeing_it(
    gateway: Gateway, identity: Identity
) -> None:
    await served(gateway, "configured")
    before = len(await counts(identity, "configured"))
    await asyncio.to_thread(identity.expire, "configured")

    answers = await asyncio.gather(*(chat(gateway, "configured") for _ in range(8)))

    assert [answer.status_code for answer in answers] == [200] * 8
    found = await counts(identity, "configured")
    assert found == [1] * (before + 1)


async def test_account_that_was_logged_out_is_an_error_and_is_not_tried_again(
    gateway: Gateway, identity: Identity
) -> None:
    await served(gateway, "dead")
    await asyncio.to_thread(identity.revoke, "dead")
    answers = [await chat(gateway, "dead") for _ in range(4)]

    assert all(answer.status_code >= 400 for answer in answers)
    assert "test-" not in "".join(answer.text for answer in answers)
    found = await counts(identity, "dead")
    assert found == [1, 1], "one refusal tells enough"
    # So that there is nothing to say of it.
    await served(gateway, "configured")
    checks = {c["name"]: c for c in await asyncio.to_thread(doctor, gateway)}
    assert checks["credential account-dead"]["status"] == "fail"
    assert "does not accept the refresh token" in checks["credential account-dead"]["detail"]
    assert "credential account-configured" not in checks


def doctor(gateway: Gateway) -> list[dict[str, str]]:
    """Return what `patchbay doctor` finds, asked beside the running gateway."""
    done = Verb(
        "doctor",
        "--json",
        "--url",
        gateway.management_url,
        env={"PATCHBAY_MANAGEMENT_KEY": gateway.management_key, **gateway.env},
        directory=gateway.directory,
    ).end()
    assert done.returncode == 1, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found
