"""Who may use the management API, after the files that say so have changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from patchbay.errors import Unauthenticated
from patchbay_gateway.edge.management.access import make_access
from patchbay_gateway.edge.management.doorkeeper import LOOK_EVERY, Doorkeeper
from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.edge.management.access import Access
    from patchbay_gateway.kernel.config import Config


class Files:
    """A configuration with a key in a file, and the door that it makes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "patchbay.yaml"
        self.key = directory / "key"
        self.path.write_text("management_keys: [{name: ops, key_file: key}]\n")
        self.key.write_text("test-key-one\n")
        self.environ: dict[str, str] = {}

    def load(self) -> Config:
        return config.load(self.path, self.environ)

    def make(self, loaded: Config) -> Access:
        return make_access(loaded, self.environ, roots=(b"r" * 32,), token="", local_only=False)

    def door(self, clock: ManualClock | None = None) -> Doorkeeper:
        return Doorkeeper(
            self.load(), load=self.load, make=self.make, path=self.path, environ=self.environ,
            clock=clock or ManualClock(),
        )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def opened_by(door: Doorkeeper, *keys: str) -> list[str]:
    """Return those of *keys* that open."""
    found = []
    for key in keys:
        try:
            door.admit("GET", [(b"host", b"a"), (b"authorization", f"Bearer {key}".encode())])
        except Unauthenticated:
            continue
        found.append(key)
    return found


BOTH = ("test-key-one", "test-key-two")


async def test_rotated_key_file_takes_the_place_of_the_former(files: Files) -> None:
    clock = ManualClock()
    door = files.door(clock)
    running = asyncio.create_task(door.run())
    assert opened_by(door, *BOTH) == ["test-key-one"]
    files.key.write_text("test-key-two\n")
    async with asyncio.timeout(60):
        while opened_by(door, *BOTH) != ["test-key-two"]:
            await clock.advance(LOOK_EVERY)
            await asyncio.sleep(0.01)  # it reads in a thread
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_key_written_before_the_first_look_is_seen(files: Files) -> None:
    """The configuration was read some time before it is followed."""
    door = files.door()
    files.path.write_text("management_keys: [{name: new, key: test-key-two}]\n")
    await door.look()
    assert opened_by(door, *BOTH) == ["test-key-two"]


async def test_files_of_a_new_configuration_are_followed(files: Files, tmp_path: Path) -> None:
    door = files.door()
    await door.look()
    (tmp_path / "another").write_text("test-key-one")
    files.path.write_text("management_keys: [{name: ops, key_file: another}]\n")
    await door.look()
    (tmp_path / "another").write_text("test-key-two")
    await door.look()
    assert opened_by(door, *BOTH) == ["test-key-two"]


async def test_file_named_by_the_environment_is_followed(files: Files) -> None:
    files.environ["OPS_FILE"] = str(files.key)
    files.path.write_text("management_keys: [{name: ops, key_env: OPS}]\n")
    door = files.door()
    await door.look()
    files.key.write_text("test-key-two")
    await door.look()
    assert opened_by(door, *BOTH) == ["test-key-two"]


@pytest.mark.parametrize("spoilt", ["gone", "empty", "wrong configuration"])
async def test_unreadable_keeps_the_former_keys_and_says_so_once(
    files: Files, spoilt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    door = files.door()
    await door.look()
    if spoilt == "gone":
        files.key.unlink()
    elif spoilt == "empty":
        files.key.write_text("")
    else:
        files.path.write_text("management_key: []\n")
    await door.look()
    await door.look()
    assert opened_by(door, *BOTH) == ["test-key-one"]
    assert capsys.readouterr().out.count("management keys are not taken") == 1
    files.key.write_text("test-key-two")
    files.path.write_text("management_keys: [{name: ops, key_file: key}] # mended\n")
    await door.look()
    assert opened_by(door, *BOTH) == ["test-key-two"]


def test_key_unreadable_at_the_start_is_an_error(files: Files) -> None:
    files.key.unlink()
    with pytest.raises(ConfigError):
        files.door()
