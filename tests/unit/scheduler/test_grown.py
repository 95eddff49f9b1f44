"""What becomes of auth files that plugins read: places, ids, settings, what stays of before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from patchbay_gateway.kernel.config import Config
from patchbay_gateway.plugins.building import build_snapshot
from patchbay_gateway.scheduler.auth_data import BroughtAuth
from patchbay_gateway.scheduler.durable.auth_files import read_auth_dir
from patchbay_gateway.scheduler.grown import Grown, add_entries, grow, read_by_plugins
from patchbay_gateway.scheduler.parsed_files import Parsed

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.plugins.snapshot import CredentialEntry, Snapshot

MATERIAL = {"access_token": "test-a", "refresh_token": "test-r"}


def config_of(*credentials: dict[str, Any], plugins: tuple[str, ...] = ("reader",)) -> Config:
    provider = {"name": "fake", "plugin": "echo", "models": ["m"], "credentials": list(credentials)}
    declared = [{"id": id_, "address": "127.0.0.1:1"} for id_ in plugins]
    return Config.model_validate({"providers": [provider], "plugins": declared})


def auth(label: str = "", provider: str = "", **more: Any) -> BroughtAuth:
    return BroughtAuth(provider, label=label, **{"material": MATERIAL, **more})


class Files:
    """A directory and what plugins say of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parsed: dict[str, Parsed] = {}
        self.former: Snapshot | None = None

    def add(self, name: str, *auths: BroughtAuth, problem: str = "", **document: Any) -> None:
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps({"type": "fake", **document}))
        self.parsed[f"{name}.json"] = Parsed("reader", "fake", auths, problem)

    def grown(self, config: Config | None = None, *taken: str) -> Grown:
        config = config or config_of()
        files = read_auth_dir(self.directory)
        read = read_by_plugins(config, files, self.parsed, self.former)
        return grow(config, files, read, self.parsed, taken)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def entries(grown: Grown) -> dict[str, CredentialEntry]:
    return {entry.id: entry for _, entry in grown.entries}


def test_ids_are_the_plugins_then_labels_then_places(files: Files) -> None:
    files.add("one", auth())
    files.add("own", auth(id="my/auth.json"), auth(id="second"))
    files.add("labels", auth("ann"), auth("b@x"))
    files.add("places", auth("same"), auth("same"))
    found = list(entries(files.grown()))
    assert [id_.rpartition("-")[0] or id_ for id_ in found] == [
        "labels.ann", "labels.b-x", "one", "my-auth", "second", "places.1", "places.2",
    ]  # fmt: skip
    assert list(entries(files.grown())) == found


def test_id_that_is_taken_is_refused_and_others_of_the_file_are_used(files: Files) -> None:
    files.add("a", auth("ann"), auth("bob"))
    grown = files.grown(None, "a.ann")
    assert set(entries(grown)) == {"a.bob"}
    (told,) = grown.warnings
    assert told.reason == "its credential a.ann has the id of another credential"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (auth(provider="nowhere"), "it is of type nowhere; no provider has that name"),
        (auth(material={"mine": "test"}), "it has nothing for executors"),
        (auth(proxy_url="nowhere"), "it has a wrong proxy_url"),
        (auth(metadata={"token_url": "nowhere"}), "it has a wrong token_url"),
    ],
)
def test_unusable_credential_is_told_and_not_used(
    files: Files, wrong: BroughtAuth, why: str
) -> None:
    files.add("a", wrong)
    grown = files.grown()
    assert grown.entries == ()
    assert grown.seeds == {}
    assert grown.refused[0].reason.startswith(why)


def test_token_endpoint_is_the_plugins_then_the_files_then_the_providers(files: Files) -> None:
    oauth2 = {"token_url": "https://p.example/t", "client_id": "p", "plugin": "reader"}
    config = config_of({"id": "main", "oauth2": oauth2})
    files.add(
        "a", auth(metadata={"token_url": "https://a.example/t"}), token_url="https://x.example"
    )
    files.add("b", auth(), token_url="https://b.example/t", client_id="b", client_secret="test-s")
    files.add("c", auth())
    grown = files.grown(config)
    where = {
        id_: (entry.oauth2.token_url, entry.oauth2.client_id)
        for id_, entry in entries(grown).items()
        if entry.oauth2 is not None
    }
    assert where == {
        "a": ("https://a.example/t", ""),
        "b": ("https://b.example/t", "b"),
        "c": ("https://p.example/t", "p"),
    }
    assert grown.seeds["b"].client_secret == "test-s"


def test_times_of_a_file_are_those_of_its_only_access_token(files: Files) -> None:
    files.add("one", auth(), expired="2030-01-01T00:00:00Z", last_refresh="2029-12-31T23:00:00Z")
    files.add("said", auth(expires_at=5.0), expired=1_893_456_000)
    files.add("two", auth("ann"), auth("bob"), expired=1_893_456_000)
    seeds = files.grown().seeds
    assert (seeds["one"].expires_at, seeds["one"].refreshed_at) == (1_893_456_000, 1_893_452_400)
    assert [seeds[id_].expires_at for id_ in ("said", "two.ann")] == [5.0, 0.0]


def test_own_form_of_material_is_kept_and_renewed_by_its_plugin(files: Files) -> None:
    material = {"document": '{"deep": [1]}'}
    files.add("a", auth(material=material, access_keys=("document",), next_refresh_after=9.0))
    seed = files.grown().seeds["a"]
    assert seed.material == material
    assert (seed.access_keys, seed.next_refresh_after, seed.renewable) == (("document",), 9.0, True)


def test_what_the_snapshot_before_has_stays_while_nobody_was_asked(files: Files) -> None:
    files.add("a", auth("ann"), auth("bob"))
    config = config_of()
    plain = build_snapshot(
        config, material={}, digests={}, prices=(), previous=None, now=1.0, open_access=True
    )
    files.former = add_entries(plain, files.grown(config).entries)
    assert [c.id for c in files.former.providers[0].credentials] == ["a.ann", "a.bob"]

    files.parsed.clear()
    (files.directory / "a.json").write_text(json.dumps({"type": "fake", "disabled": True}))
    kept = files.grown(config)
    assert {id_: entry.disabled for id_, entry in entries(kept).items()} == {
        "a.ann": True,
        "a.bob": True,
    }
    assert kept.seeds == {}
    assert kept.warnings[0].reason == "counts as before: plugin reader is not registered yet"
    # The plugin was asked and did not want it; or it is configured no more.
    files.parsed["a.json"] = Parsed()
    assert files.grown(config).entries == ()
    files.parsed.clear()
    assert files.grown(config_of(plugins=())).entries == ()
