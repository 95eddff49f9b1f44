"""`patchbay usage report` against a management API."""

from __future__ import annotations

import http.server
import json
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.harness.threaded import serving
from typer.testing import CliRunner

from patchbay import cli
from patchbay_gateway.commands.client import connect
from patchbay_gateway.commands.reports import format_money
from patchbay_gateway.kernel.management_token import ensure_token

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")
ROW = {
    "model": "gpt-5.5", "requests": 1200, "attempts": 1300, "failed": 1, "lost": 2, "estimated": 3,
    "input_tokens": 1000000, "output_tokens": 2000, "cache_read_tokens": 4,
    "cache_creation_tokens": 5, "reasoning_tokens": 6, "cost_nano": 1_500_000_000,
}  # fmt: skip


class Gateway:
    """A management API of the test's own."""

    def __init__(self) -> None:
        self.status, self.body = 200, json.dumps([ROW]).encode()
        self.location = ""
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gateway.paths.append(self.path)
                gateway.keys.append(self.headers["authorization"])
                self.send_response(gateway.status)
                if gateway.location:
                    self.send_header("location", gateway.location)
                self.send_header("content-length", str(len(gateway.body)))
                self.end_headers()
                self.wfile.write(gateway.body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.paths[-1]).query)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    found = Gateway()
    with serving(found.server):
        yield found


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, tmp_path):
    for name in ("PATCHBAY_MANAGEMENT_KEY", "PATCHBAY_MANAGEMENT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATCHBAY_DATA_DIR", str(tmp_path / "none"))


def report(gateway: Gateway, *arguments: str) -> Any:
    return CliRunner().invoke(
        cli.build([GATEWAY]), ["usage", "report", "--url", gateway.url, *arguments]
    )


def test_report_prints_the_rows_as_json(gateway):
    result = report(gateway, "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == [ROW]
    assert urlsplit(gateway.paths[0]).path == "/v0/management/usage"
    assert gateway.query == {"by": ["model"], "since": ["24h"]}


def test_report_asks_for_the_grouping_and_the_time(gateway):
    gateway.body = b"[]"

    report(gateway, "--by", "client-key", "--since", "7d")
    assert gateway.query == {"by": ["client-key"], "since": ["7d"]}
    result = report(gateway, "--since", "all")
    assert gateway.query == {"by": ["model"]}
    assert result.stdout == "No usage yet.\n"


def test_report_prints_a_table_with_a_sum(gateway):
    gateway.body = json.dumps([ROW, {**ROW, "model": ""}]).encode()

    lines = report(gateway).stdout.splitlines()

    assert lines[0].split()[:3] == ["model", "requests", "attempts"]
    assert "gpt-5.5" in lines[1]
    assert "1,000,000" in lines[1]
    assert lines[-1].split()[:2] == ["all", "2,400"]
    assert lines[-1].split()[-1] == "3.00"


def test_report_sends_the_key_of_the_environment(gateway, monkeypatch):
    monkeypatch.setenv("PATCHBAY_MANAGEMENT_KEY", "test-key")

    report(gateway)

    assert gateway.keys == ["Bearer test-key"]


def test_report_sends_the_token_of_the_data_directory(gateway, tmp_path):
    token = ensure_token(tmp_path)

    report(gateway, "--data-dir", str(tmp_path))
    report(gateway)

    assert gateway.keys == [f"Bearer {token}", None]


def test_token_is_told_to_no_other_host(tmp_path):
    ensure_token(tmp_path)

    assert connect("http://gateway.example:8081", {}, tmp_path).key == ""
    assert connect("http://localhost:8081", {}, tmp_path).key != ""


def test_redirect_is_not_followed_with_the_key(gateway, monkeypatch):
    monkeypatch.setenv("PATCHBAY_MANAGEMENT_KEY", "test-key")
    gateway.status, gateway.location = 302, f"{gateway.url}/elsewhere"

    result = report(gateway)

    assert result.exit_code == 1
    assert len(gateway.paths) == 1


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"{}", "wants a management key: set PATCHBAY_MANAGEMENT_KEY"),
        (503, b'{"error": {"message": "usage is away"}}', "usage is away"),
        (404, b"", "status 404"),
        (200, b"<html>", "not like a Patchbay management API"),
    ],
)
def test_refusal_is_a_sentence(gateway, status, body, message):
    gateway.status, gateway.body = status, body

    result = report(gateway)

    assert result.exit_code == 1
    assert message in result.stderr


def test_nobody_there_says_how_to_start(free_port):
    result = CliRunner().invoke(
        cli.build([GATEWAY]), ["usage", "report", "--url", f"http://127.0.0.1:{free_port}"]
    )

    assert result.exit_code == 1
    assert "start Patchbay with `patchbay up`" in result.stderr


def test_url_of_another_kind_is_refused():
    result = CliRunner().invoke(
        cli.build([GATEWAY]), ["usage", "report", "--url", "file:///etc/passwd"]
    )

    assert result.exit_code == 1
    assert "is no http URL" in result.stderr


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (1_500_000_000, "1.50"),
        (-2_000_000_000, "-2.00"),
        (1_234_567_000_000_001, "1,234,567.000000001"),
    ],
)
def test_money_is_exact(nano, text):
    assert format_money(nano) == text
