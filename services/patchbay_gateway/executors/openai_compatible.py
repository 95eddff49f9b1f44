"""
The executor for every provider that speaks OpenAI: chat, completions, responses, embeddings.

Bytes pass unchanged both ways. What it adds: the credential, the provider's allow-list of headers, the
attempt header where configured, and an account of what was consumed. Not here: the HTTP client
(upstream.py), what a stream says (openai_stream.py), what usage means (openai_usage.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

import orjson

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorResponse,
    StreamHead,
    StreamTail,
)
from patchbay_gateway.executors import openai_usage
from patchbay_gateway.executors.estimate import OutputCounter, estimate
from patchbay_gateway.executors.openai_choices import several_asked
from patchbay_gateway.executors.openai_errors import explain, may_report, reported_failure
from patchbay_gateway.executors.openai_stream import OpenAIStream
from patchbay_gateway.executors.provider_call import (
    bearer,
    content_type,
    is_whole,
    model_call,
    next_bytes,
    no_stream,
    plain_request,
    whole_answer,
)
from patchbay_gateway.executors.upstream import failure, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from patchbay.executor import (
        ExecutorHTTPRequest,
        ExecutorHTTPResponse,
        ExecutorRequest,
        StreamItem,
    )
    from patchbay_gateway.executors.upstream import Call, Reply, Upstream

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"

# The allow-list: what a client may say to an OpenAI-like provider beside the body.
_FORWARDED_NAMES = frozenset({"idempotency-key"})
_FORWARDED_PREFIXES = ("openai-",)

_PATHS = {
    ("openai", "chat"): "/chat/completions",
    ("openai", "completions"): "/completions",
    ("openai", "embeddings"): "/embeddings",
    ("openai-response", "chat"): "/responses",
}

# Fields of a whole body that hold what the model produced; embeddings produce no tokens.
_WHOLE_FIELDS = {
    "chat": (*openai_usage.CHAT_FIELDS, *openai_usage.COMPLETION_FIELDS),
    "completions": openai_usage.COMPLETION_FIELDS,
}


class OpenAICompatibleExecutor(Executor):
    """
    Calls OpenAI and its likes.

    Args:
        upstream: How to reach providers.
        now: Unix seconds.
    """

    id: ClassVar = "openai-compatible"
    name: ClassVar = "OpenAI compatible"
    version: ClassVar = "0.1.0"
    author: ClassVar = "Patchbay"
    input_formats: ClassVar[Sequence[str]] = ("openai", "openai-response")
    output_formats: ClassVar[Sequence[str]] = input_formats
    operations: ClassVar[Mapping[str, Sequence[str]]] = {
        "openai": ("chat", "completions", "embeddings"),
        "openai-response": ("chat",),
    }

    def __init__(self, upstream: Upstream, *, now: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._now = now

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Run one non-streamed call."""
        call = self._call(request)
        reply, body = await whole_answer(self._upstream, call, self._now, explain)
        if may_report(body):
            _refuse_error_body(body)
        usage = openai_usage.usage_of_body(body) if openai_usage.has_usage(body) else None
        if usage is None:
            counter = OutputCounter(_WHOLE_FIELDS.get(request.operation, ()))
            counter.add(body)
            usage = estimate(len(request.payload), counter.total, request.token_factor)
        return ExecutorResponse(
            body,
            status=reply.status,
            headers=reply.headers,
            content_type=content_type(reply),
            usage=usage,
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Run one streamed call."""
        call = self._call(request)
        reply = await self._upstream.send(call)
        stream = OpenAIStream(
            responses=request.format == "openai-response",
            completions=request.operation == "completions",
            payload=len(call.body),
            factor=request.token_factor,
            several=several_asked(call.body),
        )
        try:
            if reply.status >= 300:
                raise await failure(reply, self._now, explain)
            kind = content_type(reply)
            if is_whole(kind):
                raise await _not_a_stream(reply, kind)
            yield StreamHead(reply.status, reply.headers, kind)
            while data := await next_bytes(reply, stream):
                batch = stream.take(data)
                if batch is not None:
                    yield batch
            last = stream.end()
            if last is not None:
                yield last
            yield StreamTail(stream.usage)
        finally:
            reply.close()

    async def http_request(self, request: ExecutorHTTPRequest) -> ExecutorHTTPResponse:
        """Run one plain request with the credential; any status is an answer, redirects too."""
        return await plain_request(self._upstream, request, bearer)

    def _call(self, request: ExecutorRequest) -> Call:
        message = request.message
        path = _PATHS.get((message.format, message.operation))
        if path is None:
            raise errors.InvalidRequest(
                f"openai-compatible does not serve {message.operation} in format {message.format}",
                reason="OPERATION_NOT_SUPPORTED",
            )
        url = (message.provider.base_url or DEFAULT_BASE_URL).rstrip("/") + path
        return model_call(
            request, url, bearer, names=_FORWARDED_NAMES, prefixes=_FORWARDED_PREFIXES, more=[]
        )


def _refuse_error_body(body: bytes) -> None:
    """Raise the failure that *body*, a 200's, reports: an `error` and nothing of an answer."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if (
        isinstance(document, dict)
        and document.get("error")
        and not any(document.get(key) for key in ("choices", "output", "data", "status"))
    ):
        raise reported_failure(document, body)


async def _not_a_stream(reply: Reply, kind: str) -> errors.UpstreamError:
    """Return the error of a whole body where a stream was asked for."""
    body = await read_all(reply)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict) and document.get("error"):
        return reported_failure(document, body)
    return no_stream(body, kind)
