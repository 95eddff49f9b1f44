"""The invariant's checker finds what it is there to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import ledger_check
from tests.fakes.journal_events import make_event

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.usage.ledger import Ledger

TOKENS = {"input_tokens": 10, "output_tokens": 5}
UID = make_event("opened").uid


def _record(**more: object) -> dict[str, object]:
    return {"attempt_uid": UID, "completed": True, **TOKENS, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def test_check_of_an_agreeing_ledger_finds_nothing(ledger: Ledger, path: Path) -> None:
    await ledger.record(
        [
            make_event("settled", usage=TOKENS),
            make_event("settled", 2, outcome="failed", reached="no"),
            make_event("settled", 3, outcome="failed", reached="unknown"),
            make_event("refused", 4, outcome="failed"),
        ]
    )
    report = ledger_check.check([_record()], path)
    assert report.ok, report
    assert (report.upstream, report.yes, report.unknown, report.no) == (1, 1, 1, 1)
    assert "no violations" in str(report)


async def test_check_counts_open_attempts_apart(ledger: Ledger, path: Path) -> None:
    await ledger.record([make_event("opened")])
    report = ledger_check.check([_record()], path)
    assert (report.open, report.violations, report.ok) == (1, [], False)


@pytest.mark.parametrize(
    ("records", "settled", "violation"),
    [
        ([_record(), _record()], {"usage": TOKENS}, "asked twice"),
        ([_record(output_tokens=6)], {"usage": TOKENS}, "output_tokens 5 in the ledger, 6"),
        ([], {"usage": TOKENS}, "has not seen it"),
        ([_record()], {"outcome": "failed", "reached": "no"}, "upstream has seen it"),
        ([_record(completed=False)], {"usage": TOKENS}, "did not complete it"),
        ([_record(), _record(attempt_uid="x")], {"usage": TOKENS}, "x: the upstream has seen it"),
    ],
)
async def test_check_tells_what_disagrees(
    ledger: Ledger,
    path: Path,
    records: list[dict[str, object]],
    settled: dict[str, Any],
    violation: str,
) -> None:
    await ledger.record([make_event("settled", **settled)])
    report = ledger_check.check(records, path)
    assert len(report.violations) == 1
    assert violation in str(report)


async def test_check_tells_rollups_that_do_not_add_up(ledger: Ledger, path: Path) -> None:
    await ledger.record([make_event("settled", usage=TOKENS)])
    await ledger._database.write(
        lambda connection: connection.exec_driver_sql("UPDATE rollups SET input_tokens = 11")
    )
    assert "rollups say input_tokens = 11, the rows 10" in str(
        ledger_check.check([_record()], path)
    )
