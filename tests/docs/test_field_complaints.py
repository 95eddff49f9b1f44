"""Each complaint from the field has a test that exists, or says why it has none."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.pages import ROOT, text

PAGE = "docs/field-complaints.md"

_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_REASON = re.compile(r"(?:^|; )not (?:a|built|for|in|limited|testable)\b")
_REFERENCE = re.compile(r"#\d+|kubernai\.com|wegent|OpenRouter|Helicone")


def rows() -> list[list[str]]:
    found = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text(PAGE).splitlines()
        if line.startswith("| ")
    ]
    return [row for row in found if row[-1] != "proof"]


@cache
def functions(path: str) -> frozenset[str]:
    """Return the tests of a file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_named_test_exists() -> None:
    named = _TEST.findall(text(PAGE))
    assert len(named) > 60
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []


def test_every_complaint_is_proven_or_says_why_not() -> None:
    wrong = [row for row in rows() if not _TEST.search(row[-1]) and not _REASON.search(row[-1])]
    assert wrong == []


def test_every_complaint_has_its_public_reference() -> None:
    assert [row for row in rows() if len(row) != 4 or not _REFERENCE.search(row[1])] == []


def test_every_proof_is_a_test_or_a_reason() -> None:
    """Nothing else stands in the last column, such as a test whose name is spelt another way."""
    for row in rows():
        for part in _TEST.sub("", row[-1]).split(", "):
            left = part.strip("; ,")
            assert not left or "`" not in left, row
