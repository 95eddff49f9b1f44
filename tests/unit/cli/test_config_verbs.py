"""`patchbay config check` and `config schema`."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from typer.testing import CliRunner

from patchbay import cli

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.build([GATEWAY]), [str(a) for a in arguments])


def test_fine_file_is_counted(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text("providers: [{name: a, plugin: echo, credentials: [{id: c, api_key_env: E}]}]")

    result = invoke("config", "check", file)

    assert result.exit_code == 0
    assert "fine: 1 provider, 1 credential, 0 routes" in result.stdout


def test_wrong_file_is_told_line_by_line(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text("limits:\n  in_flght: 1MiB\nfancy: 1\n")

    result = invoke("config", "check", file)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == (
        f"{file}:2: limits.in_flght: unknown key; did you mean in_flight?"
    )
    assert f"{file}:3: fancy: unknown key" in result.stderr


def test_problems_are_printed_as_json(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text("limits:\n  in_flght: 1MiB\n")

    result = invoke("config", "check", file, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [
            {
                "source": str(file),
                "line": 2,
                "path": "limits.in_flght",
                "message": "unknown key; did you mean in_flight?",
            }
        ],
        "warnings": [],
        "in_clear": [],
    }


def test_password_of_a_proxy_in_the_file_is_a_warning_and_a_reference_is_none(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text(
        "providers:\n"
        "  - {name: a, plugin: echo, proxy_url: 'http://me:test-password@p:1'}\n"
        "  - name: b\n"
        "    plugin: echo\n"
        "    proxy_url: http://${PROXY_AUTH}@p:1\n"
        "    credentials: [{id: x, proxy_url: 'http://p:1'}, {id: y, proxy_url: 'http://token@p:1'}]\n"
    )
    result = invoke("config", "check", file)
    assert result.exit_code == 0
    assert result.stderr.count("warning") == 2
    assert "providers.0.proxy_url: user and password lie in clear in Redis" in result.stderr
    assert "test-password" not in result.stderr
    told = json.loads(invoke("config", "check", file, "--json").stdout)
    assert told["in_clear"] == ["providers.0.proxy_url", "providers.1.credentials.1.proxy_url"]


def test_secrets_are_demanded_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("GONE", raising=False)
    file = tmp_path / "patchbay.yaml"
    file.write_text("client_keys: [{name: a, key_env: GONE}]")

    assert invoke("config", "check", file).exit_code == 0
    result = invoke("config", "check", file, "--secrets")
    assert result.exit_code == 1
    assert "GONE is not set" in result.stderr


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        ("- {model: m, per_million: {input_tokens: cheap}}", "entry 1: input_tokens: 'cheap' is"),
    ],
    ids=["missing", "broken"],
)
def test_prices_that_no_gateway_would_take_are_told(tmp_path, prices, why):
    file, beside = tmp_path / "patchbay.yaml", tmp_path / "prices.yaml"
    file.write_text("usage: {prices: prices.yaml}")
    if prices is not None:
        beside.write_text(prices)

    result = invoke("config", "check", file)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}: usage.prices: {beside}: {why}"), result.stderr
    told = json.loads(invoke("config", "check", file, "--json").stdout)
    assert [p["path"] for p in told["problems"]] == ["usage.prices"]
    assert told["ok"] is False


def test_sound_prices_are_fine(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text("usage: {prices: prices.yaml}")
    (tmp_path / "prices.yaml").write_text("- {model: m, per_million: {input_tokens: 2.50}}")

    assert invoke("config", "check", file, "--secrets").exit_code == 0


def test_missing_file_exits_with_1(tmp_path):
    result = invoke("config", "check", tmp_path / "none.yaml")

    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


def test_schema_is_json():
    assert json.loads(invoke("config", "schema").stdout)["title"] == "Patchbay configuration"


def test_every_key_of_a_plugin_does_something(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text("plugins: [{id: p, address: 'p:1', public: true}]")

    result = invoke("config", "check", file)

    assert result.exit_code == 0
    assert "warning" not in result.stderr
    told = json.loads(invoke("config", "check", file, "--json").stdout)
    assert (told["ok"], told["warnings"]) == (True, [])
