"""Tests of the example: both directions, a stream with its state, foreign pairs, the contract."""

import asyncio
import json
from typing import Any

from shout_format import ShoutFormat

from patchbay.testing.harness import conformance_of
from patchbay.transform import RequestTransformRequest, ResponseTransformRequest

PLUGIN = ShoutFormat()


def test_request_becomes_a_chat() -> None:
    request = RequestTransformRequest("shout", "openai", "m", b'{"shout":"HELLO"}')
    body = asyncio.run(PLUGIN.translate_request(request))
    assert body is not None
    assert json.loads(body)["messages"] == [{"role": "user", "content": "hello"}]


def test_whole_answer_is_heard() -> None:
    body = b'{"choices":[{"message":{"content":"hi"}}]}'
    request = ResponseTransformRequest("openai", "shout", "m", body)
    assert asyncio.run(PLUGIN.translate_response(request)) == b'{"heard": "HI"}'


def test_chunks_are_numbered_within_one_stream() -> None:
    async def scenario() -> list[Any]:
        state: dict[str, Any] = {}
        lines = []
        for word in ("a", "b"):
            chunk = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % word.encode()
            request = ResponseTransformRequest(
                "openai", "shout", "m", chunk, stream=True, state=state
            )
            lines.append(json.loads(await PLUGIN.translate_response(request) or b""))
        return lines

    assert asyncio.run(scenario()) == [
        {"heard": "A", "number": 1},
        {"heard": "B", "number": 2},
    ]


def test_foreign_pairs_are_left_to_others() -> None:
    request = RequestTransformRequest("openai", "claude", "m", b"{}")
    assert asyncio.run(PLUGIN.translate_request(request)) is None


def test_normalizers_take_and_add() -> None:
    before = ResponseTransformRequest("openai", "shout", "m", b'{"debug":1,"n":2}')
    assert asyncio.run(PLUGIN.normalize_response_before(before)) == b'{"n": 2}'
    after = ResponseTransformRequest("openai", "shout", "m", b'{"heard":"HI"}')
    assert asyncio.run(PLUGIN.normalize_response_after(after)) == b'{"heard": "HI", "by": "m"}'


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(ShoutFormat()))
    assert report.passed, report.table()
