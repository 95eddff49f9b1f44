"""
A plugin in every step of a request that breaks where and how it is told, as a process of its own.

Well, each step turns its own word of the text into capitals, so an answer of the echo provider tells which
steps were passed. A file (HOSTILE_ORDERS, JSON: step to damage) says which are not well; it is read with
each call. Damage that a well-written plugin cannot do (bytes that are no message, answers of 100 MiB,
methods that are not there, a false id) is done below the SDK, in the server.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import grpc

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptor,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
)
from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse, ModelRouteTargetKind
from patchbay.serve import serve
from patchbay.transform import (
    RequestNormalizer,
    RequestTransformRequest,
    RequestTranslator,
    ResponseAfterTranslator,
    ResponseBeforeTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem

SERVICE = "/patchbay.plugin.v1."
STEPS = {
    "FrontendAuthProviderService/Authenticate": "auth",
    "ModelRouterService/RouteModel": "route",
    "RequestInterceptorService/InterceptRequestBeforeAuth": "before",
    "RequestInterceptorService/InterceptRequestAfterAuth": "after",
    "RequestNormalizerService/NormalizeRequest": "normalize",
    "RequestTranslatorService/TranslateRequest": "translate",
    "ResponseBeforeTranslatorService/NormalizeResponse": "answerbefore",
    "ResponseBeforeTranslatorService/NormalizeResponseStream": "answerbefore",
    "ResponseTranslatorService/TranslateResponse": "answertranslate",
    "ResponseTranslatorService/TranslateResponseStream": "answertranslate",
    "ResponseAfterTranslatorService/NormalizeResponse": "answerafter",
    "ResponseAfterTranslatorService/NormalizeResponseStream": "answerafter",
    "ResponseInterceptorService/InterceptResponse": "answer",
    "StreamChunkInterceptorService/InterceptStreamChunk": "chunk",
    "ExecutorService/Execute": "execute",
    "ExecutorService/ExecuteStream": "execute",
    "RequestLifecycleService/HandleRequestComplete": "complete",
    "PluginService/Register": "register",
}


def damage(step: str) -> str:
    """Return how *step* is to break; empty for well."""
    path = Path(os.environ["HOSTILE_ORDERS"])
    orders: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return orders.get(step, "")


async def suffer(step: str) -> None:
    """Break as ordered, where a plugin's own code can."""
    how = damage(step)
    if how == "slow":
        await asyncio.sleep(0.1)  # well within every deadline
    elif how == "late":
        await asyncio.Event().wait()
    elif how == "fail":
        raise errors.FailedPrecondition("as ordered", reason="AS_ORDERED")
    elif how == "bug":
        raise RuntimeError("a bug in the plugin")
    elif how == "die":
        os._exit(1)


async def marked(step: str, body: bytes) -> bytes:
    """Return *body* with the step's word in capitals."""
    await suffer(step)
    word = f"-{step}-".encode()
    return body.replace(word, word.upper())


class Hostile(
    Executor,
    FrontendAuthProvider,
    ModelRouter,
    RequestInterceptor,
    RequestNormalizer,
    RequestTranslator,
    ResponseBeforeTranslator,
    ResponseTranslator,
    ResponseAfterTranslator,
    ResponseInterceptor,
    StreamChunkInterceptor[None],
    RequestLifecyclePlugin,
):
    """All of it."""

    id: ClassVar = os.environ.get("HOSTILE_ID", "hostile")
    name: ClassVar = "Hostile"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Know whoever says so."""
        await suffer("auth")
        for name, value in request.headers:
            if name == b"x-hostile-user":
                return FrontendAuthResponse(authenticated=True, principal=value.decode())
        return None

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Take a model of our own."""
        await suffer("route")
        if request.requested_model == "hostile-model":
            return ModelRouteResponse(handled=True, target_kind=ModelRouteTargetKind.SELF)
        return None

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        """Mark."""
        return RequestInterceptResponse(body=await marked("before", request.body))

    async def intercept_request_after_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        """Mark."""
        return RequestInterceptResponse(body=await marked("after", request.body))

    async def normalize_request(self, request: RequestTransformRequest) -> bytes:
        """Mark."""
        return await marked("normalize", request.body)

    async def translate_request(self, request: RequestTransformRequest) -> bytes:
        """Mark."""
        return await marked("translate", request.body)

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await marked("answerbefore", request.body)

    async def translate_response(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await marked("answertranslate", request.body)

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await marked("answerafter", request.body)

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse:
        """Mark."""
        return ResponseInterceptResponse(body=await marked("answer", request.body))

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        """Mark."""
        return StreamChunkInterceptResponse(body=await marked("chunk", request.body))

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        """Write the outcome down, where the test wants it."""
        await suffer("complete")
        if path := os.environ.get("HOSTILE_ENDS"):
            with open(path, "a", encoding="utf-8") as ends:  # noqa: ASYNC230, PTH123 - a line
                ends.write(f"{completion.outcome} {completion.status_code}\n")

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer as a provider would."""
        await suffer("execute")
        message = {"role": "assistant", "content": "well"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "h", "object": "chat.completion", "model": "h", "choices": [choice]}
        return ExecutorResponse(json.dumps(answer).encode(), content_type="application/json")

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer in one word."""
        await suffer("execute")
        yield StreamHead(200, [], "text/event-stream")
        delta: dict[str, Any] = {"index": 0, "delta": {"content": "well"}, "finish_reason": None}
        yield StreamBatch([b"data: " + json.dumps({"choices": [delta]}).encode() + b"\n\n"])
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield StreamBatch([b"data: " + json.dumps({"choices": [end]}).encode() + b"\n\n"])
        yield StreamBatch([b"data: [DONE]\n\n"])
        yield StreamTail(None)


class Exclusive(FrontendAuthProvider):
    """Knows one client, and wants to be the only one asked."""

    id: ClassVar = "exclusive"
    name: ClassVar = "Exclusive"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    exclusive: ClassVar = True

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Know whoever says so."""
        await suffer("auth")
        if (b"x-hostile-user", b"ann") in request.headers:
            return FrontendAuthResponse(authenticated=True, principal="ann")
        return None


class Below(grpc.aio.ServerInterceptor):
    """Damages calls below the SDK."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call, damaged as ordered."""
        step = STEPS.get(details.method.removeprefix(SERVICE), "")
        how = damage(step) if step else ""
        if how == "unserved":
            return None
        handler = await continuation(details)
        if how == "garbage":
            return handler._replace(response_serializer=lambda _: b"\xff" * 64)
        if how == "huge":
            return handler._replace(response_serializer=_huge)
        if how in {"other-id", "future", "nothing"}:
            return handler._replace(response_serializer=_liar(how))
        return handler


def _huge(_: Any) -> bytes:
    # Field 2 of every answer that matters is skipped or is bytes: 100 MiB of it.
    return b"\x12\x80\x80\x80\x32" + bytes(100 << 20)


def _liar(how: str) -> Any:
    def serialize(message: Any) -> bytes:
        if how == "other-id":
            message.plugin_id = "somebody-else"
        elif how == "future":
            message.schema_version = 99
        else:
            message.ClearField("capabilities")
        return bytes(message.SerializeToString())

    return serialize


def main() -> None:
    """Serve, with the interceptor beneath."""
    make = grpc.aio.server

    def server(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "interceptors": [Below()]})

    grpc.aio.server = server
    plugin = Exclusive() if os.environ.get("HOSTILE_ID") == "exclusive" else Hostile()
    serve(plugin, address=os.environ["SAMPLE_ADDRESS"], message_limit=200 << 20)


if __name__ == "__main__":
    main()
