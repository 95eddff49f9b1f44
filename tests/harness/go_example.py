"""
The example in Go: its toolchain, its modules, its build. Not here: what it is asked.

Where Go or the modules cannot be had, the test that wants them is skipped by name (tests/requirements.py).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.requirements import lack, need

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).resolve().parents[2] / "services" / "sdk" / "examples" / "relay-go"
_PATIENCE = 480.0
"""Seconds for the first build on a busy machine; later ones find everything in Go's cache."""
_FETCH = 60.0


def go(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Return what `go` prints; AssertionError with its complaint when it fails."""
    done = _go(*arguments, env=env, seconds=_PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_modules() -> None:
    """Skip unless there is a Go that takes this module, and what it imports is here or can be fetched."""
    need("go")
    try:
        done = _go("mod", "download", seconds=_FETCH)
    except subprocess.TimeoutExpired:
        lack("go", "its modules cannot be fetched: the proxy does not answer")
    # A sum that differs is nobody's absence.
    if done.returncode and "SECURITY ERROR" not in done.stderr:
        lines = done.stderr.strip().splitlines()
        lack(
            "go", f"its modules cannot be fetched: {lines[-1][:160] if lines else done.returncode}"
        )
    assert done.returncode == 0, done.stderr


def build(directory: Path) -> Path:
    """Return the program, built into *directory*."""
    program = directory / "relay-go"
    go("build", "-trimpath", "-o", str(program), ".")
    return program


def _go(
    *arguments: str, env: Mapping[str, str] | None = None, seconds: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *arguments],
        # A go.mod that is not complete is an error here, not something to mend.
        cwd=FOLDER, env={**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", **(env or {})},
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
