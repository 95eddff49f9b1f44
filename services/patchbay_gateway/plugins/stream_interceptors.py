"""
Stream chunk interceptors: one bidirectional call a plugin and streamed answer, one message a chunk, or one
for several that came together.

A chunk crosses the wire once to each plugin; what became of it is told with the next one, from which the
plugin keeps the history (docs/adr, streams). A plugin that fails is left out for the rest of the stream,
or ends it where its policy says so. Source: pluginapi, StreamChunkInterceptor. Not here: when the answer
is committed (the pipeline), whole answers (response_interceptors.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay import errors, status
from patchbay.plugin.v1 import stream_chunk_interceptor_pb2 as chunk_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.beside import with_room
from patchbay_gateway.plugins.calls import failed, warn
from patchbay_gateway.plugins.conversation import Conversation
from patchbay_gateway.plugins.header_merge import merge
from patchbay_gateway.plugins.policy import OnError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.response_interceptors import Executed

_FLAG: Final = "response_stream_interceptor"

_MOST_TOGETHER: Final = 64
_MOST_BYTES_TOGETHER: Final = 1 << 20
# A message has the deadline of one chunk, whatever is in it: so much of it is planned for, at the plugin's
# slowest so far.
_SHARE: Final = 0.5
# Seconds: nobody is known to be faster, however coarse the clock.
_SOON: Final = 1e-6

_UNTOLD: Final = chunk_pb2.CHUNK_FATE_UNSPECIFIED
_UNCHANGED: Final = chunk_pb2.CHUNK_FATE_UNCHANGED
_REPLACED: Final = chunk_pb2.CHUNK_FATE_REPLACED
_DROPPED: Final = chunk_pb2.CHUNK_FATE_DROPPED


class _Link:
    """One plugin of the chain."""

    __slots__ = ("answered", "conversation", "hook", "owed", "seen", "sent_headers", "slowest")

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.conversation: (
            Conversation[
                chunk_pb2.StreamChunkInterceptRequest, chunk_pb2.StreamChunkInterceptResponse
            ]
            | None
        ) = None
        self.answered: bytes | None = None
        """The last chunk as this plugin answered it; None when it dropped it."""
        self.seen = False
        """Whether it saw the last chunk at all."""
        self.owed: tuple[chunk_pb2.ChunkFate.ValueType, bytes] = (_UNTOLD, b"")
        """What became of the last chunk that it saw; told with the next that it sees."""
        self.sent_headers: Headers = []
        self.slowest = 0.0
        """Seconds that it took for a chunk; 0 before its first."""


class StreamInterceptors:
    """
    Opens chains.

    Args:
        hooks: Who is asked.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls

    def of(self, execution: PluginExecution) -> tuple[Hook, ...]:
        """Return who is asked about *execution*."""
        return self._hooks.asked(execution, _FLAG)

    def chain(
        self, hooks: Sequence[Hook], execution: PluginExecution, request: Executed, headers: Headers
    ) -> StreamChain:
        """Return the chain of one attempt's answer, not yet begun."""
        return StreamChain(self._calls, hooks, execution, request, headers)


