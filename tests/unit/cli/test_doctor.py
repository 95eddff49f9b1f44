"""`patchbay doctor`: each check and its remedy."""

from __future__ import annotations

import json
import socket
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from patchbay import cli
from patchbay_gateway.doctor import Subject, examine
from patchbay_gateway.kernel.config import ProcessSettings

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.checks import Check

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")


def examine_with(
    tmp_path: Path, env: dict[str, str] | None = None, **flags: object
) -> dict[str, Check]:
    env = {"HOME": str(tmp_path), **(env or {})}
    flags = {"port": 0, "management_port": 0, "data_dir": tmp_path / "data", **flags}
    settings = ProcessSettings.load("up", env, flags)
    subject = Subject(settings, env, "http://127.0.0.1:9", lambda urls: dict.fromkeys(urls, "away"))
    return {c.name: c for c in examine(subject)}


def test_sound_machine_has_no_failure(tmp_path):
    checks = examine_with(tmp_path)

    assert [c for c in checks.values() if c.status == "fail"] == []
    assert set(checks) >= {
        "configuration",
        "keys",
        "data directory",
        "file descriptors",
        "redis",
        "gateway",
        "port 0",
    }
    assert not (tmp_path / "data").exists()


def test_every_check_that_is_not_fine_has_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    env = {
        "OPENAI_API_KEY_FILE": str(tmp_path / "gone"),
        "PATCHBAY_SCHEDULER_ADDRESS": "127.0.0.1:9",
    }
    checks = examine_with(
        tmp_path,
        env,
        data_dir=tmp_path / "file" / "data",
        redis_url="redis://127.0.0.1:9",
        host="0.0.0.0",
    )

    bad = {c.name for c in checks.values() if c.status != "ok"}
    assert bad >= {
        "provider openai: base_url",
        "provider openai: credentials",
        "keys",
        "client keys",
        "data directory",
        "redis",
        "scheduler",
    }
    assert all(c.remedy for c in checks.values() if c.status != "ok")


def test_each_of_several_addresses_is_tried(tmp_path):
    settings = ProcessSettings.load(
        "edge",
        {"HOME": str(tmp_path), "PATCHBAY_SCHEDULER_ADDRESS": "127.0.0.1:9, 127.0.0.1:10"},
        {"port": 0, "management_port": 0, "data_dir": tmp_path},
    )
    checks = examine(Subject(settings, {"HOME": str(tmp_path)}, "http://127.0.0.1:9"))

    told = [c.detail.partition(": ")[0] for c in checks if c.name == "scheduler"]
    assert told == ["127.0.0.1:9", "127.0.0.1:10"]


def test_wrong_file_is_a_failure_and_the_rest_is_still_checked(tmp_path):
    (tmp_path / "f.yaml").write_text("fancy: 1")

    checks = examine_with(tmp_path, config_path=tmp_path / "f.yaml")

    assert checks["configuration"].status == "fail"
    assert "fancy: unknown key" in checks["configuration"].detail
    assert "data directory" in checks


def test_prices_are_read_as_a_gateway_reads_them(tmp_path):
    file, prices = tmp_path / "f.yaml", tmp_path / "prices.yaml"
    file.write_text("usage: {prices: prices.yaml}")

    missing = examine_with(tmp_path, config_path=file)["prices"]
    prices.write_text("- {model: m, per_million: {input_tokens: cheap}}")
    broken = examine_with(tmp_path, config_path=file)["prices"]
    prices.write_text("- {model: m, per_million: {input_tokens: 2.50}}")
    sound = examine_with(tmp_path, config_path=file)["prices"]

    assert (missing.status, broken.status, sound.status) == ("fail", "fail", "ok")
    assert f"{prices}: cannot be read" in missing.detail
    assert "'cheap' is not a decimal" in broken.detail
    assert "usage.prices" in broken.remedy
    assert "prices" not in examine_with(tmp_path)


def test_key_file_that_others_can_read_is_a_failure(tmp_path):
    keys = tmp_path / "data" / "keys"
    keys.mkdir(parents=True)
    (keys / "store").write_text("x")
    (keys / "store").chmod(0o644)

    check = examine_with(tmp_path)["file modes"]

    assert check.status == "fail"
    assert check.remedy == f"chmod 600 {keys / 'store'}"


def test_taken_port_is_a_failure(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check = examine_with(tmp_path, port=port)[f"port {port}"]

    assert check.status == "fail"
    assert "--port" in check.remedy


@pytest.fixture
def invoke(tmp_path, monkeypatch, free_port):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHBAY_DATA_DIR", str(tmp_path / "data"))
    for name in ("REDIS_URL", "PATCHBAY_REDIS_URL", "PATCHBAY_CONFIG", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Any:
        fixed = ["--port", "0", "--management-port", str(free_port)]
        return CliRunner().invoke(cli.build([GATEWAY]), ["doctor", *fixed, *arguments])

    return run


def test_doctor_exits_with_0_when_nothing_fails(invoke):
    result = invoke()

    assert result.exit_code == 0, result.output
    assert "ok   configuration: no file, defaults; providers: echo" in result.stdout


def test_doctor_exits_with_1_and_prints_the_remedy(invoke):
    result = invoke("--redis-url", "redis://127.0.0.1:9")

    assert result.exit_code == 1
    assert "→ start it, or correct REDIS_URL" in result.stdout


def test_doctor_prints_json(invoke):
    checks = json.loads(invoke("--json").stdout)

    assert {"name", "status", "detail", "remedy"} == set(checks[0])
