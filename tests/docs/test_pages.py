"""Pages say what is true: links, paths, verbs, variables, metrics, limits, of whom they speak."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.docs.pages import ROOT, code, links, pages, text, tracked
from typer.main import get_command

from patchbay.cli import build
from patchbay_gateway.kernel.config.settings import ProcessSettings
from patchbay_gateway.plugins.policy import EDGE_MARGIN, POLICIES
from patchbay_gateway.plugins.snapshot import StreamingEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

# Files of a user or of a run, which the pages name and the repository does not have.
_NOT_OURS = frozenset({
    "patchbay.yaml", "prices.yaml", "ledger.db", "snapshot.json", "ledger.dump", "results/<date>.json",
    "results/<date>.md", "results/latest.md",
})  # fmt: skip
_SUFFIXES = (".py", ".md", ".proto", ".yaml", ".yml", ".json", ".toml", ".sh", ".c", ".txt")
_BINARY = (".png", ".db", ".bin", ".zst", ".gz", ".br")


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        f"{page}: {target}"
        for page in pages()
        for target in links(page)
        if not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert not broken


# A field of a message, and the suffix alone: no files.
_A_FIELD = re.compile(r"([A-Z]\w+)?\.json")


def test_every_path_named_as_code_exists() -> None:
    """A path is written from the root, from the page, or as the end of one (`edge/pipeline.py`)."""
    files = tracked()
    folders = {str(part) for name in files for part in (ROOT / name).relative_to(ROOT).parents}
    packages = ROOT / "services" / "patchbay_gateway"
    top = {name.partition("/")[0] for name in files if "/" in name}
    top |= {folder.name for folder in packages.iterdir() if folder.is_dir()}
    missing = []
    for page in pages():
        for span in code(page):
            name = span.rstrip("/")
            if (
                name in _NOT_OURS
                or _A_FIELD.fullmatch(name)
                or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name)
            ):
                continue
            ends_so = any(f == name or f.endswith(f"/{name}") for f in files)
            if name.endswith(_SUFFIXES):
                exists = ends_so
            elif "/" in name and name.partition("/")[0] in top:
                exists = ends_so or any(f == name or f.endswith(f"/{name}") for f in folders)
            else:
                continue
            if not exists and not (ROOT / page).parent.joinpath(name).exists():
                missing.append(f"{page}: {span}")
    assert not missing


def test_every_make_verb_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    unknown = [
        f"{page}: make {verb}"
        for page in pages()
        for span in code(page)
        for command in re.findall(r"\bmake((?: [a-z][a-z0-9-]*)+)", span)
        for verb in command.split()
        if verb not in verbs
    ]
    assert not unknown


def test_every_verb_of_the_program_exists() -> None:
    verbs = set(get_command(build()).commands)  # type: ignore[attr-defined] # it is a group
    assert {"up", "usage", "doctor"} <= verbs
    unknown = [
        f"{page}: patchbay {verb}"
        for page in pages()
        for span in code(page)
        # Labels of key derivation look alike and end in a version.
        for verb in re.findall(r"(?:^|\s|bin/)patchbay ([a-z][a-z-]*)(?! v1)\b", span)
        if verb not in verbs
    ]
    assert not unknown


def test_every_variable_is_read_somewhere() -> None:
    source = "\n".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in tracked()
        if name.endswith((".py", ".yml", "Dockerfile", "/build", "/compose"))
    )
    known = set(re.findall(r"PATCHBAY_[A-Z_]*[A-Z]", source))
    known |= {f"PATCHBAY_{field.upper()}" for field in ProcessSettings.model_fields}
    known |= {f"PATCHBAY_{root}_KEY" for root in ("STORE", "PLUGINS", "CLUSTER")}
    unknown = [
        f"{page}: {name}"
        for page in pages()
        for name in re.findall(r"PATCHBAY_[A-Z_]*[A-Z]", "\n".join(code(page)))
        # With `__` between levels it is a key of the configuration.
        if "__" not in name and not {name, name.removesuffix("_FILE")} & known
    ]
    assert not unknown


def test_operations_name_the_metrics_that_exist() -> None:
    made = set()
    for name in tracked():
        if name.startswith("services/patchbay_gateway/") and name.endswith(".py"):
            source = (ROOT / name).read_text(encoding="utf-8")
            made |= set(re.findall(r"\.(?:counter|gauge|histogram)\(\s*\"(\w+)\"", source))
    served = (ROOT / "services/sdk/patchbay/metrics.py").read_text(encoding="utf-8")
    made |= {
        f"plugin_{name}" for name in re.findall(r"\(\s*\"(\w+)\",\s*\"(?:counter|gauge)", served)
    }
    services = "edge|scheduler|usage|executors|plugin"
    named = set(re.findall(rf"\bpatchbay_((?:{services})_\w+)", text("docs/operations.md")))
    assert named == made


def test_architecture_has_the_limits_of_the_code() -> None:
    rows = [line for line in text("docs/architecture.md").splitlines() if line.startswith("|")]
    for field in msgspec.structs.fields(StreamingEntry):
        row = next(r for r in rows if f"`streaming.{field.name}`" in r or f"`{field.name}`" in r)
        value = getattr(StreamingEntry(), field.name)
        assert (f"{value:g} s" if value else "off") in row, row
    deadline = POLICIES["register"].deadline
    assert any("row `register`" in row and f"{deadline:g} s" in row for row in rows)
    execute = POLICIES["executor"]
    assert (execute.first_byte, execute.idle) == (
        StreamingEntry().first_byte_timeout,
        StreamingEntry().idle_timeout,
    )
    assert any(f"{EDGE_MARGIN:g} s more than the provider's" in row for row in rows)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_first_pages_are_short(page: str) -> None:
    assert len(text(page).splitlines()) <= 150


def _decisions() -> Iterator[str]:
    return (n for n in tracked() if re.fullmatch(r"docs/adr/\d{4}-.*\.md", n))


def test_decisions_have_one_form_and_are_listed() -> None:
    index = links("docs/adr/README.md")
    for page in _decisions():
        lines = text(page).splitlines()
        number = int(page.rpartition("/")[2][:4])
        assert lines[0].startswith(f"# {number}. "), page
        assert any(line.startswith("Status: ") for line in lines[:4]), page
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == [
            "## Context", "## Drivers", "## Options", "## Outcome", "## Consequences", "## Validation",
        ], page  # fmt: skip
        assert 40 <= len(lines) <= 80, page
        assert page.rpartition("/")[2] in index


def test_repository_speaks_of_the_product_alone() -> None:
    """No place on somebody's machine, no tool that somebody wrote it with."""
    places = re.compile(r"(?<![\w.~}>)-])/(?:work|shared|root|Users/\w+|home/[a-z]\w*)/\w")
    tools = re.compile(
        r"\b(?:sub-?agents?|co-authored-by|ai assistants?|prompted by)\b", re.IGNORECASE
    )
    people = re.compile(
        r"\b(?:this|my|our|earlier|previous) session\b|(?<!\")\bassistants?\b(?!\")",  # not the role
        re.IGNORECASE,
    )
    found = []
    for name in tracked():
        if name.startswith(("tests/docs/", "requirements/")) or name == "scripts/no-secrets":
            continue
        if name.endswith(_BINARY):
            continue
        content = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        for pattern in (places, tools, *([people] if name.endswith(".md") else [])):
            found += [f"{name}: {match[0]}" for match in pattern.finditer(content)]
    assert not found
