"""
The echo executor: answers with the user's own words, in every dialect, without a provider.

For first steps, tests and rehearsals of failure. The answer is the last text of the user, streamed word
by word; tokens are whitespace-separated words, so counts are true. Request headers:

* `x-echo-chunks: N`      the answer has exactly N words, the user's repeated or cut
* `x-echo-delay-ms: N`    wait before each word (streamed) or before the answer
* `x-echo-status: N`      fail with this status before anything else
* `x-echo-fail-after: N`  break off after N words; not streamed: fail with 502

Not here: the dialects' shapes (echo_dialects.py, echo_bodies.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import orjson

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
from patchbay_gateway.executors import echo_bodies as bodies
from patchbay_gateway.executors import echo_dialects as dialects

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from patchbay.executor import StreamItem

_DIALECTS: dict[tuple[str, str], dialects.EchoDialect] = {
    ("openai", "chat"): dialects.OpenAIChat(),
    ("openai", "completions"): dialects.OpenAICompletions(),
    ("openai-response", "chat"): dialects.OpenAIResponses(),
    ("claude", "chat"): dialects.ClaudeMessages(),
    ("gemini", "chat"): dialects.GeminiContent(),
}
_GEMINI_ARRAY = dialects.GeminiArray()

# Words keep the white space before them, the last one also what follows, so that pieces joined are the text.
_PIECES = re.compile(r"\s*\S+(?:\s+\Z)?")
_MAX_WORDS = 1_000_000
_BATCH = 64


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the request's headers ask for; None where they do not."""

    chunks: int | None
    delay: float
    status: int | None
    fail_after: int | None


