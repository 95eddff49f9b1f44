"""Who holds a directory: also when it is moved or removed just then."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.directory_lock import lock_directory, try_lock

if TYPE_CHECKING:
    from pathlib import Path


def test_try_lock_held_or_absent_returns_none(tmp_path: Path) -> None:
    held = lock_directory(tmp_path / "a")
    assert try_lock(tmp_path / "a") is None
    assert try_lock(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()
    os.close(held)
    freed = try_lock(tmp_path / "a")
    assert freed is not None
    os.close(freed)


def test_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    held = lock_directory(tmp_path)
    release = threading.Timer(0.1, os.close, [held])
    release.start()
    os.close(lock_directory(tmp_path))
    release.join()


def test_moved_directory_is_made_anew(tmp_path: Path) -> None:
    """Its holder keeps it under its new name."""
    held = lock_directory(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    another = lock_directory(tmp_path / "a")
    assert try_lock(tmp_path / "b") is None
    os.close(held)
    os.close(another)


def test_directory_removed_by_its_holders_is_never_held_twice(tmp_path: Path) -> None:
    """Four make it, hold it and remove it in turns: who opened a file that is gone holds nothing."""
    holders: list[int] = []
    most: list[int] = []
    missed: list[FailedPrecondition] = []

    def work() -> None:
        for _ in range(60):
            try:
                held = lock_directory(tmp_path / "a")
            except FailedPrecondition as error:  # the others were quicker for half a second
                missed.append(error)
                continue
            holders.append(held)
            most.append(len(holders))
            holders.remove(held)
            (tmp_path / "a" / "lock").unlink()
            with contextlib.suppress(OSError):
                (tmp_path / "a").rmdir()
            os.close(held)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) + len(missed) == 240
    assert max(most) == 1


def test_newest_of_log_after_reboot_is_its_last_record(tmp_path: Path) -> None:
    """Sequences jump at a reboot, and the new segment is empty."""
    log = AppendLog(tmp_path)
    assert log.newest() == 0
    log.append([b"a", b"b"])
    log.close()
    writer, _ = (tmp_path / "writer").read_text().split()
    (tmp_path / "writer").write_text(f"{writer} another-boot\n")
    again = AppendLog(tmp_path)
    assert again.last_sequence > 2
    assert again.newest() == 2
    again.close()


def test_removed_log_leaves_nothing_and_its_name_is_free(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "a", segment_bytes=10)
    for _ in range(4):
        log.append([b"x" * 20])
    log.remove()
    assert not (tmp_path / "a").exists()
    again = AppendLog(tmp_path / "a")
    assert again.writer_id != log.writer_id
    assert again.last_sequence == 0
    again.close()


def test_log_in_use_is_refused(tmp_path: Path) -> None:
    log = AppendLog(tmp_path)
    with pytest.raises(FailedPrecondition, match="in use"):
        lock_directory(tmp_path)
    log.close()
