"""What a fresh installation answers: its own test, and an SDK from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest
from tests.e2e.gateway import off

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster


async def test_helm_test_does_a_chat_completion(cluster: Cluster) -> None:
    assert "hello" in await off(cluster.helm, "test", "patchbay", "--logs")


async def test_sdk_from_outside_gets_answers_and_streams(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{cluster.url}/v1", api_key=cluster.key, max_retries=0, timeout=60
    ) as client:
        assert "echo" in [model.id async for model in client.models.list()]
        said = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hello from outside"}]
        )
        assert said.choices[0].message.content == "hello from outside"
        chunks = await client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "one two three"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        words, usage = [], None
        async for chunk in chunks:
            words += [c.delta.content or "" for c in chunk.choices]
            usage = chunk.usage or usage
    assert "".join(words) == "one two three"
    assert usage is not None
    assert usage.completion_tokens == 3


async def test_wrong_key_is_an_error_of_the_sdk(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{cluster.url}/v1", api_key="test-key", max_retries=0, timeout=60
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
