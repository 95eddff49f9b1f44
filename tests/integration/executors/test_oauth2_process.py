"""The executors service refreshing tokens at an identity server: real processes, one of them killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from tests.harness.identity import Identity
from tests.harness.processes import PATCHBAY, Process, free_port

from patchbay import errors, keys, secrets
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.tokens import mint
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEY = bytes(range(32))
FAMILIES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    made = Identity(tmp_path_factory.mktemp("identity"), families=FAMILIES)
    made.process.start()
    yield made
    made.process.kill()


@pytest.fixture(scope="module")
def executors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("executors")
    port, health = free_port(), free_port()
    made = Process(
        f"127.0.0.1:{port}",
        [PATCHBAY, "executors", "--plugins", "oauth2"],
        env={
            "PATCHBAY_HOST": "127.0.0.1",
            "PATCHBAY_DATA_DIR": str(directory),
            "PATCHBAY_PLUGIN_KEY": KEY.hex(),
            "PATCHBAY_GRPC_PORT": str(port),
            "PATCHBAY_HEALTH_PORT": str(health),
        },
        directory=directory,
        ready_url=f"http://127.0.0.1:{health}/readyz",
    )
    made.start()
    yield made
    made.kill()


@pytest.fixture
async def channel(executors: Process) -> AsyncIterator[RemoteChannel]:
    made = RemoteChannel(executors.name)
    yield made
    await made.close()


async def refresh(
    channel: RemoteChannel, identity: Identity, token: str, *, deadline: float = 60.0
) -> dict[str, str]:
    sealed = secrets.seal(
        keys.sealing_key(KEY),
        "oauth2",
        "team",
        1,
        [identity.url],
        time.time() + 300,
        {"refresh_token": token},
    )
    config = orjson.dumps({"token_url": identity.token_url, "client_id": "c"})
    call_token = mint(keys.channel_key(KEY), "oauth2", "test", int(time.time()) + 300)
    answer = await channel.unary(
        methods.REFRESH_AUTH,
        auth_provider_pb2.AuthRefreshRequest(auth_id="team", secret=sealed, config=config),
        deadline=deadline,
        metadata=(("patchbay-plugin", "oauth2"), ("patchbay-token", call_token)),
    )
    opened = secrets.SecretOpener([keys.return_key(KEY)]).open(answer.auth.storage)
    return {name: opened[name] for name in ("access_token", "refresh_token")}


async def misbehave(identity: Identity, **behaviour: Any) -> None:
    await asyncio.to_thread(functools.partial(identity.behave, times=1, **behaviour))


async def presented(identity: Identity, token: str, *, ended: bool = False) -> dict[str, Any]:
    """Return the presentation of *token* as soon as the server has it, or has ended it."""
    async with asyncio.timeout(60):
        while True:
            for found in await asyncio.to_thread(identity.presentations):
                if found["token"] == token and (found["ended_at"] or not ended):
                    return dict(found)
            await asyncio.sleep(0.02)  # polls another process


async def test_tokens_of_one_family_are_each_presented_once(
    channel: RemoteChannel, identity: Identity
) -> None:
    token = "test-refresh-a-0"
    for _ in range(3):
        answer = await refresh(channel, identity, token)
        token = answer["refresh_token"]
        assert await asyncio.to_thread(identity.valid, answer["access_token"])

    counts = await asyncio.to_thread(identity.counts)
    assert {name: n for name, n in counts.items() if name.startswith("a.")} == {
        "a.0": 1,
        "a.1": 1,
        "a.2": 1,
    }


async def test_one_call_is_one_presentation_whatever_the_server_does(
    channel: RemoteChannel, identity: Identity
) -> None:
    behaviours: list[dict[str, Any]] = [
        {"status": 500},
        {"status": 503, "retry_after": "3"},
        {"cut": True},
        {"garbage": "<html>"},
        {"status": 400, "error": "invalid_request"},
    ]
    for behaviour in behaviours:
        await misbehave(identity, **behaviour)
        with pytest.raises(errors.UpstreamError):
            await refresh(channel, identity, "test-refresh-b-0")

    await refresh(channel, identity, "test-refresh-b-0")

    counts = await asyncio.to_thread(identity.counts)
    assert counts["b.0"] == len(behaviours) + 1


async def test_caller_that_leaves_is_seen_by_the_server(
    channel: RemoteChannel, identity: Identity
) -> None:
    await misbehave(identity, hold=True)
    calling = asyncio.create_task(refresh(channel, identity, "test-refresh-c-0"))
    await presented(identity, "c.0")

    calling.cancel()
    await asyncio.wait([calling])

    assert not (await presented(identity, "c.0", ended=True))["consumed"]


async def test_plugin_that_is_killed_while_it_waits_leaves_the_answer_unknown(
    channel: RemoteChannel, identity: Identity, executors: Process
) -> None:
    """The token may be used up: the scheduler is told `Unavailable` and not that nothing was sent."""
    await misbehave(identity, hold=True, consume=True)
    calling = asyncio.create_task(refresh(channel, identity, "test-refresh-d-0"))
    await presented(identity, "d.0")

    await asyncio.to_thread(executors.kill)
    with pytest.raises(errors.Unavailable) as caught:
        await calling
    await asyncio.to_thread(identity.release)

    assert caught.value.sent is not errors.Sent.NO
    assert (await presented(identity, "d.0"))["consumed"]
    await asyncio.to_thread(executors.start)


async def test_log_file_tells_what_the_server_tells_and_no_token(
    channel: RemoteChannel, identity: Identity, executors: Process
) -> None:
    await refresh(channel, identity, "test-refresh-e-0")
    with contextlib.suppress(errors.UpstreamError):
        await refresh(channel, identity, "test-refresh-e-0")

    lines = [json.loads(line) for line in identity.log_path.read_text().splitlines()]
    told = [(line["event"], line["outcome"]) for line in lines if line["token"] == "e.0"]
    assert ("decided", "issued") in told
    assert ("decided", "reuse") in told
    for log in (identity.log_path.read_text(), executors.tail(1 << 20)):
        assert "test-refresh-" not in log
        assert "test-access-" not in log
