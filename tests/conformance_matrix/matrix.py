"""
The matrix of behaviours: what it says, row by row, and the page that is made of it.

Not here: the rules that it is held to (test_matrix.py), the behaviours (matrix.yaml).
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "conformance-matrix.md"
DATA: Final = Path(__file__).with_name("matrix.yaml")

COUNTS: Final = {
    "B": 6, "C": 30, "E": 24, "F": 5, "G": 12, "H": 20, "I": 16, "K": 12, "L": 7, "O": 16, "P": 12,
    "R": 4, "S": 14, "U": 8, "W": 13, "X": 11, "Z": 8,
}  # fmt: skip
"""How many behaviours the catalogue has under each letter, numbered from 01."""

NOT_OURS: Final = {
    "home": "Home, the vendor's control plane",
    "vendor": "specific to one vendor",
    "libraries": "discovery of dynamic libraries; a plugin is a process with an address",
    "dialects": "pairs of the later dialects",
}
"""Why a behaviour may be none of ours: nothing else is a reason."""

DEFECTS: Final = {
    1: "headers cannot be cleared after auth",
    2: "cleared headers of answers stay where they are not passed through",
    4: "an empty stream cannot be told, a forgotten close hangs the client",
    5: "more than 16 chunks before the call returns block for ever",
    8: "codes and retry hints of errors are ignored; callbacks lose the HTTP status",
    9: "executors of plugins publish no usage on the usual route",
    10: "a plugin's time of the next refresh is thrown away",
    11: "every change of a credential reconfigures every plugin",
    12: "resource pages and the OAuth callback are open to everybody",
    13: "a crash removes a plugin for good; hangs are never noticed, no call has a deadline",
    14: "reading after the end differs between model and HTTP streams",
    15: "HTTP streams outlive their scope",
    16: "HTTP answers are spelled unlike all others",
    17: "a route of a replaced plugin answers 200 with nothing",
    18: "plugins' translators count for outputs and not for inputs",
    19: "direct and usual routes differ in headers, retries and empty streams",
    20: "every plugin reads every credential",
    21: "a page that calls models spends quota for anybody",
    23: "a broken exclusive frontend auth lets the configured keys in, or everybody",
    24: "an executor that asks for its own model loops",
}
"""Defects of the original that are corrected, by their number in its catalogue; 3, 6, 7, 22 are kept."""


@dataclass(frozen=True)
class Row:
    """One behaviour."""

    id: str
    what: str
    verdict: str
    tests: tuple[str, ...] = ()
    ours: str = ""
    see: str = ""
    corrects: int = 0
    because: str = ""
    why: str = ""


@dataclass(frozen=True)
class Section:
    """Behaviours of one subject."""

    title: str
    rows: tuple[Row, ...]


@cache
def sections() -> tuple[Section, ...]:
    """Return all of them, tests with their full paths."""
    document = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    files = document["files"]

    def row(given: dict[str, object]) -> Row:
        tests = []
        for named in given.pop("tests", ()):  # type: ignore[attr-defined] # a list of text
            file, _, name = named.partition("::")
            tests.append(f"{files.get(file, file)}::{name}")
        return Row(tests=tuple(tests), **given)  # type: ignore[arg-type] # checked by its tests

    return tuple(
        Section(given["title"], tuple(row(dict(each)) for each in given["rows"]))
        for given in document["sections"]
    )


def rows() -> list[Row]:
    """Return the rows of all sections."""
    return [row for section in sections() for row in section.rows]


@cache
def names_in(path: str) -> frozenset[str]:
    """Return the names of the test functions of a file; none where there is no file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def page() -> str:
    """Return docs/conformance-matrix.md."""
    found = Counter(row.verdict for row in rows())
    lines = [
        "# What CLIProxyAPI's plugin system does, and what Patchbay does about it",
        "",
        "Patchbay keeps the words and the meaning of `pluginapi`, the plugin system of CLIProxyAPI.",
        "Its behaviour was written down as a catalogue of 218 small facts, numbered by subject; this",
        "page goes through them. The words are ours, the numbers are the catalogue's.",
        "",
        "| verdict | meaning | rows |",
        "|---|---|---|",
        f"| test | so it is here, and the test proves it | {found['test']} |",
        f"| changed | otherwise here, on purpose; the test proves what we do | {found['changed']} |",
        f"| n/a | {'; '.join(NOT_OURS.values())} | {found['n/a']} |",
        f"| open | not there, or not proved | {found['open']} |",
        "",
        "Made from `tests/conformance_matrix/matrix.yaml` by `make docs`. How to write a plugin is in",
        "[the contract](../proto/README.md).",
    ]
    for section in sections():
        lines += [
            "",
            f"## {section.title}",
            "",
            "| id | behaviour | verdict | |",
            "|---|---|---|---|",
        ]
        lines += [f"| {r.id} | {r.what} | {r.verdict} | {_last(r)} |" for r in section.rows]
    numbers = sorted({row.corrects for row in rows() if row.corrects})
    lines += [
        "",
        "## Defects that are corrected",
        "",
        "Numbers of the catalogue's list of defects, as far as rows above name them.",
        "",
        "| number | the original |",
        "|---|---|",
        *(f"| {number} | {DEFECTS[number]} |" for number in numbers),
    ]
    return "\n".join(lines) + "\n"


def _last(row: Row) -> str:
    if row.verdict == "n/a":
        return NOT_OURS[row.because]
    if row.verdict == "open":
        return row.why
    tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)
    if row.verdict == "test":
        return tests
    reason = f"corrects defect {row.corrects}" if row.corrects else f"[why]({row.see})"
    return f"{row.ours} ({reason}); {tests}"
