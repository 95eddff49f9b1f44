"""Auth files that plugins read: what comes of them, and what stays when a plugin goes or breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.harness.ports import free_port
from tests.integration.scheduler.conftest import ROOTS, acquire, eventually

from patchbay import errors
from patchbay.auth_provider import (
    AuthData,
    AuthParseRequest,
    AuthParseResponse,
    AuthProvider,
    AuthRefreshRequest,
    AuthRefreshResponse,
)
from patchbay.keys import sealing_key
from patchbay.models import AuthModelRequest, ModelInfo, ModelProvider, ModelResponse
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.secrets import SecretOpener
from patchbay.serve import PluginServer
from patchbay_gateway.kernel.config import parse
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import CredentialEntry, Snapshot
    from patchbay_gateway.scheduler.service import SchedulerServicer

FILE = """
auth_dir: {directory}
providers:
  - {{name: fake, plugin: openai-compatible, base_url: "http://127.0.0.1:9/v1", models: [m]}}
  - {{name: other, plugin: openai-compatible, base_url: "http://127.0.0.1:9/v1", models: [o]}}
plugins:
{plugins}
"""
TWO = {"type": "fake", "accounts": [{"label": "ann", "token": "test-a"}, {"label": "bob"}]}


class Reader(AuthProvider):
    """Reads files with a list of accounts; leaves others alone."""

    id: ClassVar = "reader"
    name: ClassVar = "Reader"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self, provider: str = "fake") -> None:
        self.key = provider
        self.broken = False
        self.asked: list[tuple[str, str]] = []

    @property
    def identifier(self) -> str:
        return self.key

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        self.asked.append((request.provider, request.file_name))
        if self.broken:
            raise errors.FailedPrecondition("not now")
        document = json.loads(request.raw_json)
        if "accounts" not in document:
            return AuthParseResponse(handled=False)
        return AuthParseResponse(
            handled=True, auths=[self.account(each) for each in document["accounts"]]
        )

    def account(self, said: dict[str, Any]) -> AuthData:
        """Return one credential; its material has a name of the plugin's own."""
        return AuthData(
            provider=said.get("provider", ""),
            id=said.get("id", ""),
            label=said.get("label", ""),
            storage={"cookie": said.get("token", "test-cookie")},
            access_keys=["cookie"],
            attributes={"tier": said.get("tier", "free")},
            metadata={"token_url": "https://id.example/token", "n": 1},
            next_refresh_after=said.get("next"),
        )

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        cookie = request.secret()["cookie"]
        assert request.metadata["n"] == 1
        return AuthRefreshResponse(
            AuthData(storage={"cookie": f"{cookie}+"}, expires_at=time.time() + 3600)
        )


class Gone:
    """A place to run the plugin at, again and again."""

    def __init__(self, plugin: AuthProvider) -> None:
        self.plugin = plugin
        self.port = 0
        self._server: PluginServer | None = None

    async def start(self) -> None:
        keys = {self.plugin.id: [plugin_key(ROOTS.plugins[0], self.plugin.id)]}
        self._server = PluginServer([self.plugin], keys)
        # Nobody else's while the plugin is away.
        self.port = self.port or free_port()
        await self._server.start(f"127.0.0.1:{self.port}")

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None


@pytest.fixture
def auth_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "auths"
    directory.mkdir()
    return directory


@pytest.fixture
async def reader() -> AsyncIterator[Gone]:
    """The plugin, running."""
    place = Gone(Reader())
    await place.start()
    yield place
    await place.stop()


def write(directory: Path, name: str, document: dict[str, Any]) -> None:
    draft = directory / f".{name}"
    draft.write_text(json.dumps(document))
    draft.replace(directory / name)


