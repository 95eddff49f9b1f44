"""The matrix of behaviours is whole, names tests that exist, and excuses itself only where it may."""

from __future__ import annotations

from collections import Counter

from tests.conformance_matrix.matrix import (
    COUNTS,
    DEFECTS,
    NOT_OURS,
    PAGE,
    Row,
    names_in,
    page,
    rows,
)


def of(*verdicts: str) -> list[Row]:
    return [row for row in rows() if row.verdict in verdicts]


def test_every_behaviour_has_one_row() -> None:
    wanted = {f"{letter}{n:02}" for letter, count in COUNTS.items() for n in range(1, count + 1)}
    found = Counter(row.id for row in rows())
    assert len(wanted) == 218
    assert not wanted - found.keys()
    assert not found.keys() - wanted
    assert [id_ for id_, times in found.items() if times > 1] == []


def test_verdicts_are_the_four() -> None:
    assert {row.verdict for row in rows()} <= {"test", "changed", "n/a", "open"}
    assert all(row.what for row in rows())


def test_named_tests_exist() -> None:
    missing = []
    for row in rows():
        for named in row.tests:
            path, _, name = named.partition("::")
            if not name.startswith("test_") or name not in names_in(path):
                missing.append(f"{row.id}: {named}")
    assert not missing


def test_what_is_tested_names_tests_and_what_is_not_names_none() -> None:
    assert [row.id for row in of("test", "changed") if not row.tests] == []
    assert [row.id for row in of("n/a", "open") if row.tests] == []


def test_what_is_changed_says_what_and_why() -> None:
    assert [row.id for row in of("changed") if not row.ours] == []
    assert [row.id for row in of("changed") if bool(row.see) == bool(row.corrects)] == []
    assert [row.id for row in rows() if row.corrects and row.corrects not in DEFECTS] == []
    assert [
        row.see for row in of("changed") if row.see and not (PAGE.parent / row.see).exists()
    ] == []
    assert [
        row.id for row in of("test", "n/a", "open") if row.ours or row.see or row.corrects
    ] == []


def test_only_four_things_are_none_of_ours() -> None:
    assert [row.id for row in of("n/a") if row.because not in NOT_OURS] == []
    assert [row.id for row in of("test", "changed", "open") if row.because] == []


def test_what_is_open_says_in_a_line_what_is_missing() -> None:
    assert [row.id for row in of("open") if not row.why or "\n" in row.why] == []


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs"
