"""A run lists what it did not run and fails for a skip that nothing explains, in one process or in two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXPLAINED = """
import pytest

@pytest.mark.requires("docker")
def test_engine():
    raise AssertionError("it ran")
"""
UNEXPLAINED = """
import pytest

def test_later():
    pytest.skip("later")
"""
WHOLE_FILE = """
import pytest

pytest.skip("some day", allow_module_level=True)
"""
PASSING = """
def test_fine():
    pass
"""


def run(directory: Path, workers: int, **files: str) -> subprocess.CompletedProcess[str]:
    """Run *files* with what lists and refuses skips, and with nothing else of these tests."""
    for name, source in {"passing": PASSING, **files}.items():
        (directory / f"test_{name}.py").write_text(source, encoding="utf-8")
    dealt = [f"-n{workers}", "--dist=loadfile", "-p", "tests.harness.workers"]
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-c", "/dev/null", f"--rootdir={directory}",
            f"--basetemp={directory / 'made'}", "-p", "no:cacheprovider", "-p", "no:asyncio",
            "-p", "tests.requirements", *dealt, directory,
        ],
        cwd=ROOT,
        env={"PATCHBAY_TEST_WITHOUT": "docker", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_requirement_is_listed_and_passes(tmp_path: Path, workers: int) -> None:
    done = run(tmp_path, workers, explained=EXPLAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "docker: PATCHBAY_TEST_WITHOUT names it (images; 1 test)" in done.stdout
    assert "  test_explained.py::test_engine\n" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_any_other_skip_fails_the_run(tmp_path: Path, workers: int) -> None:
    """Of a test and of a whole file, each named once however many workers saw it."""
    done = run(tmp_path, workers, unexplained=UNEXPLAINED, whole=WHOLE_FILE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout
    for told in ("test_unexplained.py::test_later: later", "test_whole.py: some day"):
        assert done.stdout.count(f"{told} (tests/requirements.py)\n") == 1
