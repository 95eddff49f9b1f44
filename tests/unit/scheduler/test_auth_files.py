"""The directory of auth files: which files count, their ids, whose they are, and when it has changed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from patchbay_gateway.kernel.config.fields import Name
from patchbay_gateway.scheduler.durable.auth_files import (
    MAX_BYTES,
    ProviderKey,
    credential_id,
    place,
    read_auth_dir,
    signature_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def write(directory: Path, name: str, **document: Any) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "claude", "refresh_token": "test-r", **document}))
    return path


def test_every_document_below_is_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write(tmp_path, "b.json")
    write(tmp_path, "nested/a.JSON")
    write(tmp_path, ".oauth-claude-state.json")
    write(tmp_path, ".hidden/c.json")
    (tmp_path / "notes.txt").write_text("no document")

    found = read_auth_dir(tmp_path)

    assert [file.source for file in found.files] == ["b.json", "nested/a.JSON"]
    assert found.refused == ()


def test_files_are_never_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json")
    path.chmod(0o400)
    before = path.stat()

    read_auth_dir(tmp_path)

    assert (path.stat().st_mtime_ns, [entry.name for entry in tmp_path.iterdir()]) == (
        before.st_mtime_ns,
        ["a.json"],
    )


def test_what_cannot_be_used_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, "good.json")
    write(tmp_path, "weight.json", weight="much")
    (tmp_path / "empty.json").write_text(" ")
    (tmp_path / "large.json").write_text(" " * (MAX_BYTES + 1))
    (tmp_path / "lost.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "pipe.json")

    found = read_auth_dir(tmp_path)

    assert [file.id for file in found.files] == ["good"]
    reasons = {refused.source: refused.reason for refused in found.refused}
    assert reasons == {
        "binary.json": "is no JSON",
        "empty.json": "is empty",
        "large.json": f"is larger than {MAX_BYTES} bytes",
        "lost.json": "is no regular file, or a link that leads nowhere",
        "pipe.json": "is no regular file",
        "weight.json": "has a weight that is no whole number",
    }


def test_directory_that_is_not_there_is_one_refusal(tmp_path: Path) -> None:
    found = read_auth_dir(tmp_path / "gone")

    assert found.files == ()
    assert [(r.source, r.reason) for r in found.refused] == [
        (".", "cannot be read: No such file or directory")
    ]


def test_file_that_is_being_written_counts_as_before(tmp_path: Path) -> None:
    """CLIProxyAPI empties a file and writes it anew; an account must not vanish meanwhile."""
    path = write(tmp_path, "a.json", note="before")
    former = read_auth_dir(tmp_path)
    for torn in ("", '{"type": "cla'):
        path.write_text(torn)
        found = read_auth_dir(tmp_path, former)
        assert [file.document.note for file in found.files] == ["before"]
        assert found.refused[0].reason.endswith("what it said before counts")
        assert found.signature != former.signature
        assert read_auth_dir(tmp_path).files == ()
    write(tmp_path, "a.json", weight="much")
    assert read_auth_dir(tmp_path, found).files == ()
    path.unlink()
    assert read_auth_dir(tmp_path, former).files == ()


@pytest.mark.parametrize(
    ("source", "id_"),
    [
        ("claude.json", "claude"),
        ("a.b_c-1.JSON", "a.b_c-1"),
        ("claude-person@example.com.json", "claude-person-example.com-"),
        ("nested/a.json", "nested-a-"),
        ("-.json", "auth-"),
        (f"{'x' * 300}.json", "x" * 100 + "-"),
    ],
)
def test_id_is_the_name_as_far_as_ids_allow(source: str, id_: str) -> None:
    found = credential_id(source)

    assert found == id_ or (id_.endswith("-") and found.startswith(id_))
    assert TypeAdapter(Name).validate_python(found) == found
    assert credential_id(source) == found


def test_names_that_differ_in_forbidden_letters_only_have_different_ids(tmp_path: Path) -> None:
    write(tmp_path, "a@b.json")
    write(tmp_path, "a+b.json")
    write(tmp_path, "a-b.json")

    assert len({file.id for file in read_auth_dir(tmp_path).files}) == 3


def test_signature_tells_changes_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json")
    first = signature_of(tmp_path)
    assert signature_of(tmp_path) == first == read_auth_dir(tmp_path).signature

    write(tmp_path, "nested/b.json")
    second = signature_of(tmp_path)
    path.write_text("{}")
    third = signature_of(tmp_path)
    path.unlink()

    assert len({first, second, third, signature_of(tmp_path)}) == 4


def test_signature_follows_the_link_of_a_mounted_secret(tmp_path: Path) -> None:
    for generation in ("1", "2"):
        write(tmp_path, f"..{generation}/a.json", note=generation)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.json").symlink_to("..data/a.json")
    first = signature_of(tmp_path)
    assert read_auth_dir(tmp_path).files[0].document.note == "1"

    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")

    assert signature_of(tmp_path) != first
    assert read_auth_dir(tmp_path).files[0].document.note == "2"


PROVIDERS = [
    ProviderKey("claude", "claude"),
    ProviderKey("Work", "openai-compatible"),
    ProviderKey("spare", "openai-compatible"),
    ProviderKey("google", "gemini"),
]


def placed_in(tmp_path: Path, type_: str, providers: list[ProviderKey]) -> str:
    write(tmp_path, "a.json", type=type_)
    placed, refused = place(read_auth_dir(tmp_path).files, providers)
    return placed[0].provider if placed else refused[0].reason


@pytest.mark.parametrize(
    ("type_", "provider"), [("claude", "claude"), ("WORK", "Work"), ("gemini", "google")]
)
def test_type_is_the_name_of_a_provider_or_its_plugin(
    tmp_path: Path, type_: str, provider: str
) -> None:
    assert placed_in(tmp_path, type_, PROVIDERS) == provider


def test_type_gemini_belongs_to_gemini_cli_where_there_is_one(tmp_path: Path) -> None:
    providers = [*PROVIDERS, ProviderKey("gemini-cli", "gemini")]

    assert placed_in(tmp_path, "gemini", providers) == "gemini-cli"


def test_type_that_several_providers_share_or_none_has_is_refused(tmp_path: Path) -> None:
    assert "several providers (Work, spare)" in placed_in(tmp_path, "openai-compatible", PROVIDERS)
    assert placed_in(tmp_path, "kimi", PROVIDERS).startswith("is of type kimi; no provider")


def test_configured_credential_wins_over_a_file_of_its_id(tmp_path: Path) -> None:
    write(tmp_path, "main.json")

    placed, refused = place(read_auth_dir(tmp_path).files, PROVIDERS, taken=["main"])

    assert placed == ()
    assert refused[0].reason == "has the id of a configured credential, main"
