"""
The executor for Google's Gemini API: generateContent, streamGenerateContent, countTokens.

Bytes pass unchanged both ways, but for streams that a client wants as one JSON array: they are asked for as
events and delivered as its elements. What it adds: the model in the path, the credential (`x-goog-api-key`,
or a bearer token for OAuth), the provider's allow-list of headers, the attempt header where configured, and
an account of what was consumed. Not here: the HTTP client (upstream.py), what a stream says
(gemini_stream.py), what usage means (gemini_usage.py), what failures say (gemini_errors.py).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from patchbay import errors
from patchbay.executor import Executor, ExecutorResponse, StreamHead, StreamTail
from patchbay_gateway.executors import gemini_usage
from patchbay_gateway.executors.estimate import OutputCounter, estimate
from patchbay_gateway.executors.gemini_errors import error_document, explain, reported_failure
from patchbay_gateway.executors.gemini_stream import GeminiStream
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

    from patchbay.errors import Headers
    from patchbay.executor import (
        ExecutorHTTPRequest,
        ExecutorHTTPResponse,
        ExecutorRequest,
        StreamItem,
    )
    from patchbay.secrets import OpenedSecret
    from patchbay_gateway.executors.upstream import Call, Upstream

DEFAULT_BASE_URL: Final = "https://generativelanguage.googleapis.com/v1beta"
API_VERSION: Final = "/v1beta"
"""Added to base URLs without a version, which is what Google's SDKs are configured with."""

# The allow-list: what a client may say to Google beside the body; the key is ours alone.
_FORWARDED: Final = ("x-goog-",)
_ACTIONS: Final = {"chat": "generateContent", "count_tokens": "countTokens"}
_VERSIONED: Final = re.compile(r"/v\d+(?:alpha|beta)?\d*(?:/|$)")
# Names that say themselves which collection they are of.
_COLLECTIONS: Final = ("models/", "tunedModels/", "publishers/", "projects/")
_ARRAY_TYPE: Final = "application/json; charset=UTF-8"


class GeminiExecutor(Executor):
    """
    Calls Gemini.

    Args:
        upstream: How to reach providers.
        now: Unix seconds.
    """

    id: ClassVar = "gemini"
    name: ClassVar = "Google Gemini"
    version: ClassVar = "0.1.0"
    author: ClassVar = "Patchbay"
    input_formats: ClassVar[Sequence[str]] = ("gemini",)
    output_formats: ClassVar[Sequence[str]] = input_formats
    operations: ClassVar[Mapping[str, Sequence[str]]] = {"gemini": tuple(_ACTIONS)}

    def __init__(self, upstream: Upstream, *, now: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._now = now

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Run one non-streamed call."""
        answer = await self._whole(request)
        told = None
        if gemini_usage.has_usage(answer.payload):
            told = gemini_usage.usage_of_body(answer.payload)
        if told is not None:
            usage = gemini_usage.read_usage(told)
        else:
            counter = OutputCounter(gemini_usage.OUTPUT_FIELDS)
            counter.add(answer.payload)
            usage = estimate(len(request.payload), counter.total, request.token_factor)
        return ExecutorResponse(
            answer.payload,
            status=answer.status,
            headers=answer.headers,
            content_type=answer.content_type,
            usage=usage,
        )

    async def count_tokens(self, request: ExecutorRequest) -> ExecutorResponse:
        """Ask the provider for a count; it is free, so there is no usage."""
        try:
            return await self._whole(request)
        except errors.UpstreamError as error:
            if error.http_status == 404 and error_document(error.body) is None:
                # A likeness of Google without this path is not ill.
                error.scope = errors.FaultScope.REQUEST
            raise

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Run one streamed call."""
        call = self._call(request, "streamGenerateContent?alt=sse")
        reply = await self._upstream.send(call)
        array = request.alt not in {"", "sse"}
        stream = GeminiStream(
            array=array,
            payload=len(call.body),
            factor=request.token_factor,
            headers=reply.headers,
        )
        try:
            if reply.status >= 300:
                raise await failure(reply, self._now, explain)
            kind = content_type(reply)
            if is_whole(kind):
                body = await read_all(reply)
                _refuse_error_body(body, reply.headers)
                raise no_stream(body, kind)
            yield StreamHead(reply.status, reply.headers, _ARRAY_TYPE if array else kind)
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
        return await plain_request(self._upstream, request, _authorize)

    async def _whole(self, request: ExecutorRequest) -> ExecutorResponse:
        action = _ACTIONS.get(request.operation, "")
        call = self._call(request, action)
        reply, body = await whole_answer(self._upstream, call, self._now, explain)
        _refuse_error_body(body, reply.headers)
        return ExecutorResponse(
            body, status=reply.status, headers=reply.headers, content_type=content_type(reply)
        )

    def _call(self, request: ExecutorRequest, action: str) -> Call:
        message = request.message
        if message.format != "gemini" or message.operation not in _ACTIONS:
            raise errors.InvalidRequest(
                f"gemini does not serve {message.operation} in format {message.format}",
                reason="OPERATION_NOT_SUPPORTED",
            )
        base = (message.provider.base_url or DEFAULT_BASE_URL).rstrip("/")
        url = f"{model_url(base, message.model)}:{action}"
        return model_call(request, url, _authorize, prefixes=_FORWARDED, more=[])


def model_url(base: str, model: str) -> str:
    """Return the URL of *model* below *base*, which may lack the API's version."""
    if not _VERSIONED.search(base.partition("://")[2]):
        base += API_VERSION
    if model.startswith(_COLLECTIONS):
        return f"{base}/{quote(model, safe='/')}"
    return f"{base}/models/{quote(model, safe='')}"


def _authorize(secret: OpenedSecret) -> Headers:
    key = secret.get("api_key")
    return [(b"x-goog-api-key", key.encode())] if key else bearer(secret)


def _refuse_error_body(body: bytes, headers: Headers) -> None:
    """Raise the failure that *body*, a 200's, reports."""
    if body.find(b'"error"', 0, 4096) >= 0:
        document = error_document(body)
        if document is not None:
            raise reported_failure(document, headers)
