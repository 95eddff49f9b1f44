"""What a watch told, compared with what there is (watching.py)."""

from __future__ import annotations

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_operator.watching import Witness

ONE, TWO = ("Plugin", "one"), ("Plugin", "two")


async def test_watch_that_told_of_everything_is_not_silent() -> None:
    clock = ManualClock()
    witness = Witness(clock)
    witness.tell(ONE, "1", deleted=False)
    witness.compare({ONE: "1"}, witness.told())
    await clock.advance(1000.0)
    assert witness.silent == 0.0


async def test_watch_that_misses_a_version_is_silent_since_then() -> None:
    clock = ManualClock()
    witness = Witness(clock)
    witness.tell(ONE, "1", deleted=False)
    for _ in range(3):
        witness.compare({ONE: "2"}, witness.told())
        await clock.advance(5.0)
    assert witness.silent == 15.0


async def test_what_is_told_while_it_is_looked_at_is_not_forgotten() -> None:
    """It was made after its kind was listed; its one event is never told again."""
    clock = ManualClock()
    witness = Witness(clock)
    before = witness.told()
    witness.tell(TWO, "7", deleted=False)
    witness.compare({}, before)
    for _ in range(100):
        witness.compare({TWO: "7"}, witness.told())
        await clock.advance(5.0)
    assert witness.silent == 0.0


async def test_what_is_gone_without_a_word_is_told_anew_when_it_comes_back() -> None:
    clock = ManualClock()
    witness = Witness(clock)
    witness.tell(ONE, "1", deleted=False)
    witness.compare({}, witness.told())
    assert witness.told() == {}
    witness.compare({ONE: "9"}, witness.told())
    await clock.advance(5.0)
    assert witness.silent == 5.0
