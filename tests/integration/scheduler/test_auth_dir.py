"""Auth files as a scheduler serves them: leased, refreshed at a real endpoint, followed as they change."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.identity import FakeIdentity, running_identity
from tests.integration.scheduler.conftest import ROOTS, acquire, eventually

from patchbay.keys import sealing_key
from patchbay.secrets import SecretOpener
from patchbay_gateway.executors.main import running_executors
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.scheduler.conftest import Gateway

    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.scheduler.service import SchedulerServicer

FILE = """
auth_dir: {directory}
providers:
  - {{name: fake, plugin: openai-compatible, base_url: "http://127.0.0.1:9/v1", models: [m]}}
"""


@pytest.fixture
async def identity() -> AsyncIterator[FakeIdentity]:
    async with running_identity("a") as fake:
        yield fake


@pytest.fixture
def auth_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "auths"
    directory.mkdir()
    return directory


def write(directory: Path, name: str, **document: Any) -> Path:
    path = directory / f"{name}.json"
    draft = directory / f".{name}"
    draft.write_text(json.dumps({"type": "fake", **document}))
    draft.replace(path)
    return path


@contextlib.asynccontextmanager
async def serving(
    gateway: Gateway, auth_dir: Path
) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder]]:
    async with running_executors(["oauth2"], roots=ROOTS.plugins, env={}) as executors:
        channel = InProcessChannel(executors.servicers, strict=True)
        config = FILE.format(directory=auth_dir)
        async with gateway.scheduler(
            config=config, reload=lambda: _parsed(config), local={"oauth2": channel}
        ) as running:
            yield running
        await channel.close()


def _parsed(config: str) -> Any:
    from patchbay_gateway.kernel.config import parse  # noqa: PLC0415 - beside its only use

    return parse(config, env={})


def credentials(holder: SnapshotHolder) -> list[str]:
    assert holder.current is not None
    return [c.id for p in holder.current.providers for c in p.credentials]


async def leased(servicer: SchedulerServicer, holder: SnapshotHolder, uid: str) -> str:
    """Return the key or token that an attempt would send, or nothing."""
    assert holder.current is not None
    answer = await servicer.Acquire(acquire(holder.current.version, f"{uid}-1"))
    result = answer.results[0]
    if not result.HasField("lease"):
        return ""
    key = sealing_key(plugin_key(ROOTS.plugins[0], "openai-compatible"))
    opened = SecretOpener([key]).open(result.lease.secret)
    assert opened.get("refresh_token") == ""
    return opened.get("api_key") or opened.get("access_token")


async def test_key_of_a_file_is_leased(gateway: Gateway, auth_dir: Path) -> None:
    write(auth_dir, "spare", api_key="test-key")

    async with serving(gateway, auth_dir) as (servicer, holder):
        assert credentials(holder) == ["spare"]
        assert await leased(servicer, holder, "R") == "test-key"


async def test_token_of_a_file_is_refreshed_and_the_file_stays_as_it_is(
    gateway: Gateway, auth_dir: Path, identity: FakeIdentity
) -> None:
    path = write(
        auth_dir,
        "person@example.com",
        access_token="test-old",
        refresh_token="test-refresh-a-0",
        expired=time.time() - 60,
        token_url=identity.token_url,
        client_id="c",
    )
    before = path.read_bytes()

    async with serving(gateway, auth_dir) as (servicer, holder):
        await identity.books.until(lambda: bool(identity.log) and identity.log[0].answered)
        token = ""

        async def served() -> bool:
            nonlocal token
            token = await leased(servicer, holder, f"R{time.monotonic_ns()}")
            return identity.books.valid(token)

        await eventually(served)
    assert path.read_bytes() == before

    # A process that starts anew goes on with the rotated token, not with the file's.
    write(auth_dir, "person@example.com", **json.loads(before) | {"priority": 5})
    async with serving(gateway, auth_dir) as (servicer, holder):
        await eventually(served)
    assert [p.token for p in identity.log] == ["a.0"]


async def test_new_token_in_the_file_brings_a_dead_account_back(
    gateway: Gateway, auth_dir: Path, identity: FakeIdentity
) -> None:
    endpoint = {"token_url": identity.token_url, "client_id": "c"}
    identity.books.revoke("a")
    write(auth_dir, "team", refresh_token="test-refresh-a-0", **endpoint)

    async with serving(gateway, auth_dir) as (servicer, holder):
        await identity.books.until(lambda: bool(identity.log) and identity.log[0].answered)

        async def served() -> bool:
            token = await leased(servicer, holder, f"R{time.monotonic_ns()}")
            return identity.books.valid(token)

        assert not await served()
        second = identity.books.open_family("b")
        write(auth_dir, "team", refresh_token=second, **endpoint)
        await eventually(served)
    assert [(p.token, p.outcome) for p in identity.log] == [("a.0", "revoked"), ("b.0", "issued")]


async def test_files_are_followed(gateway: Gateway, auth_dir: Path) -> None:
    async with serving(gateway, auth_dir) as (servicer, holder):
        assert credentials(holder) == ["fake-default"]
        path = write(auth_dir, "spare", api_key="test-key-1")

        async def there() -> bool:
            return credentials(holder) == ["spare"]

        await eventually(there)
        write(auth_dir, "spare", api_key="test-key-2")

        async def changed() -> bool:
            return await leased(servicer, holder, f"R{time.monotonic_ns()}") == "test-key-2"

        await eventually(changed)
        write(auth_dir, "broken", weight="much", api_key="test-key")
        path.unlink()

        async def gone() -> bool:
            return credentials(holder) == ["fake-default"]

        await eventually(gone)
