"""
The invariant of money: the ledger against the upstream's own log of what it was asked.

For every attempt exactly one final row; and per attempt
- `reached` yes: the upstream has seen it. Unknown: it may have. No: it has not.
- what the upstream has seen is in the ledger, and it has seen no attempt twice.
- a success in the ledger is one that the upstream completed, with the upstream's token counts.
So over all: yes <= upstream <= yes + unknown. Besides, the rollups equal the sums over final rows.

Not here: waiting until everything is settled; call again while `Report.open` is not 0.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_SHOWN = 20

_SUMMED = (
    "cost_nano",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
)


@dataclass(slots=True)
class Report:
    """What was found; printed, it tells a reader what to look at."""

    upstream: int = 0
    """Attempts that the upstream has seen."""
    completed: int = 0
    """Those that it answered to the end."""
    attempts: int = 0
    """Final rows."""
    open: int = 0
    """Rows without an end; not yet a violation."""
    yes: int = 0
    unknown: int = 0
    no: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is settled and right."""
        return not self.open and not self.violations

    def __str__(self) -> str:
        counts = (
            f"upstream saw {self.upstream} attempts ({self.completed} completed); "
            f"ledger: {self.attempts} final ({self.yes} yes, {self.unknown} unknown, {self.no} no; "
            f"{self.lost} lost), {self.open} open"
        )
        shown = [f"- {violation}" for violation in self.violations[:_SHOWN]]
        if len(self.violations) > _SHOWN:
            shown.append(f"- and {len(self.violations) - _SHOWN} more")
        return "\n".join([counts, *(shown or ["no violations"])])


def check(records: Iterable[Mapping[str, Any]], ledger: Path | str) -> Report:
    """
    Compare the upstream's *records* with the SQLite file *ledger*.

    Args:
        records: `attempt_uid` (or `attempt`), `completed`, and `input_tokens` and `output_tokens`, or
            `tokens` with the same. Records without an attempt are none of ours.
        ledger: Path of the database; it may be in use.
    """
    uri = f"file:{ledger}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")  # rows and rollups of one moment
        rows = [dict(row) for row in connection.execute("SELECT * FROM attempts")]
        rollups = dict(connection.execute(_ROLLUPS).fetchone())
        refused = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    report = compare(records, rows)
    report.violations += _rollup_violations(rows, refused, rollups)
    return report


def compare(records: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Report:
    """Compare the upstream's *records* with the ledger's *rows* of attempts, as mappings by column."""
    report = Report()
    seen: dict[str, Mapping[str, Any]] = {}
    for record in records:
        uid = record.get("attempt_uid") or record.get("attempt")
        if not uid:
            continue
        if uid in seen:
            report.violations.append(f"{uid}: the upstream was asked twice")
        seen[uid] = record
    report.upstream = len(seen)
    report.completed = sum(1 for record in seen.values() if record.get("completed"))
    times = Counter(row["attempt_uid"] for row in rows)
    report.violations += [f"{uid}: {n} rows" for uid, n in times.items() if n > 1]
    for row in rows:
        _judge(row, seen.get(row["attempt_uid"]), report)
    report.violations += [
        f"{uid}: the upstream has seen it and the ledger has not"
        for uid in seen
        if uid not in times
    ]
    return report


def _judge(row: Mapping[str, Any], record: Mapping[str, Any] | None, report: Report) -> None:
    uid, reached, outcome = row["attempt_uid"], row["reached"], row["outcome"]
    if row["state"] != "final":
        report.open += 1
        return
    report.attempts += 1
    report.lost += outcome == "lost"
    if reached == "yes":
        report.yes += 1
    elif reached == "unknown":
        report.unknown += 1
    else:
        report.no += 1
    wrong = report.violations.append
    if reached not in {"yes", "no", "unknown"}:
        wrong(f"{uid}: reached is {reached!r}")
    if outcome not in {"succeeded", "failed", "cancelled", "lost"}:
        wrong(f"{uid}: outcome is {outcome!r}")
    if outcome == "lost" and reached != "unknown":
        wrong(f"{uid}: lost and yet reached is {reached}")
    if record is None:
        if reached == "yes":
            wrong(f"{uid}: reached yes ({outcome}), but the upstream has not seen it")
        return
    if reached == "no":
        wrong(f"{uid}: reached no ({outcome} {row['reason']}), but the upstream has seen it")
    if outcome != "succeeded":
        return
    if not record.get("completed"):
        wrong(f"{uid}: succeeded, but the upstream did not complete it")
        return
    told = record.get("tokens") or record
    for unit in ("input_tokens", "output_tokens"):
        if unit in told and told[unit] != row[unit]:
            wrong(f"{uid}: {unit} {row[unit]} in the ledger, {told[unit]} upstream")


_ROLLUPS = "SELECT " + ", ".join(
    f"coalesce(sum({name}), 0) AS {name}"
    for name in ("requests", "attempts", "failed", "lost", "cancelled", "estimated", *_SUMMED)
)
_ROLLUPS += " FROM rollups"


def _rollup_violations(
    rows: Sequence[Mapping[str, Any]], refused: int, rollups: Mapping[str, int]
) -> list[str]:
    final = [row for row in rows if row["state"] == "final"]
    expected = {
        "requests": sum(row["number"] == 1 for row in final) + refused,
        "attempts": len(final),
        "failed": sum(row["outcome"] == "failed" for row in final) + refused,
        "lost": sum(row["outcome"] == "lost" for row in final),
        "cancelled": sum(row["outcome"] == "cancelled" for row in final),
        "estimated": sum(row["estimated"] for row in final),
        **{name: sum(row[name] or 0 for row in final) for name in _SUMMED},
    }
    return [
        f"rollups say {name} = {rollups[name]}, the rows {value}"
        for name, value in expected.items()
        if rollups[name] != value
    ]
