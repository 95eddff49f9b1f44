"""`patchbay up` with nothing but the variables that SDKs know: the providers appear by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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
    with bare.openai() as openai:
        answer = openai.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "hello"}]
        )
        assert answer.choices[0].message.content == WORDS
        assert {"claude-fake", "gemini-fake", "echo"} <= {m.id for m in openai.models.list()}
    assert upstream.records()[-1]["headers"]["authorization"] == "Bearer test-openai-key"
    with (
        bare.anthropic() as anthropic,
        anthropic.messages.stream(
            model="claude-fake", max_tokens=9, messages=[{"role": "user", "content": "hello"}]
        ) as stream,
    ):
        assert "".join(stream.text_stream) == WORDS
    assert upstream.records()[-1]["headers"]["x-api-key"] == "test-anthropic-key"
    with bare.google() as google:
        assert google.models.generate_content(model="gemini-fake", contents="hi").text == WORDS
    assert upstream.records()[-1]["headers"]["x-goog-api-key"] == "test-gemini-key"
