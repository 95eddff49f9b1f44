"""
A plugin that takes part in every step of a request, as a process of its own.

What it does to a request is asked for in the request's own text, so that a test reads like a story.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, ClassVar

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
    StreamStart,
)
from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse, ModelRouteTargetKind
from patchbay.serve import serve
from patchbay.transform import RequestNormalizer, RequestTransformRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from patchbay.executor import StreamItem


class Sample(
    Executor,
    FrontendAuthProvider,
    ModelRouter,
    RequestInterceptor,
    RequestNormalizer,
    ResponseInterceptor,
    StreamChunkInterceptor[int],
    RequestLifecyclePlugin,
):
    """All of it."""

    id: ClassVar = "sample"
    name: ClassVar = "Sample"
    version: ClassVar = "1.2.3"
    author: ClassVar = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Know whoever says so."""
        for name, value in request.headers:
            if name == b"x-sample-user":
                return FrontendAuthResponse(
                    authenticated=True, principal=value.decode(), metadata={"tenant": "acme"}
                )
        return None

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Take a model of our own; send another to a provider under its real name."""
        if request.requested_model.startswith("sample-model"):
            return ModelRouteResponse(handled=True, target_kind=ModelRouteTargetKind.SELF)
        if request.requested_model == "sample-echo":
            return ModelRouteResponse(
                handled=True,
                target_kind=ModelRouteTargetKind.PROVIDER,
                target="echo",
                target_model="echo",
            )
        if request.requested_model == "sample-alias":
            return ModelRouteResponse(
                handled=True,
                target_kind=ModelRouteTargetKind.PROVIDER,
                target="fake",
                target_model="fake-model",
            )
        return None

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Do what the text asks for."""
        if b"please hang" in request.body:
            await asyncio.Event().wait()
        if b"please fail" in request.body:
            raise errors.FailedPrecondition("as asked", reason="AS_ASKED")
        if b"please die" in request.body:
            os._exit(1)
        if b"please refuse" in request.body:
            return RequestInterceptResponse(
                terminate=True,
                status_code=451,
                response_headers=[(b"x-sample", b"refused")],
                response_body=b'{"refused":true}',
            )
        if b"please garble" in request.body:
            return RequestInterceptResponse(
                body=b"no JSON: " + request.body, headers=[(b"x-garbled", b"1")]
            )
        if b"secret" in request.body:
            return RequestInterceptResponse(body=request.body.replace(b"secret", b"[redacted]"))
        return None

    async def intercept_request_after_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Say which attempt it is, or end it."""
        if b"please stop late" in request.body:
            return RequestInterceptResponse(
                terminate=True, status_code=452, response_body=b'{"stopped":true}'
            )
        if b"please late garble" in request.body:
            return RequestInterceptResponse(body=b"no JSON: " + request.body)
        if b"passes:" in request.body:
            passed = b"passes: " + request.to_format.encode()
            return RequestInterceptResponse(body=request.body.replace(b"passes:", passed))
        if b"attempt ?" in request.body:
            told = b"attempt %d" % request.attempt
            return RequestInterceptResponse(
                body=request.body.replace(b"attempt ?", told), clear_headers=["x-client-mark"]
            )
        return None

    async def normalize_request(self, request: RequestTransformRequest) -> bytes | None:
        """Add what the executor is to see."""
        if b"normalize me" not in request.body:
            return None
        document = json.loads(request.body)
        document["user"] = f"normalized for {request.to_format}"
        return json.dumps(document).encode()

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse | None:
        """Sign the answer."""
        return ResponseInterceptResponse(
            headers=[(b"x-sample", b"seen")], body=request.body.replace(b"cat", b"dog")
        )

    async def open_stream(self, start: StreamStart) -> int:
        """Say how many of the first chunks are to go."""
        if b"drop everything" in start.original_request:
            return 1000
        return 2 if b"drop the first" in start.original_request else 0

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: int
    ) -> StreamChunkInterceptResponse:
        """Sign the stream."""
        return StreamChunkInterceptResponse(headers=[(b"x-sample", b"streamed")])

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: int
    ) -> StreamChunkInterceptResponse | None:
        """Change and drop."""
        if request.chunk_index < state:
            return StreamChunkInterceptResponse(drop_chunk=True)
        if b"drop" in request.body:
            return StreamChunkInterceptResponse(drop_chunk=True)
        if b"cat" in request.body:
            return StreamChunkInterceptResponse(body=request.body.replace(b"cat", b"dog"))
        return None

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        """Write each end to a file that the test reads."""
        line = json.dumps(
            {
                "request": completion.request_id,
                "outcome": completion.outcome,
                "status": completion.status_code,
                "model": completion.requested_model,
                "error": completion.error,
            }
        )
        with open(os.environ["SAMPLE_LOG"], "a", encoding="utf-8") as log:  # noqa: ASYNC230, PTH123 - a line
            log.write(line + "\n")

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer as a provider would."""
        break_off(request)
        message = {"role": "assistant", "content": f"from the plugin{passes(request)}"}
        answer = {
            "id": "sample",
            "object": "chat.completion",
            "model": request.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }
        return ExecutorResponse(json.dumps(answer).encode(), content_type="application/json")

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer in two words."""
        yield StreamHead(200, [], "text/event-stream")
        break_off(request)
        for word in ("from ", "the plugin", passes(request)):
            chunk = {
                "id": "sample",
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            }
            yield StreamBatch([b"data: " + json.dumps(chunk).encode() + b"\n\n"])
        end = {"id": "sample", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        if b"please linger" in request.payload:
            await asyncio.Event().wait()
        yield StreamBatch([b"data: " + json.dumps(end).encode() + b"\n\n", b"data: [DONE]\n\n"])
        yield StreamTail(None)


def break_off(request: ExecutorRequest) -> None:
    """
    Fail as a provider would, where the text asks for it.

    Raises:
        UpstreamError: 529.
    """
    if b"please break" in request.payload:
        raise errors.UpstreamError(529, "overloaded, as asked", sent=errors.Sent.YES)


def passes(request: ExecutorRequest) -> str:
    """Return what interceptors of the attempt wrote into the request, each time that they saw it."""
    _, found, rest = request.payload.partition(b"passes:")
    return f", passes:{rest.partition(b'.')[0].decode()}" if found else ""


if __name__ == "__main__":
    serve(Sample(), address=os.environ["SAMPLE_ADDRESS"])
