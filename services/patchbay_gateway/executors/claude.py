"""
The executor for providers that speak Anthropic's Messages API: messages and count_tokens.

Bytes pass unchanged both ways. What it adds: the credential (`x-api-key`, or a bearer token for OAuth), the
API's version where the client names none, the provider's allow-list of headers, the attempt header where
configured, and an account of what was consumed. Not here: the HTTP client (upstream.py), what a stream says
(claude_stream.py), what usage means (claude_usage.py), what failures say (claude_errors.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

from patchbay import errors
from patchbay.executor import Executor, ExecutorResponse, StreamHead, StreamTail
from patchbay_gateway.executors import claude_usage
from patchbay_gateway.executors.claude_errors import error_document, explain, reported_failure
from patchbay_gateway.executors.claude_stream import ClaudeStream
from patchbay_gateway.executors.estimate import OutputCounter, estimate
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

DEFAULT_BASE_URL: Final = "https://api.anthropic.com"
API_VERSION: Final = "2023-06-01"
"""Sent where the client names none; a later one (2026-10-21) takes parameters away, as `temperature`."""
OAUTH_BETA: Final = "oauth-2025-04-20"
"""Without this word in `anthropic-beta` the API refuses OAuth access tokens."""

# The allow-list: what a client may say to Anthropic beside the body.
_FORWARDED: Final = ("anthropic-",)
_PATHS: Final = {"chat": "/v1/messages", "count_tokens": "/v1/messages/count_tokens"}


class ClaudeExecutor(Executor):
    """
    Calls Anthropic and its likes.

    Args:
        upstream: How to reach providers.
        now: Unix seconds.
    """

    id: ClassVar = "claude"
    name: ClassVar = "Anthropic Messages"
    version: ClassVar = "0.1.0"
    author: ClassVar = "Patchbay"
    input_formats: ClassVar[Sequence[str]] = ("claude",)
    output_formats: ClassVar[Sequence[str]] = input_formats
    operations: ClassVar[Mapping[str, Sequence[str]]] = {"claude": tuple(_PATHS)}

    def __init__(self, upstream: Upstream, *, now: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._now = now

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Run one non-streamed call."""
        answer = await self._whole(request)
        usage = None
        if claude_usage.has_usage(answer.payload):
            usage = claude_usage.whole_usage([claude_usage.usage_object(answer.payload)])
        if usage is None:
            counter = OutputCounter(claude_usage.OUTPUT_FIELDS)
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
                # A likeness of Anthropic without this path is not ill.
                error.scope = errors.FaultScope.REQUEST
            raise

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Run one streamed call."""
        call = self._call(request)
        reply = await self._upstream.send(call)
        stream = ClaudeStream(
            payload=len(call.body), factor=request.token_factor, headers=reply.headers
        )
        try:
            if reply.status >= 300:
                raise await failure(reply, self._now, explain)
            kind = content_type(reply)
            if is_whole(kind):
                body = await read_all(reply)
                _refuse_error_body(body, reply.headers)
                raise no_stream(body, kind)
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
        return await plain_request(self._upstream, request, _authorize)

    async def _whole(self, request: ExecutorRequest) -> ExecutorResponse:
        call = self._call(request)
        reply, body = await whole_answer(self._upstream, call, self._now, explain)
        _refuse_error_body(body, reply.headers)
        return ExecutorResponse(
            body, status=reply.status, headers=reply.headers, content_type=content_type(reply)
        )

    def _call(self, request: ExecutorRequest) -> Call:
        message = request.message
        path = _PATHS.get(message.operation) if message.format == "claude" else None
        if path is None:
            raise errors.InvalidRequest(
                f"claude does not serve {message.operation} in format {message.format}",
                reason="OPERATION_NOT_SUPPORTED",
            )
        base = (message.provider.base_url or DEFAULT_BASE_URL).rstrip("/")
        # SDKs take the bare host, many lists of base URLs have the version in it.
        url = base.removesuffix("/v1") + path
        more: Headers = []
        if "anthropic-version" not in message.headers:
            more.append((b"anthropic-version", API_VERSION.encode()))

        def authorize(secret: OpenedSecret) -> Headers:
            return _authorize(secret, request.header("anthropic-beta"))

        return model_call(request, url, authorize, prefixes=_FORWARDED, more=more)


def _authorize(secret: OpenedSecret, betas: str = "") -> Headers:
    key = secret.get("api_key")
    if key:
        return [(b"x-api-key", key.encode())]
    headers = bearer(secret)
    if OAUTH_BETA not in [beta.strip() for beta in betas.split(",")]:
        headers.append((b"anthropic-beta", OAUTH_BETA.encode()))
    return headers


def _refuse_error_body(body: bytes, headers: Headers) -> None:
    """Raise the failure that *body*, a 200's, reports."""
    if body.find(b'"error"', 0, 4096) >= 0:
        document = error_document(body)
        if document is not None:
            raise reported_failure(document, body, headers)