@contextlib.asynccontextmanager
async def serving(
    gateway: Any, auth_dir: Path, *places: Gone, **more: Any
) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder]]:
    declared = [
        f"  - {{id: {p.plugin.id}, address: '127.0.0.1:{p.port}', priority: {9 - at}}}"
        for at, p in enumerate(places)
    ]
    config = FILE.format(directory=auth_dir, plugins="\n".join(declared) or "  []")
    async with gateway.scheduler(
        config=config, reload=lambda: parse(config, env={}), **more
    ) as running:
        yield running


async def having(
    holder: SnapshotHolder, condition: Callable[[dict[str, CredentialEntry]], bool]
) -> Snapshot:
    """Return the first snapshot whose credentials meet *condition*."""
    changed = asyncio.Event()
    forget = holder.on_change(lambda _: changed.set())
    try:
        async with asyncio.timeout(60):
            while holder.current is None or not condition(dict(holder.current.credential_by_id)):
                changed.clear()
                await changed.wait()
    finally:
        forget()
    return holder.current


async def listed(servicer: SchedulerServicer) -> scheduler_pb2.ListCredentialsResponse:
    return await servicer.ListCredentials(scheduler_pb2.ListCredentialsRequest())


async def reason(servicer: SchedulerServicer, source: str, part: str) -> str:
    """Return why a file is not used, once that says *part*."""
    async with asyncio.timeout(60):
        while True:
            for file in (await listed(servicer)).files:
                if file.source == source and part in file.reason:
                    return file.reason
            await asyncio.sleep(0.05)  # polls what no event tells


async def leased(servicer: SchedulerServicer, snapshot: Snapshot, uid: str) -> dict[str, str]:
    """Return what an attempt would send, and for which credential."""
    answer = await servicer.Acquire(acquire(snapshot.version, f"{uid}-1"))
    lease = answer.results[0].lease
    assert lease.attempt.credential_id, answer
    key = sealing_key(plugin_key(ROOTS.plugins[0], "openai-compatible"))
    return {
        "id": lease.attempt.credential_id,
        "tier": lease.attributes["tier"],
        **SecretOpener([key]).open(lease.secret).material(),
    }


