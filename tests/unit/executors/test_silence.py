"""The limit on silence, on a loop whose time the test turns."""

from __future__ import annotations

from typing import Any

from patchbay.alarms import Alarms
from patchbay_gateway.executors.silence import SilenceLimit


class FakeLoop:
    """Time and timers of a loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Any]] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> Any:
        self.made += 1
        entry = (when, callback)
        self.timers.append(entry)
        loop = self

        class Handle:
            def cancel(self) -> None:
                if entry in loop.timers:
                    loop.timers.remove(entry)

        return Handle()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((t for t in self.timers if t[0] <= end), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end


def make_limit(limit: float) -> tuple[FakeLoop, list[float], Any]:
    loop, fired = FakeLoop(), []
    alarms = Alarms(loop)  # type: ignore[arg-type]
    silence = SilenceLimit(loop, alarms, limit, lambda: fired.append(loop.now))  # type: ignore[arg-type]
    return loop, fired, silence


def test_silence_fires_once_at_the_limit() -> None:
    loop, fired, limit = make_limit(10)
    loop.advance(9.9)
    assert not fired
    loop.advance(100)
    assert fired == [10]
    assert limit.expired


def test_silence_chunks_move_the_deadline_without_new_timers() -> None:
    loop, fired, limit = make_limit(10)
    for _ in range(90):
        loop.advance(0.1)
        limit.heard()
        limit.wait()
    assert loop.made == 1
    loop.advance(9.9)
    assert not fired
    loop.advance(0.2)
    assert len(fired) == 1


def test_silence_of_a_slow_reader_does_not_count() -> None:
    loop, fired, limit = make_limit(10)
    limit.heard()
    loop.advance(1000)
    assert not fired
    limit.wait()
    loop.advance(9)
    assert not fired
    loop.advance(2)
    assert len(fired) == 1


def test_change_to_shorter_longer_and_none() -> None:
    loop, fired, limit = make_limit(100)
    limit.change(5)
    limit.wait()
    loop.advance(4)
    limit.change(50)
    loop.advance(49)
    assert not fired
    limit.change(0)
    loop.advance(1000)
    assert not fired
    limit.change(1)
    loop.advance(2)
    assert len(fired) == 1


def test_no_limit_makes_no_timer_and_stop_cancels() -> None:
    loop, _, limit = make_limit(0)
    assert loop.made == 0
    loop, fired, limit = make_limit(1)
    limit.stop()
    limit.stop()
    loop.advance(5)
    assert not fired
