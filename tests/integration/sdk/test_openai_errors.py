"""The gateway's own failures in the `openai` SDK; those of any provider are in test_same_openai.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.harness.topology import Services, Up

HELLO: Any = [{"role": "user", "content": "hello"}]


async def ask(sdk: openai.AsyncOpenAI, *, stream: bool = False, **fake: Any) -> Any:
    """Ask for a chat answer that the upstream fails as told; streams are read to their end."""
    answer: Any = await sdk.chat.completions.create(
        model="fake-model", messages=HELLO, stream=stream, extra_body={"fake": fake}
    )
    return [chunk async for chunk in answer] if stream else answer


async def test_upstream_refusing_our_credential_is_not_the_clients_fault(
    sdk: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(sdk, status=401, error="bad key test-upstream-key-1")
    assert caught.value.status_code == 502
    assert "test-upstream-key" not in str(caught.value)


async def test_unknown_model_is_not_found(sdk: openai.AsyncOpenAI) -> None:
    for call in (
        sdk.chat.completions.create(model="nope", messages=HELLO),
        sdk.responses.create(model="nope", input="hello"),
        sdk.embeddings.create(model="nope", input="hello"),
        sdk.models.retrieve("nope"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await call
        assert caught.value.code == "model_not_found"


async def test_bad_key_is_an_authentication_error(sdk: openai.AsyncOpenAI) -> None:
    stranger = sdk.with_options(api_key="test-unknown-key")
    with pytest.raises(openai.AuthenticationError):
        await stranger.chat.completions.create(model="fake-model", messages=HELLO)
    with pytest.raises(openai.AuthenticationError):
        await stranger.models.list()


async def test_model_in_another_dialect_is_a_bad_request(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.embeddings.create(model="", input="hello")
    assert caught.value.status_code == 400


async def test_cut_responses_stream_ends_with_its_error_event(sdk: openai.AsyncOpenAI) -> None:
    """In this dialect the SDK hands out the terminal event instead of raising."""
    stream: Any = await sdk.responses.create(
        model="fake-model", input="hello", stream=True, extra_body={"fake": {"close_after": 4}}
    )
    events = [event async for event in stream]
    assert [e.type for e in events[-2:]] == ["response.output_text.delta", "error"]
    assert events[-1].message
    assert [e.sequence_number for e in events] == list(range(len(events)))


async def test_cut_answer_without_stream_is_an_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError):
        await ask(sdk, close_after=4)


async def test_nobody_listening_is_a_connection_error(gateway: Up | Services) -> None:
    """A reference: what a client sees where no gateway is."""
    async with openai.AsyncOpenAI(
        base_url="http://127.0.0.1:1/v1", api_key=gateway.client_key, max_retries=0
    ) as nowhere:
        with pytest.raises(openai.APIConnectionError):
            await nowhere.models.list()
