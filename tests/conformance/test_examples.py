"""Every example is tested as its author would, by its own file, in its own folder; types and papers too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "services" / "sdk" / "examples"
ALL = sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "README.md").exists())
ELSEWHERE = ("relay-go",)
"""Examples in other languages, which have tests of their own: test_go_example.py."""
FOLDERS = [name for name in ALL if name not in ELSEWHERE]


def _sources(folder: str) -> list[Path]:
    """Return the plugin, then its test."""
    found = EXAMPLES.joinpath(folder).glob("*.py")
    return sorted(found, key=lambda path: path.name.startswith("test_"))


def test_each_example_has_a_plugin_a_test_and_a_readme() -> None:
    for folder in FOLDERS:
        names = [path.name for path in _sources(folder)]
        assert len(names) == 2, folder
        assert names[1] == f"test_{names[0]}", folder
    # What lies beside them is no example that was forgotten.
    assert {p.name for p in EXAMPLES.iterdir() if p.is_dir() and any(p.glob("*.py"))} == set(
        FOLDERS
    )
    for folder in ELSEWHERE:
        assert list(EXAMPLES.joinpath(folder).glob("*_test.*")), folder


def test_the_list_of_examples_names_each() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in ALL if f"[{name}]({name}/)" not in page] == []


PARTS = 3
_Run = tuple["subprocess.Popen[bytes]", IO[bytes]]


@pytest.fixture(scope="module")
def runs() -> Iterator[list[_Run]]:
    """All examples' tests, side by side: each ends with the whole conformance suite, which waits a lot."""
    started: list[_Run] = []
    for part in range(PARTS):
        said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        folders = [EXAMPLES / name for name in FOLDERS[part::PARTS]]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--import-mode=prepend",
                "-p", "no:cacheprovider", "-p", "no:asyncio", *folders,
            ],
            cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append((process, said))
    yield started
    for run, output in started:
        run.kill()
        run.wait()
        output.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_examples_pass_their_own_tests(part: int, runs: list[_Run]) -> None:
    process, said = runs[part]
    status = process.wait(280)
    said.seek(0)
    assert status == 0, said.read().decode()


def test_examples_are_typed() -> None:
    """Their module names are their own, so one run of the checker sees all of them."""
    plugins = [path for folder in FOLDERS for path in _sources(folder)[:1]]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", *plugins],
        cwd=EXAMPLES, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_examples_import_nothing_of_the_gateway() -> None:
    for folder in FOLDERS:
        for path in _sources(folder):
            assert "patchbay_gateway" not in path.read_text(encoding="utf-8"), path
