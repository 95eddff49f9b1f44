"""Tests of the example: which requests it takes, and the call inside the call."""

import asyncio
import json

from web_search_router import WebSearchRouter

from patchbay.plugin.v1 import executor_pb2
from patchbay.router import ModelRouteRequest
from patchbay.testing.fake_host import FakeHost, Grants, model_answer, model_stream
from patchbay.testing.harness import conformance_of, serving

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
BODY = json.dumps({"model": "m", "messages": [], "tools": [SEARCH, {"name": "mine"}]}).encode()


def test_only_requests_with_the_tool_are_taken() -> None:
    async def routed(format_: str, body: bytes) -> bool:
        answer = await WebSearchRouter().route_model(ModelRouteRequest(format_, "m", body=body))
        return answer is not None

    assert asyncio.run(routed("claude", BODY))
    assert not asyncio.run(routed("openai", BODY))
    assert not asyncio.run(routed("claude", b'{"messages":[{"content":"web_search"}]}'))


def test_execution_asks_the_gateway_without_the_tool() -> None:
    async def scenario() -> None:
        async with FakeHost(grants=Grants(models=True)) as host:
            host.answers["ExecuteModel"] = model_answer(b'{"content":[]}')
            async with serving(WebSearchRouter(), host=host) as served:
                asked = executor_pb2.ExecutorRequest(model="m", format="claude", payload=BODY)
                answer = await served.call("Execute", asked)
        assert answer.payload == b'{"content":[]}'
        (inner,) = host.asked("ExecuteModel")
        assert json.loads(inner.body)["tools"] == [{"name": "mine"}]
        assert inner.entry_protocol == "claude"

    asyncio.run(scenario())


def test_stream_is_passed_on() -> None:
    async def scenario() -> None:
        async with FakeHost(grants=Grants(models=True)) as host:
            host.answers["ExecuteModelStream"] = model_stream([b"one", b"two"])
            async with serving(WebSearchRouter(), host=host) as served:
                asked = executor_pb2.ExecutorRequest(model="m", format="claude", payload=BODY)
                connection = await served.connection()
                call = connection.stream("ExecutorService", "ExecuteStream", asked)
                kinds, chunks = [], []
                while (message := await connection.read(call, "ExecuteStream")) is not None:
                    kinds.append(message.WhichOneof("message"))
                    chunks += message.batch.chunks
        assert kinds == ["head", "batch", "batch", "tail"]
        assert chunks == [b"one", b"two"]

    asyncio.run(scenario())


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(WebSearchRouter()))
    assert report.passed, report.table()
