"""Signals, drain, background tasks."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.lifecycle import Shutdown, Tasks, run


def test_run_returns_zero_when_main_ends():
    async def main(_: Shutdown) -> None:
        await asyncio.sleep(0)

    assert run(main) == 0


def test_run_first_signal_drains_and_lets_main_finish():
    finished = []

    async def main(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await shutdown.wait()
        await asyncio.sleep(0)
        finished.append(True)

    assert run(main) == 0
    assert finished


def test_run_second_signal_cancels_main():
    cancelled = []

    async def main(shutdown: Shutdown) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await shutdown.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert run(main) == 1
    assert cancelled


def test_run_leaves_signal_handling_as_it_was():
    # What a shell starts in the background ignores SIGINT, until a loop's handler for it is removed.
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    given = {number: signal.signal(number, handler) for number, handler in usual.items()}

    async def main(_: Shutdown) -> None:
        await asyncio.sleep(0)

    try:
        run(main)
        assert {number: signal.getsignal(number) for number in usual} == usual
    finally:
        for number, handler in given.items():
            signal.signal(number, handler)


def test_run_error_of_ours_is_told_in_one_line_without_traceback(capfd):
    async def main(_: Shutdown) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    async def fail() -> None:
        raise FailedPrecondition("port 8080 is taken: choose another with --port")

    assert run(main) == 1
    shown = "".join(capfd.readouterr())
    assert "port 8080 is taken: choose another with --port" in shown
    assert "Traceback" not in shown


def test_run_any_other_error_is_told_with_its_traceback(capfd):
    async def main(_: Shutdown) -> None:
        raise KeyError("a bug")

    assert run(main) == 1
    assert "Traceback" in "".join(capfd.readouterr())


def test_run_crash_of_a_background_task_drains_and_fails(capfd):
    async def broken() -> None:
        raise ValueError("lost a part")

    async def main(shutdown: Shutdown) -> None:
        tasks = Tasks(shutdown)
        tasks.start("broken", broken())
        await shutdown.wait()
        await tasks.aclose()

    assert run(main) == 1
    assert "lost a part" in "".join(capfd.readouterr())


def test_run_uses_uvloop():
    kinds = []

    async def main(_: Shutdown) -> None:
        kinds.append(type(asyncio.get_running_loop()).__module__)

    run(main)
    assert kinds == ["uvloop"]


@pytest.mark.usefixtures("no_leaked_tasks")
async def test_tasks_aclose_cancels_and_awaits_each():
    tasks = Tasks(Shutdown())
    ends = []

    async def forever(n: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ends.append(n)

    for n in range(3):
        tasks.start(f"t{n}", forever(n))
    await asyncio.sleep(0)
    await tasks.aclose()
    assert sorted(ends) == [0, 1, 2]
    assert len(tasks) == 0
    await tasks.aclose()


async def test_tasks_that_end_are_forgotten_and_fail_nothing():
    shutdown = Shutdown()
    tasks = Tasks(shutdown)
    await tasks.start("short", asyncio.sleep(0))
    await asyncio.sleep(0)
    assert len(tasks) == 0
    assert not shutdown.draining.is_set()
    await tasks.aclose()


async def test_task_that_ends_by_a_cancellation_of_something_else_is_missed():
    """It looks like one that its owner ended, and nobody does its work any more."""
    shutdown = Shutdown()
    tasks = Tasks(shutdown)

    async def waits_for_another() -> None:
        another: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        another.cancel()
        await another

    tasks.start("part", waits_for_another())
    async with asyncio.timeout(60):
        await shutdown.wait()
    assert shutdown.exit_code == 1
    await tasks.aclose()


async def test_task_that_somebody_cancelled_is_not_missed():
    shutdown = Shutdown()
    tasks = Tasks(shutdown)
    task = tasks.start("part", asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert not shutdown.draining.is_set()
    await tasks.aclose()


async def test_tasks_start_after_aclose_is_refused():
    tasks = Tasks(Shutdown())
    await tasks.aclose()
    with pytest.raises(RuntimeError, match="late"):
        tasks.start("late", asyncio.sleep(0))
