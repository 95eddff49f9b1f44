"""Types are an interface: right code passes strict checkers, wrong code does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = ("user_code.py", "user_capabilities.py")
# A checker that finds no cache reads all that the SDK imports.
pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", FILES)
def test_user_code_is_judged_as_its_comments_say(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", HERE / name],
        cwd=HERE.parents[1],
        capture_output=True,
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    # That the check can fail at all.
    wrong = (HERE / name).read_text().count("# type: ignore[")
    assert wrong >= 8


@pytest.mark.requires("pyright")
def test_user_code_passes_pyright_too(tmp_path: Path) -> None:
    """Pyright's rules are others; what mypy refuses is ignored, nothing else may be found."""
    checker = Path(sys.executable).with_name("basedpyright")
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": [str(HERE / name) for name in FILES],
                "typeCheckingMode": "strict",
                "enableTypeIgnoreComments": True,
                "venvPath": str(Path(sys.prefix).parent),
                "venv": Path(sys.prefix).name,
                "extraPaths": [str(HERE.parents[1] / "services" / "sdk")],
            }
        )
    )
    done = subprocess.run(
        [checker, "-p", settings, "--outputjson"], capture_output=True, check=False, timeout=560
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [f"{d['file']}:{d['range']['start']['line'] + 1} {d['message']}" for d in found] == []