async def test_one_file_gives_several_credentials_that_are_leased(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        snapshot = await having(holder, lambda found: "team.ann" in found and "team.bob" in found)
        assert "fake-default" not in snapshot.credential_by_id
        uses = [await leased(servicer, snapshot, f"R{n}") for n in range(2)]
        assert sorted(uses, key=lambda use: use["id"]) == [
            {"id": "team.ann", "tier": "free", "cookie": "test-a"},
            {"id": "team.bob", "tier": "free", "cookie": "test-cookie"},
        ]
        told = {c.id: c for c in (await listed(servicer)).credentials}
        assert told["team.ann"].source == "team.json"
        assert told["team.ann"].brought_by == "reader"
        assert told["team.ann"].shared_source


async def test_provider_is_the_auths_then_the_files_then_the_plugins(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    named = {"provider": "OTHER", "id": "named"}
    write(auth_dir, "a.json", {"type": "fake", "accounts": [named, {"id": "typed"}]})
    write(auth_dir, "b.json", {"accounts": [{"label": "nobody"}]})
    async with serving(gateway, auth_dir, reader) as (_, holder):
        snapshot = await having(holder, lambda found: {"named", "typed", "b"} <= set(found))
        assert snapshot.provider_of["named"].name == "other"
        assert snapshot.provider_of["typed"].name == "fake"
        assert snapshot.provider_of["b"].name == "fake"
        plugin = reader.plugin
        assert isinstance(plugin, Reader)
        assert set(plugin.asked) == {("fake", "a.json"), ("fake", "b.json")}


async def test_file_without_type_is_offered_in_order_until_one_takes_it(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    class First(Reader):
        id = "first"

        async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
            self.asked.append((request.provider, request.file_name))
            return AuthParseResponse(handled=False)

    first = Gone(First("other"))
    await first.start()
    write(auth_dir, "a.json", {"accounts": [{}]})
    async with serving(gateway, auth_dir, first, reader) as (_, holder):
        await having(holder, lambda found: "a" in found)
    await first.stop()


async def test_file_that_a_plugin_takes_and_finds_empty_is_not_read_by_the_gateway(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "empty.json", {"type": "fake", "api_key": "test-key", "accounts": []})
    write(auth_dir, "plain.json", {"type": "fake", "api_key": "test-key"})
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "plain" in found and "empty" not in found)
        why = await reason(servicer, "empty.json", "holds no credential")
        assert why == "holds no credential, says plugin reader"


async def test_file_that_is_disabled_disables_all_of_its_credentials(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO | {"disabled": True, "priority": 3, "weight": 2})
    async with serving(gateway, auth_dir, reader) as (_, holder):
        snapshot = await having(holder, lambda found: "team.ann" in found)
        both = [snapshot.credential_by_id[f"team.{name}"] for name in ("ann", "bob")]
        assert [(c.disabled, c.priority, c.weight) for c in both] == [(True, 3, 2)] * 2
        write(auth_dir, "team.json", TWO)
        await having(holder, lambda found: not found["team.ann"].disabled)


async def test_credentials_of_one_file_are_switched_and_removed_together(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)

    def switch(id_: str, *, off: bool) -> Any:
        return servicer.SetCredentialDisabled(
            scheduler_pb2.SetCredentialDisabledRequest(credential_id=id_, disabled=off)
        )

    async def disabled() -> dict[str, str]:
        return {c.id: c.disabled_by for c in (await listed(servicer)).credentials if c.source}

    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "team.ann" in found)
        with pytest.raises(errors.FailedPrecondition, match="switched together, as team"):
            await switch("team.ann", off=True)
        assert set((await disabled()).values()) == {""}
        await switch("team", off=True)
        assert await disabled() == {"team.ann": "management", "team.bob": "management"}
        await switch("team", off=False)
        assert set((await disabled()).values()) == {""}
        (auth_dir / "team.json").unlink()
        await having(holder, lambda found: not {"team.ann", "team.bob"} & set(found))


async def test_what_a_plugin_made_of_a_file_outlives_it_and_a_restart(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)
    plugin = reader.plugin
    assert isinstance(plugin, Reader)
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "team.ann" in found)
        plugin.broken = True
        write(auth_dir, "team.json", TWO | {"changed": True})
        await reason(servicer, "team.json", "not now")
        assert holder.current is not None
        assert "team.ann" in holder.current.credential_by_id
    await reader.stop()
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        why = await reason(servicer, "team.json", "counts as before")
        assert why == "counts as before: plugin reader is not registered yet"
        assert holder.current is not None
        used = await leased(servicer, holder.current, "R")
        assert used["cookie"] in {"test-a", "test-cookie"}
        plugin.broken = False
        await reader.start()
        write(auth_dir, "team.json", {"type": "fake", "accounts": [{"label": "ann"}]})
        await having(holder, lambda found: "team" in found and "team.bob" not in found)


async def test_broken_plugin_leaves_a_new_file_to_the_gateway_and_says_why(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    assert isinstance(reader.plugin, Reader)
    reader.plugin.broken = True
    write(auth_dir, "plain.json", {"type": "fake", "api_key": "test-key"})
    write(auth_dir, "own.json", {"type": "fake", "session": "test-session"})
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "plain" in found)
        why = await reason(servicer, "own.json", "plugin reader")
        assert why.startswith(
            "has neither api_key nor access_token nor refresh_token; plugin reader"
        )
        assert why.endswith("not now")


