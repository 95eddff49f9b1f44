"""Models of a base URL in the environment."""

from __future__ import annotations

import http.server
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.threaded import serving

from patchbay_gateway.commands.discovery import discover_models
from patchbay_gateway.kernel import config

if TYPE_CHECKING:
    from collections.abc import Iterator


class Upstream:
    """A server that lists models."""

    def __init__(self) -> None:
        self.body: bytes = json.dumps({"data": [{"id": "local-a"}, {"id": "local-b"}]}).encode()
        self.seen: list[tuple[str, str | None]] = []
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                upstream.seen.append((self.path, self.headers["authorization"]))
                self.send_response(200)
                self.send_header("content-length", str(len(upstream.body)))
                self.end_headers()
                self.wfile.write(upstream.body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.env = {
            "OPENAI_API_KEY": "test-key",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.server.server_port}/v1/",
        }


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    with serving(found.server):
        yield found


def test_models_of_a_base_url_are_asked_for_and_served(upstream):
    warnings: list[str] = []

    models = discover_models(upstream.env, warnings.append)

    assert (models, warnings) == ({"openai": ("local-a", "local-b")}, [])
    assert upstream.seen == [("/v1/models", "Bearer test-key")]
    settings = config.ProcessSettings.load("up", {}, {"environment_models": models})
    provider = config.load_for(settings, upstream.env).providers[-1]
    assert [m.public for m in provider.models] == ["local-a", "local-b"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{}]}', b'{"data": null}'])
def test_answer_that_is_no_list_warns_and_leaves_the_usual_names(upstream, body):
    upstream.body = body
    warnings: list[str] = []

    assert discover_models(upstream.env, warnings.append) == {}
    assert "patchbay.yaml" in warnings[0]


def test_nobody_there_warns(free_port):
    env = {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": f"http://127.0.0.1:{free_port}"}
    warnings: list[str] = []

    assert discover_models(env, warnings.append) == {}
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OPENAI_API_KEY": "test-key"},
        {"OPENAI_BASE_URL": "http://127.0.0.1:9"},
        {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": "file:///etc"},
    ],
)
def test_without_key_and_own_base_url_nobody_is_asked(env):
    warnings: list[str] = []

    assert discover_models(env, warnings.append) == {}
    assert warnings == []


def test_models_of_every_provider_are_asked_for_in_its_own_way(upstream):
    root = upstream.env["OPENAI_BASE_URL"].removesuffix("/v1/")
    upstream.body = json.dumps(
        {
            "data": [{"id": "local-a"}],
            "models": [
                {"name": "models/g", "supportedGenerationMethods": ["generateContent"]},
                {"name": "models/embed", "supportedGenerationMethods": ["embedContent"]},
                {"name": "models/h"},
            ],
        }
    ).encode()
    env = upstream.env | {
        "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": root,
        "GEMINI_API_KEY": "test-key",
        "GOOGLE_GEMINI_BASE_URL": root,
    }
    warnings: list[str] = []

    models = discover_models(env, warnings.append)

    assert models == {"openai": ("local-a",), "anthropic": ("local-a",), "gemini": ("g", "h")}
    assert warnings == []
    assert sorted(path for path, _ in upstream.seen) == [
        "/v1/models",
        "/v1/models?limit=1000",
        "/v1beta/models?pageSize=1000",
    ]
    settings = config.ProcessSettings.load("up", {}, {"environment_models": models})
    providers = {p.name: p for p in config.load_for(settings, env).providers}
    assert [m.public for m in providers["gemini"].models] == ["g", "h"]
    assert providers["anthropic"].plugin == "claude"
