"""
A plugin that calls the gateway back as the request's own text tells it to, and notes what it is asked.

Run under several ids (CALLER_ID). Its router takes models that begin with its id to its own executor. The
text of the last message is a JSON list of commands; the answer's text is the list of what they brought.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
    Usage,
)
from patchbay.host_types import HostModelExecutionRequest, HTTPRequest
from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
)
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse, ModelRouteTargetKind
from patchbay.serve import connect_host, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem
    from patchbay.host_client import HostClient

ID = os.environ["CALLER_ID"]


def note(**fields: Any) -> None:
    """Write one line for the test."""
    with open(os.environ["CALLER_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123 - a line
        log.write(json.dumps({"plugin": ID, **fields}) + "\n")


def chat(text: str, model: str, **fields: Any) -> bytes:
    """Return a body in the OpenAI dialect."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, **fields}).encode()


class Caller(Executor, ModelRouter, RequestInterceptor):
    """Calls back."""

    id: ClassVar = ID
    name: ClassVar = "Caller"
    version: ClassVar = "1.0.0"
    author: ClassVar = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    def __init__(self) -> None:
        self._leaks: set[asyncio.Task[None]] = set()

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Take our own models."""
        note(hook="route", model=request.requested_model)
        if request.requested_model.startswith(f"{ID}-"):
            return ModelRouteResponse(handled=True, target_kind=ModelRouteTargetKind.SELF)
        return None

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Note who passes; leave a stream open behind where the text says so."""
        note(
            hook="before",
            model=request.requested_model,
            trace=request.trace_id,
            request=request.request_id,
            source=request.metadata.get("source", ""),
            headers={n.decode(): v.decode() for n, v in request.headers},
        )
        if f"leak at {ID}".encode() in request.body:
            asked = HostModelExecutionRequest(
                "echo", chat("one two three", "echo"), headers=[(b"x-echo-delay-ms", b"60000")]
            )
            streams = b"leak a stream" in request.body
            if streams:
                asked = HostModelExecutionRequest(
                    "echo", chat("word " * 600, "echo"), headers=[(b"x-echo-delay-ms", b"100")]
                )
            begun = asyncio.Event()
            self._leaks.add(asyncio.ensure_future(self._leak(request.callbacks, asked, begun)))
            # Until the call is under way; its end is what the test is about. Of one that is silent nothing
            # tells, and one that comes too late ends the same way.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(begun.wait(), 30 if streams else 0.5)
        if f"end at {ID}".encode() in request.body:
            return RequestInterceptResponse(
                terminate=True, status_code=429, response_body=b'{"ended":true}'
            )
        return None

    async def _leak(
        self, host: HostClient, asked: HostModelExecutionRequest, begun: asyncio.Event
    ) -> None:
        chunks = 0
        try:
            async for _ in await host.execute_model_stream(asked):
                chunks += 1
                begun.set()
        except errors.PatchbayError as error:
            note(leaked=error.reason, began=chunks > 0)
        else:
            note(leaked="", began=chunks > 0)

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Do what is asked."""
        note(hook="execute", model=request.model)
        text = json.loads(request.payload)["messages"][-1]["content"]
        found = [await self._do(request, command) for command in json.loads(text)]
        message = {"role": "assistant", "content": json.dumps(found)}
        answer = {
            "id": "caller",
            "object": "chat.completion",
            "model": request.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000},
        }
        return ExecutorResponse(
            json.dumps(answer).encode(),
            content_type="application/json",
            usage=Usage((("input_tokens", 1000), ("output_tokens", 1000))),
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Pass a nested stream on."""
        text = json.loads(request.payload)["messages"][-1]["content"]
        command = json.loads(text)
        asked = self._asked(command)
        async with await request.callbacks.execute_model_stream(asked) as stream:
            yield StreamHead(200, [], "text/event-stream")
            async for chunk in stream:
                yield StreamBatch([chunk])
        yield StreamTail(None)

    async def _do(self, request: ExecutorRequest, command: dict[str, Any]) -> Any:
        try:
            if command.get("outside"):
                async with connect_host(ID) as host:
                    return await self._call(host, request, command)
            return await self._call(request.callbacks, request, command)
        except errors.PatchbayError as error:
            return {
                "error": type(error).__name__,
                "reason": error.reason,
                "message": error.message,
                "status": getattr(error, "http_status", 0),
                "body": getattr(error, "body", b"").decode(),
            }

    async def _call(self, host: HostClient, request: ExecutorRequest, command: Any) -> Any:
        op = command["op"]
        if op == "again":
            asked = HostModelExecutionRequest(request.model, request.payload)
            answer = await host.execute_model(asked)
            return json.loads(json.loads(answer.body)["choices"][0]["message"]["content"])[0]
        if op == "model":
            asked = self._asked(command)
            answer = await host.execute_model(asked, seconds=command.get("seconds", 60))
            return {
                "status": answer.status_code,
                "body": json.loads(answer.body),
                "type": answer.content_type,
                "headers": [n.decode() for n, _ in answer.headers],
            }
        if op == "many":
            # All at once, half of them streamed.
            return await asyncio.gather(
                *(self._one(host, command, n) for n in range(command["count"]))
            )
        if op == "stream":
            stream = await host.execute_model_stream(self._asked(command))
            async with stream:
                return {
                    "status": stream.status_code,
                    "type": stream.content_type,
                    "chunks": [chunk.decode() async for chunk in stream],
                }
        if op == "http":
            asked_http = HTTPRequest(
                command["url"],
                command.get("method", "GET"),
                [(b"x-told", b"yes")],
                command.get("body", "").encode(),
            )
            if not command.get("stream"):
                whole = await host.http_do(asked_http)
                return {"status": whole.status_code, "body": whole.body.decode()}
            pieces = await host.http_do_stream(asked_http)
            async with pieces:
                sizes = [len(piece) async for piece in pieces]
                return {"status": pieces.status_code, "sizes": sizes}
        if op == "log":
            await host.log("warn", command["text"], extra={"a": 1})
            return "logged"
        if op == "auths":
            return [[a.id, a.provider, a.status, a.auth_index] for a in await host.list_auths()]
        if op == "auth":
            return dict((await host.get_auth(command["index"])).document)
        if op == "runtime":
            return (await host.get_auth_runtime(command["index"])).status
        if op == "save":
            return await host.save_auth(command["name"], command["document"])
        raise AssertionError(op)

    async def _one(self, host: HostClient, command: Any, number: int) -> str:
        asked = self._asked({**command, "text": f"call {number}"})
        if number % 2:
            return (await host.execute_model(asked, seconds=90)).body.decode()
        stream = await host.execute_model_stream(asked)
        async with stream:
            return "".join([chunk.decode() async for chunk in stream])

    @staticmethod
    def _asked(command: dict[str, Any]) -> HostModelExecutionRequest:
        return HostModelExecutionRequest(
            command["model"],
            json.dumps(command["body"]).encode()
            if "body" in command
            else chat(command.get("text", "hello"), command["model"]),
            entry_protocol=command.get("entry", "openai"),
            exit_protocol=command.get("exit", ""),
            headers=[(n.encode(), v.encode()) for n, v in command.get("headers", {}).items()],
        )


if __name__ == "__main__":
    serve(Caller(), address=os.environ["SAMPLE_ADDRESS"])
