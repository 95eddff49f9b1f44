"""`patchbay up` with nothing but the variables that SDKs know: the providers appear by themselves."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from tests.harness.observing import until
from tests.harness.topology import Up
from tests.integration.sdk.conftest import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.upstream import Upstream

WORDS = "".join(f"word{i} " for i in range(16))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Place]:
    """A gateway without a line of configuration."""
    host = upstream.url.removesuffix("/v1")
    env = {
        "OPENAI_API_KEY": "test-openai-key",
        "OPENAI_BASE_URL": upstream.url,
        "ANTHROPIC_API_KEY": "test-anthropic-key",
        "ANTHROPIC_BASE_URL": host,
        "GEMINI_API_KEY": "test-gemini-key",
        "GOOGLE_GEMINI_BASE_URL": host,
    }
    gateway = Up(tmp_path_factory.mktemp("bare"), {}, env)
    gateway.start()
    yield Place("bare", gateway.base_url, "anything")
    gateway.stop()


def test_each_sdk_reaches_its_provider(bare: Place, upstream: Upstream) -> None:
    mark = uuid.uuid4().hex

    def arrived(model: str) -> dict[str, str]:
        """Return the headers of this test's request for *model*."""
        (headers,) = (
            r["headers"] for r in upstream.records() if r["model"] == model and mark in r["body"]
        )
        found: dict[str, str] = headers
        return found

    wanted = {"fake-model", "claude-fake", "gemini-fake", "echo"}
    with bare.openai() as openai:
        # They are asked for their models while the gateway serves already.
        until(lambda: wanted <= {m.id for m in openai.models.list()}, 60, "not all are listed")
        answer = openai.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": mark}]
        )
        assert answer.choices[0].message.content == WORDS
    assert arrived("fake-model")["authorization"] == "Bearer test-openai-key"
    with (
        bare.anthropic() as anthropic,
        anthropic.messages.stream(
            model="claude-fake", max_tokens=9, messages=[{"role": "user", "content": mark}]
        ) as stream,
    ):
        assert "".join(stream.text_stream) == WORDS
    assert arrived("claude-fake")["x-api-key"] == "test-anthropic-key"
    with bare.google() as google:
        assert google.models.generate_content(model="gemini-fake", contents=mark).text == WORDS
    assert arrived("gemini-fake")["x-goog-api-key"] == "test-gemini-key"
