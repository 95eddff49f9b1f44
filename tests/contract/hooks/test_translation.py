"""Translation with plugins around it and instead of it, behind both channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import orjson
import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.transform import (
    RequestNormalizer,
    RequestTransformRequest,
    RequestTranslator,
    ResponseAfterTranslator,
    ResponseBeforeTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)
from patchbay_gateway.edge.translation import Formats, Translation
from patchbay_gateway.plugins.hooks import Facts
from patchbay_gateway.translate.native import native_registry
from patchbay_gateway.translate.port import Context

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
CHAT = orjson.dumps({"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}]})
CONTEXT = Context("gpt-5.5", CHAT, CHAT)


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Normalizer(Named, RequestNormalizer):
    id: ClassVar = "normalizer"

    async def normalize_request(self, request: RequestTransformRequest) -> bytes:
        document = orjson.loads(request.body)
        document["seen"] = [request.from_format, request.to_format]
        return orjson.dumps(document)


class Wrapper(Named, RequestTranslator):
    id: ClassVar = "wrapper"

    async def translate_request(self, request: RequestTransformRequest) -> bytes:
        return b'{"wrapped":' + request.body + b"}"


class Refuser(Named, RequestTranslator, ResponseTranslator):
    id: ClassVar = "refuser"

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        raise errors.FailedPrecondition("not mine", reason="NOT_MINE")

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        return None


class Before(Named, ResponseBeforeTranslator):
    id: ClassVar = "before"

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes:
        return request.body.replace(b"secret", b"public")


class Instead(Named, ResponseTranslator):
    id: ClassVar = "instead"

    async def translate_response(self, request: ResponseTransformRequest) -> bytes:
        return b"<" + request.body + b">"


class After(Named, ResponseAfterTranslator):
    id: ClassVar = "after"

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes:
        assert request.original_request in {CHAT, b""}
        return request.body + b"."


def translation(hosted: Hosted) -> Translation:
    return Translation(native_registry(), hosted.hooks, hosted.calls)


async def request(hosted: Hosted, client: str, executor: str, body: bytes = CHAT) -> Any:
    execution = hosted.execution(facts=Facts(client, "gpt-5.5"))
    found = await translation(hosted).request(
        execution, Formats(client, executor), model="up", body=body
    )
    return orjson.loads(found)


async def test_native_translation_comes_before_normalizers_and_translators_are_not_asked(
    channel: str,
) -> None:
    async with hosting([Normalizer(), Wrapper()], channel) as hosted:
        found = await request(hosted, "openai", "claude")
        assert found["model"] == "up"
        assert found["max_tokens"]
        assert found["seen"] == ["openai", "claude"]


async def test_without_native_translation_normalizers_see_the_source_and_a_plugin_translates(
    channel: str,
) -> None:
    async with hosting([Refuser(), Normalizer(), Wrapper()], channel) as hosted:
        found = await request(hosted, "openai", "own")
        assert found["wrapped"]["model"] == "up"
        assert found["wrapped"]["seen"] == ["openai", "own"]


async def test_nobody_translates_then_the_body_stays_but_for_the_model(channel: str) -> None:
    async with hosting([Refuser()], channel) as hosted:
        found = await request(hosted, "openai", "own")
        assert found == {**orjson.loads(CHAT), "model": "up"}


async def test_same_format_without_plugins_is_nothing_to_do(channel: str) -> None:
    async with hosting([Before()], channel, before={"match": {"formats": ("claude",)}}) as hosted:
        same = Formats("openai", "openai")
        assert translation(hosted).idle(hosted.execution(), same)
        claude = hosted.execution(facts=Facts("claude", "m"))
        assert not translation(hosted).idle(claude, Formats("claude", "claude"))


async def test_whole_answers_pass_before_plugin_and_after(channel: str) -> None:
    async with hosting([Before(), Refuser(), Instead(), After()], channel) as hosted:
        found = await translation(hosted).whole(
            hosted.execution(), Formats("openai", "own"), CONTEXT, b"secret"
        )
        assert found == b"<public>."


async def test_whole_answers_are_translated_natively_between_the_normalizers(channel: str) -> None:
    async with hosting([Before(), Instead(), After()], channel) as hosted:
        body = orjson.dumps({"type": "message", "content": [{"type": "text", "text": "secret"}]})
        found = await translation(hosted).whole(
            hosted.execution(), Formats("openai", "claude"), CONTEXT, body
        )
        assert found.endswith(b".")
        message = orjson.loads(found[:-1])["choices"][0]["message"]
        assert message["content"] == "public"


async def test_chunks_pass_before_plugin_and_after_one_for_one(channel: str) -> None:
    async with hosting([Before(), Instead(), After()], channel) as hosted:
        stream = translation(hosted).stream(
            hosted.execution(stream=True), Formats("openai", "own"), CONTEXT
        )
        assert await stream.feed([b"secret"]) == [b"<public>."]
        assert await stream.feed([b"two"]) == [b"<two>."]
        assert await stream.end() == []
        await stream.aclose()


async def test_native_stream_may_suppress_and_multiply_chunks(channel: str) -> None:
    async with hosting([After()], channel) as hosted:
        stream = translation(hosted).stream(
            hosted.execution(stream=True), Formats("openai", "claude"), CONTEXT
        )
        assert await stream.feed([b'event: ping\ndata: {"type":"ping"}\n\n']) == []
        start = b'data: {"type":"message_start","message":{"id":"m"}}\n\n'
        (first,) = await stream.feed([start])
        assert first.endswith(b"\n\n.")
        ends = await stream.feed([b'data: {"type":"message_stop"}\n\n'])
        assert len(ends) == 2
        await stream.aclose()


async def test_chunk_that_no_plugin_translates_stays_as_it_is(channel: str) -> None:
    async with hosting([Refuser()], channel) as hosted:
        stream = translation(hosted).stream(
            hosted.execution(stream=True), Formats("openai", "own"), CONTEXT
        )
        assert await stream.feed([b"raw"]) == [b"raw"]
        await stream.aclose()


async def test_answer_in_another_format_than_the_request_is_translated_from_that(
    channel: str,
) -> None:
    """The executor takes openai and answers in a format of its own, or in claude."""
    async with hosting([Instead()], channel) as hosted:
        execution = hosted.execution()
        own = Formats("openai", "openai", "own")
        assert await translation(hosted).whole(execution, own, CONTEXT, b"x") == b"<x>"
        assert not translation(hosted).idle(execution, own)
        claude = Formats("openai", "openai", "claude")
        body = orjson.dumps({"type": "message", "content": [{"type": "text", "text": "hi"}]})
        found = orjson.loads(await translation(hosted).whole(execution, claude, CONTEXT, body))
        assert found["choices"][0]["message"]["content"] == "hi"
