"""The append log: sequences, torn tails, restarts, truncation, bounds."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.errors import FailedPrecondition, ResourceExhausted, Unavailable
from patchbay_gateway.kernel import appendlog
from patchbay_gateway.kernel.appendlog import AppendLog


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def test_append_returns_first_sequence_and_read_gives_them_back(tmp_path):
    log = AppendLog(tmp_path)
    assert log.append([b"a", b""]) == 1
    assert log.append([b"c" * 100_000]) == 3
    assert list(log.read()) == [(1, b"a"), (2, b""), (3, b"c" * 100_000)]
    assert list(log.read(after=2)) == [(3, b"c" * 100_000)]
    assert log.last_sequence == 3
    assert log.size == segments(tmp_path)[0].stat().st_size
    log.close()


def test_reopen_continues_sequences_and_keeps_the_writer(tmp_path):
    first = AppendLog(tmp_path)
    first.append([b"a"])
    first.close()
    second = AppendLog(tmp_path)
    assert second.writer_id == first.writer_id
    assert second.append([b"b"]) == 2
    assert list(second.read()) == [(1, b"a"), (2, b"b")]
    second.close()


def test_open_directory_in_use_is_refused_with_its_name(tmp_path):
    log = AppendLog(tmp_path)
    with pytest.raises(FailedPrecondition, match=str(tmp_path)):
        AppendLog(tmp_path)
    log.close()


def test_truncate_drops_whole_closed_segments_only(tmp_path):
    log = AppendLog(tmp_path, segment_bytes=30)
    for n in range(1, 8):
        log.append([b"x" * 20 + str(n).encode()])
    assert len(segments(tmp_path)) > 3
    log.truncate(3)
    assert next(iter(log.read()))[0] in {2, 3, 4}
    assert [sequence for sequence, _ in log.read(after=3)] == [4, 5, 6, 7]
    log.truncate(7)
    assert len(segments(tmp_path)) == 1
    log.close()
    again = AppendLog(tmp_path, segment_bytes=30)
    assert again.last_sequence == 7, "sequences must not begin anew when everything was taken"
    again.close()


def test_truncate_active_segment_taken_whole_is_dropped_at_some_size(tmp_path):
    """An owner that starts again must not meet megabytes that it has sent already."""
    log = AppendLog(tmp_path)
    log.append([b"x"])
    log.truncate(1)
    assert log.size > 0, "too small to bother"
    log.append([b"x" * appendlog.TRIM_BYTES])
    log.truncate(1)
    assert len(list(log.read())) == 2
    log.truncate(2)
    assert log.size == 0
    log.close()
    log = AppendLog(tmp_path)
    assert list(log.read()) == []
    assert log.append([b"y"]) == 3
    log.close()


@pytest.mark.requires("proc")
def test_truncate_gives_descriptors_back_without_any_sync(tmp_path):
    log = AppendLog(tmp_path, segment_bytes=10)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(1, 200):
        log.append([b"x" * 20])
        log.truncate(n)
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1
    log.close()


def test_append_above_the_bound_is_refused_whole(tmp_path):
    log = AppendLog(tmp_path, max_bytes=100)
    log.append([b"x" * 50])
    with pytest.raises(ResourceExhausted):
        log.append([b"y", b"z" * 90])
    assert log.last_sequence == 1
    assert log.append([b"y"]) == 2
    log.close()


def test_append_disk_full_leaves_no_half_record(tmp_path, monkeypatch):
    log = AppendLog(tmp_path)
    log.append([b"kept"])
    real = os.write
    halves = iter([5])

    def half_then_full(descriptor: int, data: bytes) -> int:
        for size in halves:
            return real(descriptor, data[:size])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half_then_full)
        with pytest.raises(ResourceExhausted):
            log.append([b"lost"])
    assert log.append([b"next"]) == 2
    assert list(log.read()) == [(1, b"kept"), (2, b"next")]
    log.close()


def test_open_after_reboot_jumps_the_sequence(tmp_path, monkeypatch):
    """Records that the page cache lost may have been sent on; their numbers are not given again."""
    boot = tmp_path / "boot"
    monkeypatch.setattr(appendlog, "_BOOT_ID", boot)
    boot.write_text("one")
    log = AppendLog(tmp_path / "log")
    log.append([b"a"])
    log.close()
    boot.write_text("two")
    log = AppendLog(tmp_path / "log")
    assert log.append([b"b"]) == 2 + appendlog.REBOOT_GAP
    assert [payload for _, payload in log.read()] == [b"a", b"b"]
    log.close()


def test_read_may_be_mixed_with_append_and_truncate(tmp_path):
    log = AppendLog(tmp_path, segment_bytes=10)
    log.append([b"a" * 20])
    log.append([b"b" * 20])
    log.append([b"c" * 20])
    reading = log.read()
    assert next(reading)[0] == 1
    log.truncate(2)
    log.append([b"d" * 20])
    assert {3} <= {sequence for sequence, _ in reading} <= {3, 4}
    log.close()


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=12
    ),
    segment_bytes=st.integers(1, 200),
    cut=st.integers(0, 400),
    garbage=st.binary(max_size=30),
)
def test_open_torn_tail_keeps_a_prefix_and_goes_on(batches, segment_bytes, cut, garbage):
    """Whatever a kill leaves of the last writes: what is read is a prefix, and what follows is whole."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = AppendLog(directory, segment_bytes=segment_bytes)
        written = []
        for batch in batches:
            first = log.append(batch)
            written += list(enumerate(batch, first))
        assert list(log.read()) == written
        log.close()
        last = segments(directory)[-1]
        kept = max(0, last.stat().st_size - cut)
        with last.open("r+b") as file:
            file.truncate(kept)
            file.seek(0, os.SEEK_END)
            file.write(garbage)
        log = AppendLog(directory, segment_bytes=segment_bytes)
        survived = list(log.read())
        assert survived == written[: len(survived)]
        lost_bytes = sum(8 + len(payload) for _, payload in written[len(survived) :])
        assert lost_bytes < cut + max(8 + len(payload) for _, payload in written)
        following = log.append([b"after"])
        assert following == log.last_sequence == len(survived) + 1
        assert list(log.read()) == [*survived, (following, b"after")]
        log.close()


