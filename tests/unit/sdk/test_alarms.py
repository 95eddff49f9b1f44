"""Many alarms on one timer of the loop."""

from __future__ import annotations

import asyncio

from tests.harness.virtual_time import VirtualTimeLoop, virtual

from patchbay.alarms import SLACK, Alarms


class Sleeper:
    """Notes when it rang."""

    def __init__(self, alarms: Alarms | None = None, again: float = 0.0) -> None:
        self.rang: list[float] = []
        self._alarms = alarms
        self._again = again

    def ring(self) -> None:
        now = asyncio.get_running_loop().time()
        self.rang.append(now)
        if self._alarms is not None and len(self.rang) < 3:
            self._alarms.set(self, now + self._again)


@virtual
async def test_alarms_each_rings_once_at_its_time() -> None:
    alarms, sleepers = Alarms(), [Sleeper() for _ in range(3)]
    for sleeper, when in zip(sleepers, (5.0, 1.0, 3.0), strict=True):
        alarms.set(sleeper, when)
    await asyncio.sleep(100)
    assert [sleeper.rang for sleeper in sleepers] == [[5.0], [1.0], [3.0]]


@virtual
async def test_alarms_close_together_are_late_by_no_more_than_the_slack() -> None:
    alarms, sleepers = Alarms(), [Sleeper() for _ in range(50)]
    for index, sleeper in enumerate(sleepers):
        alarms.set(sleeper, 1.0 + index / 200)
    await asyncio.sleep(100)
    for index, sleeper in enumerate(sleepers):
        assert len(sleeper.rang) == 1
        assert -0.001 <= sleeper.rang[0] - (1.0 + index / 200) <= SLACK + 0.001


@virtual
async def test_alarm_that_is_dropped_never_rings() -> None:
    alarms, kept, dropped = Alarms(), Sleeper(), Sleeper()
    alarms.set(dropped, 1.0)
    alarms.set(kept, 2.0)
    alarms.drop(dropped)
    alarms.drop(dropped)
    await asyncio.sleep(10)
    assert (kept.rang, dropped.rang) == ([2.0], [])


@virtual
async def test_alarm_that_is_set_again_rings_at_the_new_time_alone() -> None:
    alarms, later, sooner = Alarms(), Sleeper(), Sleeper()
    alarms.set(later, 1.0)
    alarms.set(sooner, 50.0)
    alarms.set(later, 9.0)
    alarms.set(sooner, 0.5)
    await asyncio.sleep(100)
    assert (later.rang, sooner.rang) == ([9.0], [0.5])


@virtual
async def test_alarm_may_be_set_while_it_rings() -> None:
    alarms = Alarms()
    sleeper = Sleeper(alarms, again=2.0)
    alarms.set(sleeper, 1.0)
    await asyncio.sleep(100)
    assert sleeper.rang == [1.0, 3.0, 5.0]


@virtual
async def test_alarm_that_drops_another_keeps_it_from_ringing_in_the_same_turn() -> None:
    alarms, other = Alarms(), Sleeper()

    class Dropping:
        def ring(self) -> None:
            alarms.drop(other)

    alarms.set(Dropping(), 1.0)
    alarms.set(other, 1.0)
    await asyncio.sleep(10)
    assert other.rang == []


def test_alarm_that_fails_is_told_and_keeps_no_other_from_ringing() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        told: list[dict[str, object]] = []
        runner.get_loop().set_exception_handler(lambda _, context: told.append(context))

        async def scenario() -> list[list[float]]:
            alarms, beside, after = Alarms(), Sleeper(), Sleeper()

            class Failing:
                def ring(self) -> None:
                    raise ValueError("a bug")

            alarms.set(Failing(), 1.0)
            alarms.set(beside, 1.0)
            alarms.set(after, 2.0)
            await asyncio.sleep(10)
            return [beside.rang, after.rang]

        assert runner.run(scenario()) == [[1.0], [2.0]]
        assert [str(context["exception"]) for context in told] == ["a bug"]


@virtual
async def test_alarm_after_many_that_were_dropped_rings_in_time() -> None:
    alarms, sleeper = Alarms(), Sleeper()
    for _ in range(1000):
        alarms.set(sleeper, asyncio.get_running_loop().time() + 60)
        alarms.drop(sleeper)
        await asyncio.sleep(1)
    assert sleeper.rang == []
    alarms.set(sleeper, asyncio.get_running_loop().time() + 1)
    await asyncio.sleep(2)
    assert len(sleeper.rang) == 1
