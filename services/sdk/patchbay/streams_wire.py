"""
Capabilities that are streams: chunks in, one answer each, in order.

The stream chunk interceptor's call begins with headers (index -1); each later message tells what became of
the previous chunk, from which the history is kept (`patchbay.stream_history`). Hot: runs for every chunk of
an answer that is intercepted. Not here: unary capabilities (`patchbay.services`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchbay import errors, wire
from patchbay.interceptors import (
    HEADER_INIT_INDEX,
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
    StreamStart,
)
from patchbay.plugin.v1 import stream_chunk_interceptor_pb2, transform_pb2
from patchbay.status import headers_from_map, headers_to_map
from patchbay.stream_history import History
from patchbay.transform import ResponseTransformRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable

    from patchbay.errors import Headers
    from patchbay.host_client import HostClient, HostConnections

_UNCHANGED = stream_chunk_interceptor_pb2.CHUNK_FATE_UNCHANGED
_REPLACED = stream_chunk_interceptor_pb2.CHUNK_FATE_REPLACED


def intercept_handler(
    plugin: Callable[[Any], StreamChunkInterceptor[Any]], hosts: HostConnections
) -> Callable[..., AsyncGenerator[stream_chunk_interceptor_pb2.StreamChunkInterceptResponse, None]]:
    """Return the method InterceptStreamChunk over the plugin that *plugin* finds for a call."""

    async def handle(
        requests: AsyncIterable[stream_chunk_interceptor_pb2.StreamChunkInterceptRequest],
        context: Any,
    ) -> AsyncGenerator[stream_chunk_interceptor_pb2.StreamChunkInterceptResponse, None]:
        found = plugin(context)
        stream: _Stream | None = None
        try:
            async for message in requests:
                if stream is None:
                    if message.chunk_index != HEADER_INIT_INDEX:
                        raise errors.InvalidRequest(
                            "the first message of a stream has index -1", reason="STREAM_NOT_BEGUN"
                        )
                    callbacks = hosts.client(found.id, context.invocation_metadata())
                    begun = _start(message, callbacks)
                    stream = _Stream(found, begun, await found.open_stream(begun))
                yield await stream.answer(message)
                if stream.failure is not None:
                    raise stream.failure
        finally:
            if stream is not None:
                await found.close_stream(stream.state)

    return handle


class _Stream:
    """One intercepted answer."""

    __slots__ = ("_answered", "_headers", "_history", "_plugin", "_start", "failure", "state")

    def __init__(self, plugin: StreamChunkInterceptor[Any], start: StreamStart, state: Any) -> None:
        self._plugin = plugin
        self._start = start
        self._history = History()
        self._headers: Headers = []
        # The previous chunk as it was answered; None before the first, and when it was dropped.
        self._answered: bytes | None = None
        self.state = state
        self.failure: Exception | None = None
        """What the plugin raised at a chunk that came behind others: they are answered first."""

    async def answer(
        self, message: stream_chunk_interceptor_pb2.StreamChunkInterceptRequest
    ) -> stream_chunk_interceptor_pb2.StreamChunkInterceptResponse:
        """Return the answer to one message, with those to the chunks that wait in it."""
        fate = message.previous
        if fate == _UNCHANGED:
            self._keep_answered()
        elif fate == _REPLACED and message.previous_body:
            self._history.add(message.previous_body)
        index = message.chunk_index
        if index == HEADER_INIT_INDEX or message.response_headers_changed:
            self._headers = headers_from_map(message.response_headers)
        answer = await self._answer_one(index, message.body)
        for number, body in enumerate(message.more, index + 1):
            self._keep_answered()
            try:
                answer.more.append(await self._answer_one(number, body))
            except Exception as error:  # noqa: BLE001 - raised by the handler, once the answers are out
                self.failure = error
                break
        return answer

    def _keep_answered(self) -> None:
        if self._answered:
            self._history.add(self._answered)

    async def _answer_one(
        self, index: int, body: bytes
    ) -> stream_chunk_interceptor_pb2.StreamChunkInterceptResponse:
        request = StreamChunkInterceptRequest(
            self._start, index, body, self._headers, self._history
        )
        if index == HEADER_INIT_INDEX:
            change = await self._plugin.intercept_stream_start(request, self.state)
        else:
            change = await self._plugin.intercept_stream_chunk(request, self.state)
            self._answered = _delivered(body, change)
        answer = stream_chunk_interceptor_pb2.StreamChunkInterceptResponse(chunk_index=index)
        if change is not None:
            answer.body = change.body
            answer.drop_chunk = change.drop_chunk
            answer.clear_headers.extend(change.clear_headers)
            headers_to_map(change.headers, answer.headers)
        return answer


def _delivered(body: bytes, change: StreamChunkInterceptResponse | None) -> bytes | None:
    if change is None:
        return body
    return None if change.drop_chunk else change.body or body


def _start(
    message: stream_chunk_interceptor_pb2.StreamChunkInterceptRequest, callbacks: HostClient
) -> StreamStart:
    return StreamStart(
        request_id=message.request_id,
        trace_id=message.trace_id,
        source_format=message.source_format,
        model=message.model,
        requested_model=message.requested_model,
        request_headers=headers_from_map(message.request_headers),
        original_request=message.original_request,
        request_body=message.request_body,
        metadata=wire.json_object(message.metadata, "metadata"),
        callbacks=callbacks,
    )


def transform_handler(
    plugin: Callable[[Any], Any], calls: str
) -> Callable[..., AsyncGenerator[transform_pb2.PayloadResponse, None]]:
    """Return a streamed method of a response translator or normalizer: its unary one, chunk by chunk."""

    async def handle(
        requests: AsyncIterable[transform_pb2.ResponseTransformRequest], context: Any
    ) -> AsyncGenerator[transform_pb2.PayloadResponse, None]:
        transform = getattr(plugin(context), calls)
        state: dict[str, Any] = {}
        first: transform_pb2.ResponseTransformRequest | None = None
        async for message in requests:
            first = first or message
            request = ResponseTransformRequest(
                from_format=message.from_format,
                to_format=message.to_format,
                model=message.model,
                body=message.body,
                stream=message.stream,
                original_request=first.original_request,
                translated_request=first.translated_request,
                content_type=message.content_type,
                operation=message.operation,
                state=state,
            )
            yield transform_pb2.PayloadResponse(body=await transform(request) or b"")

    return handle