async def test_plugin_that_hangs_leaves_files_to_the_gateway(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    class Hanging(Reader):
        id = "hanging"

        async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
            await asyncio.Event().wait()
            raise AssertionError

    place = Gone(Hanging())
    await place.start()
    # It is asked first and fails, so the other is not asked for files without a type.
    write(auth_dir, "own.json", {"accounts": [{}]})
    write(auth_dir, "plain.json", {"type": "fake", "api_key": "test-key"})
    async with serving(gateway, auth_dir, place, reader) as (servicer, holder):
        await reason(servicer, "own.json", "plugin hanging does not read it")
        await having(holder, lambda found: "plain" in found and "own" not in found)
        assert isinstance(reader.plugin, Reader)
        assert not reader.plugin.asked
    await place.stop()


async def test_plugin_that_goes_away_meanwhile_takes_nothing_with_it(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "team.ann" in found)
        await reader.stop()
        await gone(servicer)
        write(auth_dir, "team.json", TWO | {"priority": 5})
        snapshot = await having(holder, lambda found: found["team.ann"].priority == 5)
        assert (await leased(servicer, snapshot, "R"))["id"].startswith("team.")


async def gone(servicer: SchedulerServicer) -> None:
    """Wait until the scheduler knows that the plugin is gone."""

    async def is_gone() -> bool:
        return servicer.plugins.registry.pick("reader") is None

    await eventually(is_gone, 60)


async def test_plugin_that_is_configured_no_more_takes_its_credentials_with_it(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)
    async with serving(gateway, auth_dir, reader) as (_, holder):
        await having(holder, lambda found: "team.ann" in found)
    await reader.stop()
    async with serving(gateway, auth_dir) as (servicer, holder):
        await having(holder, lambda found: "team.ann" not in found)
        await reason(servicer, "team.json", "has neither api_key")


async def test_material_of_a_plugins_own_form_is_renewed_in_its_record(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    account = {"label": "ann", "token": "test-a", "next": time.time() - 1}
    write(auth_dir, "team.json", {"type": "fake", "accounts": [account, {"label": "bob"}]})
    before = (auth_dir / "team.json").read_bytes()
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        await having(holder, lambda found: "team.ann" in found)

        async with asyncio.timeout(60):
            while True:
                told = {c.id: c for c in (await listed(servicer)).credentials}
                if told["team.ann"].refresh.HasField("expires_at"):
                    break
                await asyncio.sleep(0.05)  # polls what no event tells
        assert holder.current is not None
        uses = [await leased(servicer, holder.current, f"R{n}") for n in range(2)]
        assert {use["id"]: use["cookie"] for use in uses} == {
            "team.ann": "test-a+",
            "team.bob": "test-cookie",
        }
    assert (auth_dir / "team.json").read_bytes() == before


async def test_models_are_asked_of_the_auth_provider_too(gateway: Any, auth_dir: Path) -> None:
    class Teller(Reader, ModelProvider):
        id = "teller"
        seen: ClassVar[dict[str, str]] = {}

        async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
            assert request.secret is not None
            self.seen[request.auth_id] = request.secret["cookie"]
            return ModelResponse([ModelInfo(f"of-{request.auth_id}")])

    teller = Gone(Teller())
    await teller.start()
    write(auth_dir, "team.json", TWO)
    async with serving(gateway, auth_dir, teller) as (_, holder):
        snapshot = await having(
            holder,
            lambda _: bool(
                holder.current and {"of-team.ann", "of-team.bob"} <= set(holder.current.targets)
            ),
        )
        ann = snapshot.credential_by_id["team.ann"]
        assert ann.excluded_models == ("of-team.bob",)
        assert Teller.seen == {"team.ann": "test-a", "team.bob": "test-cookie"}
    await teller.stop()


async def test_file_that_waits_for_its_plugin_says_so(
    gateway: Any, auth_dir: Path, reader: Gone
) -> None:
    write(auth_dir, "team.json", TWO)
    await reader.stop()
    async with serving(gateway, auth_dir, reader) as (servicer, holder):
        why = await reason(servicer, "team.json", "not registered")
        assert why.endswith("plugins that may know it are not registered: reader")
        await reader.start()
        await having(holder, lambda found: "team.ann" in found)
