"""The program: verbs of whatever is installed, exit status, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from patchbay import cli, errors

if TYPE_CHECKING:
    import typer

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")
runner = CliRunner()


def invoke(*arguments: str, obj: Any = None) -> Any:
    return runner.invoke(cli.build([GATEWAY]), list(arguments), obj=obj)


class Failing:
    """An entry point whose verb `fail` raises."""

    name, value = "failing", "failing:register"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def load(self) -> Any:
        def register(app: typer.Typer) -> None:
            @app.command()
            def fail() -> None:
                raise self._error

        return register


class Broken:
    """An entry point that cannot be imported."""

    name, value = "broken", "broken:register"

    def load(self) -> Any:
        raise ImportError("no module named broken")


def test_version_prints_what_is_installed():
    result = invoke("version")

    assert result.exit_code == 0
    assert "patchbay-sdk 0." in result.stdout


def test_version_prints_json():
    assert set(json.loads(invoke("version", "--json").stdout)) >= {"patchbay-sdk", "python"}


def test_help_lists_every_verb():
    result = invoke("--help")

    for verb in ("up", "edge", "scheduler", "executors", "usage", "config", "doctor", "version"):
        assert f" {verb} " in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["up"],
        ["edge"],
        ["scheduler"],
        ["executors"],
        ["usage"],
        ["usage", "report"],
        ["config"],
        ["config", "check"],
        ["config", "schema"],
        ["doctor"],
        ["version"],
    ],
)
def test_every_verb_has_help(arguments):
    result = invoke(*arguments, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["up", "--prot", "1"],
        ["up", "--port", "99999"],
        ["config", "check"],
        ["usage", "report", "--by", "colour"],
        ["usage", "report", "--since", "yesterday"],
        ["executors", "--plugins", "nonsense"],
    ],
)
def test_wrong_use_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


def test_error_of_the_tree_is_a_sentence_and_status_1():
    app = cli.build([Failing(errors.Unavailable("start it first"))])  # type: ignore[list-item]

    result = runner.invoke(app, ["fail"])

    assert result.exit_code == 1
    assert result.stderr == "patchbay: start it first\n"


@pytest.mark.parametrize("error", [errors.Internal("a bug"), ZeroDivisionError()])
def test_bug_keeps_its_traceback(error):
    result = runner.invoke(cli.build([Failing(error)]), ["fail"])  # type: ignore[list-item]

    assert result.exit_code == 1
    assert result.exception is error


def test_distribution_that_cannot_load_leaves_the_others_their_verbs():
    result = runner.invoke(cli.build([Broken(), GATEWAY]), ["config", "schema"])  # type: ignore[list-item]

    assert result.exit_code == 0


def test_console_script_starts_without_loading_a_service():
    """`patchbay version` and `--help` are for people: nothing heavy comes with them."""
    code = (
        "import sys, patchbay.cli\n"
        "patchbay.cli.build()\n"
        "heavy = {'grpc', 'fastapi', 'uvicorn', 'pydantic', 'sqlalchemy', 'aiohttp', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"


def test_console_script_is_installed():
    result = subprocess.run(
        [Path(sys.executable).with_name("patchbay"), "version"], capture_output=True, check=False
    )

    assert result.returncode == 0
