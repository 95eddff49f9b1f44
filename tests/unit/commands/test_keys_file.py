"""Client keys in a configuration file: what the file says afterwards, and what it still looks like."""

from __future__ import annotations

import contextlib
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import yaml

from patchbay import errors
from patchbay_gateway.commands.keys import Wish
from patchbay_gateway.commands.keys_file import FileKeys, added, removed
from patchbay_gateway.kernel.keys import client_key_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ENVIRON = {"PATCHBAY_CLUSTER_KEY": "22" * 32}
LAYOUTS = [
    "",
    "# nothing yet\n",
    "limits: {body: 1MiB}  # small\n",
    "limits: {body: 1MiB}",
    "client_keys:\nlimits: {body: 1MiB}\n",
    "client_keys: []\nlimits: {body: 1MiB}\n",
    "client_keys: [{name: a, key_env: A}]  # flow\nlimits: {body: 1MiB}\n",
    "client_keys: [{name: a, key_env: A}, {name: b, key_env: B}]\n",
    "client_keys:\n  - {name: a, key_env: A}  # first\n\n# of limits\nlimits: {body: 1MiB}\n",
    "client_keys:\n- name: a\n  key_env: A\n- name: b\n  key_env: B\n  models: [x]\n",
    "client_keys:\n    # mine\n    - name: a\n      key_env: A\n      models:\n        - x\n",
    "client_keys:\n    - name: a\n      key_env: A\n    # yours\n    - {name: b, key_env: B}\nlimits: {}\n",
    "client_keys:\n  - {name: a, key_env: A}",
    "client_keys: [\n  {name: a, key_env: A},\n  {name: b, key_env: B},\n]\n",
]


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("text", LAYOUTS)
def test_entry_is_added_at_the_end_and_nothing_else_changes(text: str) -> None:
    before = yaml.safe_load(text) or {}
    edited = added(text, "{name: new, key_env: NEW}")
    wanted = [*(before.get("client_keys") or []), {"name": "new", "key_env": "NEW"}]
    assert yaml.safe_load(edited) == {**before, "client_keys": wanted}
    assert comments(edited) == comments(text)
    for line in text.splitlines():
        assert line.rstrip("]") in edited or "[" in line or line == "]"


@pytest.mark.parametrize("text", LAYOUTS)
def test_entry_is_removed_and_nothing_else_changes(text: str) -> None:
    before = yaml.safe_load(text) or {}
    entries = before.get("client_keys") or []
    for index in range(len(entries)):
        left = entries[:index] + entries[index + 1 :]
        assert yaml.safe_load(removed(text, index)) == {**before, "client_keys": left}


@pytest.mark.parametrize("text", LAYOUTS)
def test_added_and_removed_entry_leaves_the_others(text: str) -> None:
    before = yaml.safe_load(text) or {}
    entries = before.get("client_keys") or []
    both = removed(added(text, "{name: new, key_env: NEW}"), len(entries))
    assert (yaml.safe_load(both) or {}) == {**before, "client_keys": entries}


class Running:
    """A gateway that reads the file as soon as it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.away = False

    def __call__(self) -> Sequence[str]:
        if self.away:
            raise errors.Unavailable("nobody answers")
        entries = (yaml.safe_load(self.path.read_text()) or {}).get("client_keys") or []
        return [entry["name"] for entry in entries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "patchbay.yaml"
    path.write_text("# mine\nlimits: {body: 1MiB}\n")
    path.chmod(0o640)
    return path


def keys(path: Path, running: Running | None = None, environ: dict[str, str] = ENVIRON) -> FileKeys:
    return FileKeys(path, environ, path.parent / "data", running or Running(path), patience=0.0)


def test_created_key_is_kept_as_a_digest_alone_and_revoked(path: Path) -> None:
    made = keys(path).create(Wish("laptop", ("gpt-*",), "team"))
    assert made.key is not None
    assert made.accepted
    (entry,) = yaml.safe_load(path.read_text())["client_keys"]
    assert entry == {
        "name": "laptop",
        "hash": client_key_digest(b"\x22" * 32, made.key),
        "models": ["gpt-*"],
        "tenant": "team",
    }
    assert made.key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (listed,) = keys(path).list()
    assert (listed.name, listed.state, listed.source) == ("laptop", "ready", "digest")
    gone = keys(path).revoke("laptop")
    assert gone.stopped is not None
    assert "answers everybody" in gone.note
    assert keys(path).list() == []
    assert path.read_text().startswith("# mine\n")
    assert sorted(p.name for p in path.parent.iterdir()) == ["patchbay.yaml"]


def test_gateway_that_is_not_there_is_said_to_be(path: Path) -> None:
    running = Running(path)
    running.away = True
    made = keys(path, running).create(Wish("laptop"))
    assert not made.accepted
    assert "read the file anew" in made.note
    assert keys(path, running).revoke("laptop").stopped is None


def test_key_that_cannot_be_read_is_listed_as_missing(path: Path) -> None:
    path.write_text("client_keys: [{name: a, key_env: NOT_SET}]\n")
    (listed,) = keys(path).list()
    assert listed.state == "missing"
    assert "NOT_SET is not set" in listed.message


def test_what_is_wrong_is_told_and_changes_nothing(path: Path) -> None:
    keys(path).create(Wish("laptop"))
    text = path.read_text()
    with pytest.raises(errors.FailedPrecondition, match="already"):
        keys(path).create(Wish("laptop"))
    with pytest.raises(errors.NotFound, match="it has laptop"):
        keys(path).revoke("tablet")
    with pytest.raises(errors.InvalidRequest, match="--secret"):
        keys(path).create(Wish("tablet", secret="mine"))
    with pytest.raises(errors.PatchbayError, match="tenant"):
        keys(path).create(Wish("tablet", tenant="no such/tenant name"))
    with pytest.raises(errors.FailedPrecondition, match="--data-dir"):
        keys(path, environ={}).create(Wish("tablet"))
    assert path.read_text() == text


def test_layout_that_is_not_understood_is_left_to_a_person(path: Path) -> None:
    path.write_text("{limits: {body: 1MiB}}\n")
    with pytest.raises(errors.FailedPrecondition, match=r"add to client_keys:\n  - \{name: laptop"):
        keys(path).create(Wish("laptop"))
    assert path.read_text() == "{limits: {body: 1MiB}}\n"


@pytest.mark.parametrize("what", ["create", "revoke"])
def test_file_is_read_once_nobody_else_edits_it(path: Path, what: str) -> None:
    """Two edits that read the same file would leave only one of them in it."""
    keys(path).create(Wish("old"))

    @contextlib.contextmanager
    def after_another(directory: Path) -> Iterator[None]:
        assert directory == path.parent.resolve()
        keys(path).create(Wish("others"))  # was first, and has ended
        yield

    waiting = FileKeys(
        path,
        ENVIRON,
        path.parent / "data",
        Running(path),
        patience=0.0,
        alone=after_another,
    )
    if what == "create":
        waiting.create(Wish("own"))
        assert [k.name for k in keys(path).list()] == ["old", "others", "own"]
    else:
        waiting.revoke("old")
        assert [k.name for k in keys(path).list()] == ["others"]


def test_edits_at_the_same_time_are_all_in_the_file(path: Path) -> None:
    names = [f"k{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: keys(path).create(Wish(name)), names))
    assert [k.name for k in keys(path).list()] == names


def test_file_in_a_directory_that_is_not_there_is_missing_and_no_crash(path: Path) -> None:
    with pytest.raises(errors.PatchbayError):
        keys(path.parent / "nowhere" / "patchbay.yaml").create(Wish("laptop"))
