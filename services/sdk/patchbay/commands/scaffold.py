"""
What `patchbay plugin new` writes: one Python file that does a little of each capability, its test, a README.

The text of the capabilities is in `patchbay.commands.templates`. Not here: serving and checking.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.commands.templates import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PLUGIN = '''"""
The plugin {name}.

Serve it with `patchbay plugin run {module}.py`, judge it with `patchbay plugin check {module}.py`.
"""

from __future__ import annotations

{imports}

class {cls}({bases}):
    """{summary}"""

    id = "{name}"
    name = "{title}"
    version = "0.1.0"
    author = "You"
{body}
'''

_TEST = '''"""Tests of the plugin {name}: what the contract asks of every plugin."""

import asyncio

from {module} import {cls}

from patchbay.testing.harness import conformance_of


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of({cls}()))
    assert report.passed, report.table()
'''

_README = """# {name}

{summary}

```sh
python -m pytest                                  # its test
patchbay plugin check {module}.py                 # the contract, rule by rule
export PATCHBAY_PLUGIN_KEY=$(patchbay plugin key {name})
patchbay plugin run {module}.py                   # serve it, here at 127.0.0.1:7003
```

In the gateway's `patchbay.yaml`:

```yaml
plugins:
  - id: {name}
    address: 127.0.0.1:7003
```
"""


def scaffold(name: str, capabilities: Sequence[str], folder: Path) -> list[Path]:
    """
    Write the files of a new plugin and return their paths.

    Args:
        name: Plugin id: words in lower case with dashes between.
        capabilities: Capability flags.
        folder: Made here; must not exist, or be empty.

    Raises:
        InvalidRequest: A name or capability is none, or something is in the way.
    """
    if not _NAME.fullmatch(name):
        raise errors.InvalidRequest(
            f"{name!r} is no plugin id: words in lower case with dashes between", reason="NAME"
        )
    if unknown := [flag for flag in capabilities if flag not in TEMPLATES]:
        raise errors.InvalidRequest(
            f"no capability {unknown[0]}; there are {', '.join(sorted(TEMPLATES))}",
            reason="CAPABILITY",
        )
    if folder.exists() and any(folder.iterdir()):
        raise errors.InvalidRequest(f"{folder} is not empty", reason="IN_THE_WAY")
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    words = {
        "name": name,
        "module": module,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
        "imports": _imports(capabilities),
        "bases": ", ".join(TEMPLATES[flag].base for flag in dict.fromkeys(capabilities)),
        "summary": " ".join(TEMPLATES[flag].summary for flag in dict.fromkeys(capabilities)),
        "body": "\n".join(TEMPLATES[flag].body.rstrip() for flag in dict.fromkeys(capabilities)),
    }
    written = []
    for file, text in (
        (f"{module}.py", _PLUGIN),
        (f"test_{module}.py", _TEST),
        ("README.md", _README),
    ):
        path = folder / file
        path.write_text(text.format(**words), encoding="utf-8")
        written.append(path)
    return written


def _imports(capabilities: Sequence[str]) -> str:
    """Return the import statements, one for each module, sorted."""
    wanted: dict[str, set[str]] = {}
    for flag in capabilities:
        for module, names in TEMPLATES[flag].imports.items():
            wanted.setdefault(module, set()).update(names)
    standard = sorted(module for module in wanted if not module.startswith("patchbay"))
    blocks = [f"from {m} import {', '.join(sorted(wanted[m]))}" for m in standard]
    if standard:
        blocks.append("")
    for module in sorted(set(wanted) - set(standard)):
        names = sorted(wanted[module])
        line = f"from {module} import {', '.join(names)}"
        if len(line) > 100:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
        blocks.append(line)
    return "\n".join(blocks) + "\n"