OPERATIONS = st.one_of(
    st.lists(st.binary(max_size=60), min_size=1, max_size=5),
    st.integers(0, 60),
    st.just("reopen"),
)


@settings(max_examples=50, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=40), segment_bytes=st.integers(1, 300))
def test_any_order_of_operations_keeps_what_was_not_taken(operations, segment_bytes):
    """Against a list as the model: appends (lists), truncations (numbers) and restarts."""
    model: list[bytes] = []
    taken = 0
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(appendlog, "TRIM_BYTES", 100)
        log = AppendLog(Path(name), segment_bytes=segment_bytes)
        for operation in operations:
            if isinstance(operation, list):
                assert log.append(operation) == len(model) + 1
                model += operation
            elif isinstance(operation, int):
                taken = max(taken, min(operation, len(model)))
                log.truncate(operation)
            else:
                log.close()
                log = AppendLog(Path(name), segment_bytes=segment_bytes)
            assert log.last_sequence == len(model)
            assert list(log.read(taken)) == list(enumerate(model[taken:], taken + 1))
            assert log.size == sum(path.stat().st_size for path in segments(Path(name)))
        log.close()


async def test_sync_many_callers_share_the_work(tmp_path, monkeypatch):
    synced: list[int] = []
    real = os.fsync

    def counting(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    log = AppendLog(tmp_path, segment_bytes=50)
    monkeypatch.setattr(os, "fsync", counting)
    for _ in range(9):
        log.append([b"x" * 30])
    await asyncio.gather(*(log.sync() for _ in range(50)))
    assert len(synced) == len(segments(tmp_path)) + 1, "each segment once, and the directory"
    synced.clear()
    await log.sync()
    assert not synced, "nothing new, nothing to do"
    log.append([b"y"])
    await log.sync()
    assert len(synced) == 1
    log.close()


async def test_sync_disk_failure_is_told_to_every_caller(tmp_path, monkeypatch):
    log = AppendLog(tmp_path)
    log.append([b"x"])

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    results = await asyncio.gather(log.sync(), log.sync(), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    log.close()


async def test_sync_cancelled_caller_does_not_disturb_the_others(tmp_path):
    log = AppendLog(tmp_path)
    log.append([b"x"])
    leaving = asyncio.create_task(log.sync())
    staying = asyncio.create_task(log.sync())
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    log.close()
