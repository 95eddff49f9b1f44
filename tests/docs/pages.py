"""The pages of the repository as tests see them: code blocks, code spans, links. Not here: what must hold."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    language: str
    text: str


@cache
def tracked() -> tuple[str, ...]:
    """Return the files of the repository, new ones included, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def pages() -> tuple[str, ...]:
    """Return the pages that people read."""
    return tuple(
        n for n in tracked() if n.endswith(".md") and not n.startswith(("changelog/", "."))
    )


@cache
def text(page: str) -> str:
    """Return a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the fenced blocks of *page* in *languages*."""
    return [Block(page, m[1], m[2]) for m in _FENCE.finditer(text(page)) if m[1] in languages]


def code(page: str) -> list[str]:
    """Return what *page* sets as code: spans, and shell blocks without their comments, line by line."""
    spans = _SPAN.findall(_FENCE.sub("", text(page)))
    for block in blocks(page, "sh"):
        spans += [line.partition(" #")[0].strip() for line in block.text.splitlines()]
    return spans


def links(page: str) -> list[str]:
    """Return the relative links of *page*, without anchors."""
    found = (target.partition("#")[0] for target in _LINK.findall(_FENCE.sub("", text(page))))
    return [target for target in found if target and "://" not in target]
