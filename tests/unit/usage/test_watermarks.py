"""A watermark never passes what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from patchbay_gateway.usage.watermarks import Progress


def test_watermark_grows_with_what_is_contiguous() -> None:
    assert Progress().committed([1, 2, 3]) == Progress(3)


def test_watermark_stops_before_a_gap_and_remembers_what_is_beyond() -> None:
    progress = Progress(3).committed([5, 6, 9])
    assert progress == Progress(3, ((5, 6), (9, 9)))
    assert progress.committed([4]) == Progress(6, ((9, 9),))


def test_watermark_ignores_what_comes_again() -> None:
    assert Progress(7, ((9, 9),)).committed([1, 7, 9]) == Progress(7, ((9, 9),))


def test_watermark_without_gaps_passes_them() -> None:
    assert Progress(3, ((5, 6), (9, 9))).without_gaps() == Progress(9)
    assert Progress(3).without_gaps() == Progress(3)


@given(st.lists(st.lists(st.integers(1, 40), max_size=10), max_size=8))
def test_watermark_is_the_longest_run_of_what_was_committed(batches: list[list[int]]) -> None:
    progress = Progress()
    for batch in batches:
        progress = progress.committed(batch)
    seen = {s for batch in batches for s in batch}
    run = 0
    while run + 1 in seen:
        run += 1
    beyond = {s for first, last in progress.ahead for s in range(first, last + 1)}
    assert progress.sequence == run
    assert beyond == {s for s in seen if s > run}
