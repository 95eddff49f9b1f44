"""docs/plugin-reference.md: a heading for each capability, its example runs, its table is the code's."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.docs.pages import text

from patchbay.commands.loading import load_plugins
from patchbay.commands.scaffold import scaffold
from patchbay.testing.conformance import RULES
from patchbay.testing.harness import conformance_of
from patchbay.testing.requests import all_services, declared_services
from patchbay.testing.rules_calls import CAPABILITIES
from patchbay_gateway.plugins.policy import POLICIES, OnError, Policy

PAGE = "docs/plugin-reference.md"
_SECTION = re.compile(r"^## [^\n]+ · `(\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def policy_table() -> str:
    """Return the table of deadlines and failures as the page must have it."""
    head = ("capability", "deadline", "on error or deadline", "with `Fail`, `Ignore`", "none left")
    lines = [f"| {' | '.join(head)} | other address |", "|---|---|---|---|---|---|"]
    for name, row in POLICIES.items():
        cells = (
            f"`{name}`",
            _deadline(row),
            row.on_error.value,
            _override(row),
            row.when_open.value,
            "yes" if row.other_address else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def rules_table() -> str:
    """Return the table of the conformance suite; the rules of capabilities, which are alike, as one."""
    lines = ["| rule | what holds | how it is tried |", "|---|---|---|"]
    seen = set()
    for rule in RULES:
        row = (f"`{rule.id}`", rule.sentence, rule.how)
        if rule in CAPABILITIES:
            sentence = "A plugin serves what it declares; its answers make sense."
            row = ("`capability.` and the flag", sentence, rule.how)
        if row not in seen:
            lines.append(f"| {' | '.join(row)} |")
        seen.add(row)
    return "\n".join(lines) + "\n"


def _deadline(row: Policy) -> str:
    if row.first_byte is not None:
        return f"first byte {row.first_byte:g} s, idle {row.idle:g} s"
    return "none" if row.deadline is None else f"{row.deadline:g} s"


def _override(row: Policy) -> str:
    def told(name: str, found: OnError | None) -> list[str]:
        return [f"`{name}`: {found.value}"] if found is not None else []

    return ", ".join(told("Fail", row.strict) + told("Ignore", row.lenient))


def example(flag: str) -> str:
    """Return the example of a capability: what `plugin new` writes, without the page about it."""
    with tempfile.TemporaryDirectory() as folder:
        scaffold("example", [flag], Path(folder) / "p")
        written = (Path(folder) / "p" / "example.py").read_text(encoding="utf-8")
    return written.split('"""\n\n', 1)[1]


def sections() -> dict[str, str]:
    """Return the text of each capability's section."""
    return dict(_SECTION.findall(text(PAGE)))


def test_rules_are_those_of_the_suite() -> None:
    assert rules_table() in text(PAGE)


def test_every_capability_has_its_heading() -> None:
    assert set(sections()) == set(all_services())


def test_table_is_the_one_of_the_code() -> None:
    assert policy_table() in text(PAGE)


@pytest.mark.parametrize("flag", sorted(all_services()))
async def test_example_runs_and_is_what_new_writes(flag: str, tmp_path: Path) -> None:
    (block,) = _PYTHON.findall(sections()[flag])
    assert block == example(flag)
    file = tmp_path / f"reference_{flag}.py"
    file.write_text(block, encoding="utf-8")
    (plugin,) = load_plugins(str(file))
    assert set(declared_services(plugin.capabilities())) == {flag}
    only = ["handshake.register", f"capability.{flag}", "streams.interceptor", "streams.transform"]
    (report,) = await conformance_of(plugin, only=only)
    assert report.passed, report.table()


def test_declaration_names_every_key() -> None:
    """The block is a configuration (test_quick_start); here: it shows all that there is."""
    from patchbay_gateway.kernel.config.plugins import Plugin  # noqa: PLC0415 - used once

    declaration = text(PAGE).partition("```yaml")[2].partition("```")[0]
    missing = [name for name in Plugin.model_fields if f"{name}:" not in declaration]
    assert not missing


def test_example_of_a_test_runs() -> None:
    section = text(PAGE).partition("## In an author's tests")[2]
    (block,) = _PYTHON.findall(section)
    subprocess.run([sys.executable, "-c", block], check=True, timeout=240)