class EchoExecutor(Executor):
    """
    Answers with the last user text.

    Args:
        sleep: How to wait.
        now: Unix seconds, for `created`.
    """

    id: ClassVar = "echo"
    name: ClassVar = "Echo"
    version: ClassVar = "0.1.0"
    author: ClassVar = "Patchbay"
    input_formats: ClassVar[Sequence[str]] = ("openai", "openai-response", "claude", "gemini")
    output_formats: ClassVar[Sequence[str]] = input_formats
    operations: ClassVar[Mapping[str, Sequence[str]]] = {
        "openai": ("chat", "completions", "embeddings"),
        "openai-response": ("chat",),
        "claude": ("chat", "count_tokens"),
        "gemini": ("chat", "count_tokens"),
    }

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sleep = sleep
        self._now = now

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer at once."""
        wishes = self._wishes(request)
        body = self._body(request)
        if wishes.delay:
            await self._sleep(wishes.delay)
        if wishes.fail_after is not None:
            raise _failure(request, 502, "echo broke off, as x-echo-fail-after asked")
        if request.operation == "embeddings" and request.format == "openai":
            answer, tokens = bodies.embeddings(body, request.model)
            return ExecutorResponse(orjson.dumps(answer), usage=_usage(tokens, 0))
        dialect = self._dialect(request)
        said = self._answer(request, dialect, body, wishes)
        return ExecutorResponse(
            orjson.dumps(dialect.whole(said)), usage=_usage(said.input_tokens, said.output_tokens)
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer word by word; words that need no pause go in batches."""
        wishes = self._wishes(request)
        dialect = self._dialect(request)
        said = self._answer(request, dialect, self._body(request), wishes)
        array = dialect is _GEMINI_ARRAY
        yield StreamHead(content_type="application/json" if array else "text/event-stream")
        opening = dialect.opening(said)
        if opening:
            yield StreamBatch(opening, _usage(said.input_tokens, 0))
        end = said.output_tokens
        if wishes.fail_after is not None:
            end = min(end, wishes.fail_after)
        step = 1 if wishes.delay else _BATCH
        for start in range(0, end, step):
            if wishes.delay:
                await self._sleep(wishes.delay)
            upto = min(start + step, end)
            chunks = [dialect.piece(said, index) for index in range(start, upto)]
            yield StreamBatch(chunks, _usage(said.input_tokens, upto))
        if wishes.fail_after is not None:
            raise errors.UpstreamError(
                502,
                "echo broke off, as x-echo-fail-after asked",
                sent=errors.Sent.YES,
                reason="UPSTREAM_TRUNCATED",
            )
        closing = dialect.closing(said)
        if closing:
            yield StreamBatch(closing)
        yield StreamTail(_usage(said.input_tokens, said.output_tokens))

    async def count_tokens(self, request: ExecutorRequest) -> ExecutorResponse:
        """Count the words of the request."""
        self._wishes(request)
        dialect = _DIALECTS.get((request.format, "chat"))
        if dialect is None or request.format not in {"claude", "gemini"}:
            raise _unknown(request)
        body = self._body(request)
        # Gemini also takes the whole request one level down.
        inner = body.get("generateContentRequest")
        count = dialect.read(inner if isinstance(inner, dict) else body).input_tokens
        key = "input_tokens" if request.format == "claude" else "totalTokens"
        return ExecutorResponse(orjson.dumps({key: count}))

    def _dialect(self, request: ExecutorRequest) -> dialects.EchoDialect:
        message = request.message
        if message.format == "gemini" and message.stream and message.alt not in {"", "sse"}:
            return _GEMINI_ARRAY
        dialect = _DIALECTS.get((message.format, message.operation or "chat"))
        if dialect is None:
            raise _unknown(request)
        return dialect

    def _answer(
        self,
        request: ExecutorRequest,
        dialect: dialects.EchoDialect,
        body: dialects.Json,
        wishes: _Wishes,
    ) -> dialects.Answer:
        reading = dialect.read(body)
        options = body.get("stream_options")
        return dialects.Answer(
            uid=request.attempt_uid or "0",
            model=request.model,
            created=int(self._now()),
            pieces=_pieces(reading.text, wishes.chunks),
            input_tokens=reading.input_tokens,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        )

    def _body(self, request: ExecutorRequest) -> dialects.Json:
        try:
            body = orjson.loads(request.payload)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            raise _failure(request, 400, "the body is not a JSON object")
        return body

    def _wishes(self, request: ExecutorRequest) -> _Wishes:
        """Read the headers; a status wished for is raised at once."""
        headers = request.message.headers
        if not any(name.startswith("x-echo-") for name in headers):
            return _NO_WISHES
        delay = _number(request, "x-echo-delay-ms")
        wishes = _Wishes(
            _number(request, "x-echo-chunks"),
            min(delay or 0, 600_000) / 1000,
            _number(request, "x-echo-status"),
            _number(request, "x-echo-fail-after"),
        )
        if wishes.status is not None and 400 <= wishes.status <= 599:
            raise _failure(request, wishes.status, "echo failed, as x-echo-status asked")
        return wishes


_NO_WISHES = _Wishes(None, 0.0, None, None)


def _pieces(text: str, wanted: int | None) -> tuple[str, ...]:
    if wanted is None:
        return tuple(_PIECES.findall(text))
    words = text.split() or ["echo"]
    count = min(wanted, _MAX_WORDS)
    return tuple((" " if i else "") + words[i % len(words)] for i in range(count))


def _number(request: ExecutorRequest, name: str) -> int | None:
    value = request.header(name)
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise _failure(request, 400, f"{name} must be a whole number")
    return int(value)


def _usage(input_tokens: int, output_tokens: int) -> Usage:
    return Usage((("input_tokens", input_tokens), ("output_tokens", output_tokens)))


def _failure(request: ExecutorRequest, status: int, message: str) -> errors.UpstreamError:
    return errors.UpstreamError(
        status,
        message,
        body=bodies.error_body(request.format, status, message),
        content_type="application/json",
        scope=errors.FaultScope.REQUEST if status == 400 else errors.FaultScope.MODEL,
        sent=errors.Sent.YES,
    )


def _unknown(request: ExecutorRequest) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"echo does not serve {request.operation} in format {request.format}",
        reason="OPERATION_NOT_SUPPORTED",
    )
