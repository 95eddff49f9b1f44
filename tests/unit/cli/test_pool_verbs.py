"""`patchbay credentials` and `patchbay models` as people read them; the management API is the test's own."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.threaded import serving
from typer.testing import CliRunner

from patchbay import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")
UNTIL = "2100-01-02T03:04:05Z"


def line(model: str, state: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "upstream_model": f"{model}-up",
        "state": state,
        "reason": reason,
        "until": None,
        "last_error": None,
        **more,
    }


ERROR = {"http_status": 429, "code": "slow_down", "message": "too many", "at": None}
CREDENTIAL: dict[str, Any] = {
    "id": "one",
    "auth_index": "x",
    "provider": "acme",
    "plugin": "openai-compatible",
    "kind": "api_key",
    "version": 1,
    "priority": 0,
    "weight": 1,
    "disabled": False,
    "disabled_by": None,
    "in_flight": 2,
    "max_in_flight": 3,
    "succeeded": 12,
    "failed": 1,
    "models": [
        line("small", "ready"),
        line("large", "cooling", "QUOTA", until=UNTIL, last_error=ERROR),
        line("bare", "no_material", "NO_MATERIAL"),
    ],
    "refresh": None,
    "rate_limits": [{"unit": "tokens", "limit": 1000, "remaining": 0, "reset_seconds": 30.0}],
    "last_error": ERROR,
    "degraded": False,
}
OBSTACLES = [
    {"provider": "acme", "credential": f"c{n}", "reason": "cooling", "until": UNTIL}
    for n in range(5)
]
MODELS = [
    {
        "id": name,
        "route": False,
        "targets": [{"provider": "acme", "model": f"{name}-up", "plugin": "openai-compatible"}],
        "available": not obstacles,
        "providers": [] if obstacles else ["acme"],
        "obstacles": obstacles,
    }
    for name, obstacles in (("large", OBSTACLES), ("small", []))
]
ANSWERS = {
    "GET /v0/management/credentials": [CREDENTIAL],
    "GET /v0/management/credentials?provider=nope": [],
    "GET /v0/management/credentials/one": CREDENTIAL,
    "POST /v0/management/credentials/one/reset?model=large": CREDENTIAL,
    "GET /v0/management/models": MODELS,
    "GET /v0/management/auth-files": [],
}


@pytest.fixture
def run() -> Iterator[Callable[..., str]]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(ANSWERS[f"{self.command} {self.path}"]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the base's name

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def invoke(*arguments: str) -> str:
        url = f"http://127.0.0.1:{server.server_port}"
        result = CliRunner().invoke(cli.build([GATEWAY]), [*arguments, "--url", url])
        assert result.exit_code == 0, result.output
        return result.stdout

    with serving(server):
        yield invoke


def test_credentials_list_says_why_not_and_until_when_in_words(run: Callable[..., str]) -> None:
    _, ready, cooling, bare = run("credentials", "list").splitlines()
    assert ready.split() == ["acme", "one", "small", "ready", "–", "2", "of", "3"]
    assert UNTIL in cooling
    assert "QUOTA: 429 slow_down: too many" in cooling
    assert "no key or token here; `patchbay doctor` names what is missing" in bare


def test_credentials_list_of_an_unknown_provider_names_it(run: Callable[..., str]) -> None:
    shown = run("credentials", "list", "--provider", "nope")
    assert shown == "No credentials of provider 'nope' are configured.\n"


def test_credentials_show_has_limits_and_the_last_error(run: Callable[..., str]) -> None:
    shown = run("credentials", "show", "one")
    assert "attempts: 12 succeeded, 1 failed" in shown
    assert "limit tokens: 0 of 1,000 left, whole in 30 s" in shown
    assert "last error: 429 slow_down: too many" in shown


def test_credentials_reset_of_a_model_shows_what_is_left(run: Callable[..., str]) -> None:
    assert "small" in run("credentials", "reset", "one", "--model", "large")


def test_models_say_who_serves_and_what_stands_in_the_way(run: Callable[..., str]) -> None:
    shown = run("models")
    large, *_, small = shown.splitlines()[1:]
    assert large.split()[:3] == ["large", "not", "available"]
    assert f"c0: cooling until {UNTIL}" in shown
    assert "and 2 more" in shown
    assert small.split() == ["small", "available", "acme:", "small-up"]


def test_models_of_one_name_shows_every_obstacle(run: Callable[..., str]) -> None:
    shown = run("models", "large")
    assert all(f"c{n}: cooling" in shown for n in range(5))
    assert "small" not in shown
    assert json.loads(run("models", "large", "--json")) == [MODELS[0]]
