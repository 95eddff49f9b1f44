"""`patchbay plugin new`, `run` and `check`, and what they load and write."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.processes import PATCHBAY
from typer.testing import CliRunner

from patchbay import cli, errors
from patchbay.commands.loading import load_plugins
from patchbay.commands.scaffold import scaffold
from patchbay.commands.templates import TEMPLATES
from patchbay.testing.harness import conformance_of
from patchbay.testing.requests import all_services, declared_services

if TYPE_CHECKING:
    from pathlib import Path

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")


def invoke(*arguments: object, entry_points: list[EntryPoint] | None = None) -> Any:
    return CliRunner().invoke(cli.build(entry_points or []), [str(a) for a in arguments])


def test_group_has_the_verbs_of_both_distributions() -> None:
    alone = invoke("plugin", "--help").stdout
    together = invoke("plugin", "--help", entry_points=[GATEWAY]).stdout
    for verb in ("new", "run", "check"):
        assert f" {verb} " in alone
        assert f" {verb} " in together
    assert " key " not in alone
    assert " key " in together


def test_every_capability_has_a_template() -> None:
    assert set(TEMPLATES) == set(all_services())


@pytest.mark.parametrize("flag", sorted(TEMPLATES))
async def test_new_plugin_keeps_the_contract(flag: str, tmp_path: Path) -> None:
    name = f"new-{flag.replace('_', '-')}"
    scaffold(name, [flag], tmp_path / name)
    (plugin,) = load_plugins(str(tmp_path / name / f"{name.replace('-', '_')}.py"))
    assert set(declared_services(plugin.capabilities())) == {flag}
    only = ["handshake.register", f"capability.{flag}", "streams.order", "streams.interceptor"]
    (report,) = await conformance_of(plugin, only=only)
    assert report.passed, report.table()
    assert {r.id: r.result for r in report.results}["handshake.register"] == "pass"


def test_new_takes_several_capabilities(tmp_path: Path) -> None:
    options = [
        "--capability",
        "model_router",
        "--capability",
        "executor",
        "--capability",
        "executor",
    ]
    result = invoke("plugin", "new", "both-ways", *options, "--directory", tmp_path / "here")
    assert result.exit_code == 0, result.output
    (plugin,) = load_plugins(str(tmp_path / "here" / "both_ways.py"))
    assert set(declared_services(plugin.capabilities())) == {"model_router", "executor"}
    assert plugin.id == "both-ways"
    for file in (tmp_path / "here").glob("*.py"):
        ast.parse(file.read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("My_Filter",), "is no plugin id"),
        (("fine", "--capability", "magic"), "no capability magic; there are"),
    ],
)
def test_new_refuses_what_it_cannot_write(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    result = invoke("plugin", "new", *arguments, "--directory", tmp_path / "x")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "x").exists()


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    result = invoke("plugin", "new", "fine", "--directory", tmp_path)
    assert result.exit_code == 1
    assert "is not empty" in result.stderr


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("no_such_module_here", "cannot import no_such_module_here"),
        ("json", "has no plugin"),
        ("json:Nothing", "has no plugin class Nothing"),
    ],
)
def test_load_says_what_is_missing(target: str, said: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=said):
        load_plugins(target)


def test_load_takes_one_class_of_several(tmp_path: Path) -> None:
    file = tmp_path / "several_of_them.py"
    file.write_text(
        "from patchbay.transform import RequestNormalizer\n"
        "class Base(RequestNormalizer):\n    name = version = author = 'x'\n"
        "class One(Base):\n    id = 'one'\n"
        "class Two(Base):\n    id = 'two'\n"
    )
    assert [plugin.id for plugin in load_plugins(str(file))] == ["one", "two"]
    assert [plugin.id for plugin in load_plugins(f"{file}:Two")] == ["two"]


def test_load_tells_syntax_errors_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "not_python.py"
    file.write_text("x = 1\nclass\n")
    with pytest.raises(errors.InvalidRequest, match=r"not_python\.py:2: "):
        load_plugins(str(file))


def test_check_of_an_address_needs_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATCHBAY_PLUGIN_KEY", raising=False)
    monkeypatch.delenv("PATCHBAY_PLUGIN_KEY_FILE", raising=False)
    assert invoke("plugin", "check", "127.0.0.1:1").exit_code == 2


def test_check_of_nobody_is_a_failure(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"my-filter={'00' * 32}\n")
    socket = f"unix:{tmp_path}/nobody"
    result = invoke("plugin", "check", socket, "--key-file", keys)
    assert result.exit_code == 1
    assert "nobody answers" in result.stderr


def test_check_runs_a_file_and_prints_json(tmp_path: Path) -> None:
    scaffold("my-filter", ["request_normalizer"], tmp_path / "p")
    result = invoke("plugin", "check", tmp_path / "p" / "my_filter.py", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["plugin_id"] == "my-filter"
    assert report["passed"] is True
    results = {rule["id"]: rule["result"] for rule in report["rules"]}
    assert results["health.drain"] == results["secrets.logs"] == "pass"


def test_check_runs_a_program_and_sees_its_end(tmp_path: Path) -> None:
    """Any program: it finds its key in the environment and listens where it is told."""
    scaffold("my-filter", ["request_interceptor"], tmp_path / "p")
    socket = f"unix:{tmp_path}/plugin"
    command = f"{PATCHBAY} plugin run {tmp_path / 'p' / 'my_filter.py'} --address {socket}"
    result = invoke("plugin", "check", socket, "--id", "my-filter", "--run", command, "--json")
    assert result.exit_code == 0, result.output
    rules = {rule["id"]: rule["result"] for rule in json.loads(result.stdout)["rules"]}
    assert (rules["health.drain"], rules["secrets.logs"]) == ("pass", "pass")


def test_check_of_a_program_needs_its_address_and_id(tmp_path: Path) -> None:
    assert invoke("plugin", "check", "127.0.0.1:1", "--run", "program").exit_code == 2
    assert invoke("plugin", "check", "a.py", "--id", "x", "--run", "program").exit_code == 2
    missing = tmp_path / "missing"
    found = invoke("plugin", "check", "127.0.0.1:1", "--id", "x", "--run", missing)
    assert found.exit_code == 1
    assert "cannot be run" in found.output


def test_check_of_a_broken_plugin_ends_with_1(tmp_path: Path) -> None:
    scaffold("my-filter", ["request_normalizer"], tmp_path / "p")
    file = tmp_path / "p" / "my_filter.py"
    file.write_text(file.read_text().replace('author = "You"', 'author = ""'))
    result = invoke("plugin", "check", file)
    assert result.exit_code == 1
    assert "fail     handshake.register" in result.stdout, result.output
    assert "metadata.author is empty" in result.stdout


def test_run_without_a_key_prints_one_that_the_check_takes(tmp_path: Path) -> None:
    scaffold("my-filter", ["request_normalizer"], tmp_path / "p")
    socket = f"unix:{tmp_path}/s"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PATCHBAY_")}
    command: list[str | Path] = [
        PATCHBAY,
        "plugin",
        "run",
        tmp_path / "p" / "my_filter.py",
        "--address",
        socket,
    ]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        name, _, key = process.stdout.readline().strip().partition("=")
        assert name == "PATCHBAY_PLUGIN_KEY"
        file = tmp_path / "key"
        file.write_text(key)
        # It tells its key before it listens, and then that it does.
        assert any("serving" in line for line in process.stdout)
        result = invoke("plugin", "check", socket, "--id", "my-filter", "--key-file", file)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    assert result.exit_code == 0, result.output
    assert "skipped  secrets.logs" in result.stdout