class StreamChain:
    """
    The chain over one streamed answer. `begin`, then `feed` each chunk that is not empty, `aclose` in
    every case.

    Attributes:
        headers: The answer's as the plugins left them; what `begin` and the chunks before the commit did
        to them
            reaches the client.
    """

    def __init__(
        self,
        calls: PluginCalls,
        hooks: Sequence[Hook],
        execution: PluginExecution,
        request: Executed,
        headers: Headers,
    ) -> None:
        self.headers = headers
        self._calls = calls
        self._execution = execution
        self._request = request
        self._links = [_Link(hook) for hook in hooks]
        self._index = 0
        """Number of the next chunk."""
        self._delivered: bytes | None = None

    async def begin(self) -> None:
        """
        Let each plugin look at the headers (index -1).

        Raises:
            Unavailable: PLUGIN_FAILED.
        """
        for link in list(self._links):
            message = self._first(link.hook)
            status.headers_to_map(self.headers, message.response_headers)
            link.sent_headers = self.headers
            await self._say(link, message, open_first=True)

    async def feed(self, chunk: bytes) -> bytes | None:
        """
        Return *chunk* as it is to be delivered; None when a plugin dropped it.

        Raises:
            Unavailable: PLUGIN_FAILED.
        """
        self._settle()
        current: bytes | None = chunk
        for link in list(self._links):
            assert current is not None
            replies = await self._say(link, self._asked(link, current))
            if not replies:
                continue
            link.seen = True
            link.answered = current = _delivered(current, replies[0])
            if current is None:
                break
        self._index += 1
        self._delivered = current
        return current

    async def feed_all(self, chunks: Sequence[bytes]) -> list[bytes]:
        """
        Return what is to be delivered of *chunks*, which came together.

        The only plugin of a chain gets them together. Where another comes after it, what becomes of a chunk
        is known too late for that.

        Raises:
            Unavailable: PLUGIN_FAILED.
        """
        out: list[bytes] = []
        at = 0
        while at < len(chunks) and self._links:
            count = self._together(chunks, at)
            if count > 1:
                out += await self._feed_together(chunks[at : at + count])
            elif (delivered := await self.feed(chunks[at])) is not None:
                out.append(delivered)
            at += count
        return [*out, *chunks[at:]]

    def _together(self, chunks: Sequence[bytes], at: int) -> int:
        """Return how many of *chunks* go into one message, from *at*."""
        link = self._links[0]
        if len(self._links) > 1 or not link.slowest:
            return 1
        most = _MOST_TOGETHER
        if link.hook.policy.deadline is not None:
            most = min(most, int(link.hook.policy.deadline * _SHARE / link.slowest))
        count = size = 0
        for chunk in chunks[at : at + max(most, 1)]:
            size += len(chunk)
            if count and size > _MOST_BYTES_TOGETHER:
                break
            count += 1
        return count

    async def _feed_together(self, chunks: Sequence[bytes]) -> list[bytes]:
        self._settle()
        link = self._links[0]
        message = self._asked(link, chunks[0])
        message.more.extend(chunks[1:])
        replies = await self._say(link, message)
        answered = [_delivered(chunk, reply) for chunk, reply in zip(chunks, replies, strict=False)]
        if replies:
            link.seen = True
            link.answered = self._delivered = answered[-1]
        self._index += len(chunks)
        return [*filter(None, answered), *chunks[len(answered) :]]

    def _settle(self) -> None:
        """Note for each plugin what became of the last chunk that it saw."""
        for link in self._links:
            if link.seen:
                link.owed = self._fate(link)
            link.seen = False

    def _asked(self, link: _Link, chunk: bytes) -> chunk_pb2.StreamChunkInterceptRequest:
        """Return the message about the next chunk, which *link* is to see as *chunk*."""
        fate, delivered = link.owed
        message = chunk_pb2.StreamChunkInterceptRequest(
            body=chunk, chunk_index=self._index, previous=fate, previous_body=delivered
        )
        if link.sent_headers != self.headers:
            message.response_headers_changed = True
            status.headers_to_map(self.headers, message.response_headers)
            link.sent_headers = self.headers
        return message

    async def aclose(self) -> None:
        """End all calls. Idempotent."""
        links, self._links = self._links, []
        for link in links:
            if link.conversation is not None:
                await link.conversation.aclose()

    def _fate(self, link: _Link) -> tuple[chunk_pb2.ChunkFate.ValueType, bytes]:
        if self._delivered is None:
            return _DROPPED, b""
        if self._delivered == link.answered:
            return _UNCHANGED, b""
        return _REPLACED, self._delivered

    def _first(self, hook: Hook) -> chunk_pb2.StreamChunkInterceptRequest:
        execution, request = self._execution, self._request
        message = chunk_pb2.StreamChunkInterceptRequest(
            request_id=execution.request_id,
            trace_id=execution.trace_id,
            source_format=execution.source_format,
            model=request.model,
            requested_model=execution.requested_model,
            chunk_index=-1,
            metadata=execution.metadata,
        )
        status.headers_to_map(request.headers, message.request_headers)
        if not hook.needs.no_request_body:
            message.original_request, message.request_body = with_room(
                execution.snapshot, b"", request.original, request.body
            )
        return message

    async def _say(
        self,
        link: _Link,
        message: chunk_pb2.StreamChunkInterceptRequest,
        *,
        open_first: bool = False,
    ) -> list[chunk_pb2.StreamChunkInterceptResponse]:
        """
        Return the plugin's answers, one a chunk, their header changes taken.

        Fewer than chunks, when it failed at the next and has just been left out.
        """
        replies: list[chunk_pb2.StreamChunkInterceptResponse] = []
        began = self._calls.timer()
        try:
            if open_first:
                link.conversation = Conversation(
                    self._calls, link.hook, methods.INTERCEPT_STREAM_CHUNK, self._execution
                )
            assert link.conversation is not None
            reply = await link.conversation.say(message)
            _take(message, reply, replies)
            if len(replies) <= len(message.more):
                # It failed at the next chunk, and says so instead of an answer.
                await link.conversation.hear()
                raise errors.Internal("the plugin left chunks of a message without answers")
        except errors.PatchbayError as error:
            self._links.remove(link)
            if link.conversation is not None:
                await link.conversation.aclose()
            if link.hook.policy.on_error is OnError.FAIL_REQUEST:
                raise failed(link.hook, error) from error
            warn(link.hook, error)
        else:
            if not open_first:
                link.slowest = max(
                    link.slowest, (self._calls.timer() - began) / len(replies), _SOON
                )
        for each in replies:
            self.headers = merge(self.headers, each.headers, each.clear_headers)
        return replies


def _delivered(chunk: bytes, reply: chunk_pb2.StreamChunkInterceptResponse) -> bytes | None:
    return None if reply.drop_chunk else reply.body or chunk


def _take(
    message: chunk_pb2.StreamChunkInterceptRequest,
    reply: chunk_pb2.StreamChunkInterceptResponse,
    replies: list[chunk_pb2.StreamChunkInterceptResponse],
) -> None:
    """
    Add the answers in *reply* to *replies*, as far as they answer *message*.

    Raises:
        Internal: One answers something else.
    """
    for index, each in enumerate((reply, *reply.more), message.chunk_index):
        if each.chunk_index != index or index > message.chunk_index + len(message.more):
            raise errors.Internal(
                f"the plugin answered chunk {each.chunk_index} when it was asked about {index}"
            )
        replies.append(each)
