"""What every durable store of credentials keeps, whichever adapter it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fakes.secrets_api import FakeSecrets

from patchbay.errors import Unavailable
from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
from patchbay_gateway.scheduler.durable.directory import DirectoryStore
from patchbay_gateway.scheduler.durable.memory import MemoryStore
from patchbay_gateway.scheduler.durable.port import (
    CredentialRecord,
    Failure,
    Intent,
    RecordChanged,
    RecordUnreadable,
    Stored,
    token_hash,
)
from patchbay_gateway.scheduler.durable.secret_store import SecretStore
from patchbay_operator.cluster import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.apiserver import ApiServer

    from patchbay_gateway.scheduler.cluster_secrets import Secret
    from patchbay_gateway.scheduler.durable.port import DurableStore
    from patchbay_operator.cluster import LightkubeApi

ROOT = b"r" * 32
FULL = CredentialRecord(
    id="team",
    version=7,
    material={"access_token": "test-access", "refresh_token": "test-refresh", "note": "test-note"},
    access_keys=("access_token", "note", "refresh_token"),
    expires_at=1_700_003_600.5,
    refreshed_at=1_700_000_000.25,
    next_refresh_after=1_700_000_030.0,
    status="backoff",
    failures=3,
    last_error=Failure("the provider says no", 1_700_000_000.0, "server_error", 500),
    intent=Intent(token_hash("test-refresh"), 1_700_000_060.0, "one"),
    disabled=True,
    seed_hash="aa",
    seeds_taken=("bb", "cc"),
    metadata={"email": "someone@example.com", "nested": {"list": [1, 2.5, None, True]}},
    attributes={"plan": "team"},
    label="Team",
)


def _secrets() -> SecretStore:
    """A store in Secrets that the operator made, for any credential that a test thinks of."""

    class Made(FakeSecrets):
        async def get(self, name: str) -> Secret | None:
            if name not in self.secrets:
                self.put(name)
            return await super().get(name)

    api = Made()
    return SecretStore(api, [ROOT], ids=lambda: [n.removesuffix("-state") for n in api.secrets])


def _cluster(server: ApiServer, kube: LightkubeApi) -> SecretStore:
    """The same on a real API server."""
    made: set[str] = set()

    class Made(SecretsApi):
        async def get(self, name: str) -> Secret | None:
            if name not in made:
                made.add(name)
                document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
                with contextlib.suppress(Refused):  # no name that a Secret can have
                    await kube.create(document)
            return await super().get(name)

    api = Made(server.url, kube._namespace, authority=server.authority, token=server.token_file())
    return SecretStore(api, [ROOT], ids=lambda: [n.removesuffix("-state") for n in made])


@pytest.fixture(
    params=[
        *("directory", "memory", "secrets"),
        pytest.param("cluster", marks=pytest.mark.requires("kube-apiserver")),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> DurableStore:
    """An empty store of each kind."""
    if request.param == "cluster":
        return _cluster(request.getfixturevalue("api_server"), request.getfixturevalue("kube"))
    adapters: dict[str, Callable[[], DurableStore]] = {
        "directory": lambda: DirectoryStore(tmp_path / "credentials", [ROOT]),
        "memory": MemoryStore,
        "secrets": _secrets,
    }
    return adapters[request.param]()


async def test_record_written_and_read_is_the_same(store: DurableStore) -> None:
    revision = await store.write(FULL, expected=None)
    assert await store.read("team") == Stored(FULL, revision)
    assert await store.revisions() == {"team": revision}


async def test_record_that_was_never_written_is_none(store: DurableStore) -> None:
    assert await store.read("nobody") is None
    assert await store.revisions() == {}


async def test_write_on_another_revision_is_refused_and_changes_nothing(
    store: DurableStore,
) -> None:
    first = await store.write(FULL, expected=None)
    second = await store.write(FULL.replace(version=8), expected=first)
    for stale in (first, None, "0"):
        with pytest.raises(RecordChanged):
            await store.write(FULL.replace(version=99), expected=stale)
    assert await store.read("team") == Stored(FULL.replace(version=8), second)


async def test_revision_changes_with_every_write_even_of_the_same(store: DurableStore) -> None:
    first = await store.write(FULL, expected=None)
    second = await store.write(FULL, expected=first)
    assert first != second


async def test_deleted_record_is_gone_and_its_revision_never_returns(store: DurableStore) -> None:
    first = await store.write(FULL, expected=None)
    with pytest.raises(RecordChanged):
        await store.delete("team", expected="0")
    await store.delete("team", expected=first)
    assert await store.read("team") is None
    again = await store.write(FULL, expected=None)
    assert again != first
    with pytest.raises(RecordChanged):
        await store.write(FULL, expected=first)


async def test_of_many_writers_on_one_revision_one_wins(store: DurableStore) -> None:
    revision = await store.write(FULL, expected=None)

    async def write(number: int) -> int | None:
        try:
            await store.write(FULL.replace(version=number), expected=revision)
        except RecordChanged:
            return None
        return number

    outcomes = await asyncio.gather(*(write(n) for n in range(100, 110)))
    winners = [n for n in outcomes if n is not None]
    stored = await store.read("team")
    assert stored is not None
    assert winners == [stored.record.version]


@pytest.mark.parametrize(
    "name",
    ["a", "claude-someone@example.com.json", "../up", ".hidden", "ä/ö", "x" * 128, "ä" * 200],
)
async def test_any_id_names_a_record_of_its_own(
    store: DurableStore, name: str, request: pytest.FixtureRequest
) -> None:
    if "cluster" in request.node.name and not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name):
        # Ids there are names of resources; another one reaches no Secret, whatever it says.
        with pytest.raises(Unavailable, match="has not made"):
            await store.write(CredentialRecord(id=name, version=1), expected=None)
        assert await store.read(name) is None
        return
    revision = await store.write(CredentialRecord(id=name, version=1), expected=None)
    await store.write(CredentialRecord(id=name + "b", version=2), expected=None)
    assert await store.read(name) == Stored(CredentialRecord(id=name, version=1), revision)
    assert set(await store.revisions()) == {name, name + "b"}


def test_record_does_not_show_its_secrets() -> None:
    shown = repr(FULL)
    assert "test-access" not in shown
    assert "test-refresh" not in shown
    assert "someone" not in shown


def test_record_gives_executors_access_material_alone() -> None:
    assert FULL.access == {"access_token": "test-access", "note": "test-note"}
    assert FULL.replace(access_keys=()).access == {"access_token": "test-access"}


# What only the directory promises.


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def one_file(directory: Path) -> Path:
    (found,) = directory.glob("*.json")
    return found


async def test_directory_files_are_private_and_hold_no_plain_text(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "c", [ROOT])
    await store.write(FULL, expected=None)
    path = one_file(tmp_path / "c")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    data = path.read_bytes()
    for secret in (
        b"test-access",
        b"test-refresh",
        b"someone",
        token_hash("test-refresh").encode(),
    ):
        assert secret not in data


async def test_directory_survives_a_rotation_of_the_root(tmp_path: Path) -> None:
    revision = await DirectoryStore(tmp_path, [ROOT]).write(FULL, expected=None)
    rotated = DirectoryStore(tmp_path, [b"n" * 32, ROOT])
    assert await rotated.read("team") == Stored(FULL, revision)
    await rotated.write(FULL, expected=revision)
    stored = await DirectoryStore(tmp_path, [b"n" * 32]).read("team")
    assert stored is not None
    assert stored.record == FULL


async def test_directory_reseals_what_a_former_root_sealed(tmp_path: Path) -> None:
    """After that the former root is not needed any more."""
    await DirectoryStore(tmp_path, [ROOT]).write(FULL, expected=None)
    DirectoryStore(tmp_path, [b"n" * 32, ROOT]).reseal()
    renewed = DirectoryStore(tmp_path, [b"n" * 32])
    stored = await renewed.read("team")
    assert stored is not None
    assert stored.record == FULL
    renewed.reseal()
    assert await renewed.revisions() == {"team": stored.revision}


async def test_directory_under_another_root_says_what_to_do(tmp_path: Path) -> None:
    await DirectoryStore(tmp_path, [ROOT]).write(FULL, expected=None)
    with pytest.raises(RecordUnreadable, match="PATCHBAY_STORE_KEY"):
        await DirectoryStore(tmp_path, [b"x" * 32]).read("team")


@pytest.mark.parametrize("field", ["id", "version", "sealed"])
async def test_directory_refuses_a_record_in_the_wrong_place(tmp_path: Path, field: str) -> None:
    """What is in the clear is bound to what is not."""
    store = DirectoryStore(tmp_path, [ROOT])
    await store.write(FULL, expected=None)
    path = one_file(tmp_path)
    document = json.loads(path.read_bytes())
    document[field] = {"id": "other", "version": 6, "sealed": document["sealed"][:-4] + "AAA="}[
        field
    ]
    if field == "id":
        path = path.with_name("other.json")
    path.write_text(json.dumps(document))
    with pytest.raises(RecordUnreadable):
        await store.read("other" if field == "id" else "team")


async def test_directory_with_one_damaged_file_serves_the_others(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, [ROOT])
    revision = await store.write(FULL, expected=None)
    (tmp_path / "broken.json").write_text("{")
    assert await store.revisions() == {"team": revision, "broken": "unreadable"}
    with pytest.raises(RecordUnreadable):
        await store.read("broken")
    await store.write(CredentialRecord(id="broken"), expected=None)
    assert await store.read("broken") is not None


async def test_directory_sweeps_drafts_of_the_killed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, [ROOT])
    await store.write(FULL, expected=None)
    (tmp_path / ".draft-1-abc").write_text("half")
    DirectoryStore(tmp_path, [ROOT])
    assert files_in(tmp_path) == [".lock", "team.json"]


_COUNT = """
import asyncio, sys
from pathlib import Path
from patchbay.errors import Unavailable
from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
from patchbay_gateway.scheduler.durable.directory import DirectoryStore
from patchbay_gateway.scheduler.durable.port import RecordChanged

async def count():
    store = DirectoryStore(Path(sys.argv[1]), [b"r" * 32])
    for _ in range(10):
        while True:
            stored = await store.read("team")
            grown = stored.record.replace(version=stored.record.version + 1)
            try:
                await store.write(grown, expected=stored.revision)
            except RecordChanged:
                continue
            break

asyncio.run(count())
"""


async def test_directory_shared_by_processes_loses_no_write(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    store = DirectoryStore(directory, [ROOT])
    await store.write(CredentialRecord(id="team"), expected=None)
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _COUNT, str(directory))
        for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    stored = await store.read("team")
    assert stored is not None
    assert stored.record.version == 30
    assert files_in(directory) == [".lock", "team.json"]
