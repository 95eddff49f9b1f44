r"""
What a Gemini stream has shown so far: its end, its errors, its consumption. Pure.

`GeminiStream.take` is fed the server-sent events of the provider and returns what to deliver: the events as
they are, or their JSON as elements of one array, for clients that asked for that form. Questions are asked of
the block of events that arrived together, by patterns of bytes; JSON is parsed only where one hits. Google
repeats `usageMetadata` in each event; of those that arrived together the last alone is read, by a decoder
that skips all else. Patterns with unescaped quotes cannot match inside of the model's text. Not here: HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from patchbay.executor import StreamBatch, Usage
from patchbay.sse import EventCutter, EventTooLarge, event_data
from patchbay_gateway.executors.estimate import BYTES_PER_TOKEN, OutputCounter, estimate
from patchbay_gateway.executors.gemini_errors import error_document, reported_failure
from patchbay_gateway.executors.gemini_usage import (
    OUTPUT_FIELDS,
    UsageMetadata,
    has_usage,
    read_usage,
    usage_of_events,
)
from patchbay_gateway.executors.provider_call import too_large, truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers

_FINISH = b'"finishReason"'
_BLOCKED = b'"blockReason"'
_ERROR = b'"error"'
_CONTENT = b'"candidates"'
_NO_REASON = "FINISH_REASON_UNSPECIFIED"


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: Any = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: Any = None


class _Event(msgspec.Struct, rename="camel"):
    """The part of an event that can be an end; the decoder skips the rest."""

    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None


_decode = msgspec.json.Decoder(_Event).decode


class GeminiStream:
    """
    One streamed answer.

    Args:
        array: Deliver one JSON array instead of events.
        payload: Bytes of the request, for an estimate.
        factor: The provider's factor for estimates.
        headers: Of the answer, for errors inside of it.
    """

    __slots__ = (
        "_array",
        "_content",
        "_counter",
        "_cutter",
        "_factor",
        "_headers",
        "_opened",
        "_payload",
        "_told",
        "_usage",
        "done",
    )

    def __init__(self, *, array: bool, payload: int, factor: float = 1.0, headers: Headers) -> None:
        self._array = array
        self._cutter = EventCutter()
        self._counter = OutputCounter(OUTPUT_FIELDS)
        self._payload = payload
        self._factor = factor
        self._headers = headers
        self._usage: UsageMetadata | None = None
        self._told = -1
        self._content = False
        self._opened = False
        self.done = False
        """Whether an end was seen: a finish reason, a blocked prompt, an error; usage may still follow."""

    @property
    def usage(self) -> Usage:
        """Consumption so far: the provider's word, our estimate where it has not spoken."""
        usage = self._usage
        if usage is None:
            return estimate(self._payload, self._counter.total, self._factor)
        if self.done or usage.counts_output:
            return read_usage(usage)
        output = round(self._counter.total * self._factor / BYTES_PER_TOKEN)
        return read_usage(usage, output, estimated=True)

    def take(self, data: bytes) -> StreamBatch | None:
        """
        Return what *data* completes, None when it completes nothing.

        Raises:
            UpstreamError: an error came before any content (in an array: at any time), or an event is too
                large.
        """
        try:
            events = self._cutter.feed(data)
        except EventTooLarge as e:
            raise too_large(e) from e
        if not events:
            return None
        return self._look(events, self._cutter.block)

    def end(self) -> StreamBatch | None:
        """
        Take the regular end of the bytes; a last event without its blank line is still delivered.

        Raises:
            UpstreamError: what the provider wrote instead of an event; 502 UPSTREAM_TRUNCATED without an
                end; half an event is never delivered.
        """
        rest = self._cutter.rest()
        chunks: list[bytes] = []
        if rest.strip():
            document = error_document(rest)
            if document is not None:
                # Google writes some errors as bare JSON into a stream of events.
                raise reported_failure(document, self._headers)
            if _is_whole(rest):
                chunks += self._look([rest], rest).chunks
        if not self.done:
            raise truncated()
        if self._array:
            chunks.append(b"]" if self._opened else b"[]")
        return StreamBatch(chunks, self.usage) if chunks else None

    def _look(self, events: Sequence[bytes], block: bytes) -> StreamBatch:
        if block.find(_ERROR) >= 0:
            self._look_for_errors(events)
        if not self._content:
            self._content = block.find(_CONTENT) >= 0
        if (block.find(_FINISH) >= 0 or block.find(_BLOCKED) >= 0) and any(
            _ends(event) for event in events
        ):
            self.done = True
        news = has_usage(block)
        if news:
            self._usage = usage_of_events(events) or self._usage
        if self._usage is None or not (self.done or self._usage.counts_output):
            self._counter.add(block)
            news = news or self._counter.total != self._told
            self._told = self._counter.total
        chunks = self._elements(events) if self._array else events
        return StreamBatch(chunks, self.usage) if news else StreamBatch(chunks)

    def _elements(self, events: Sequence[bytes]) -> list[bytes]:
        chunks = []
        for event in events:
            data = event_data(event)
            if data:
                chunks.append((b",\r\n" if self._opened else b"[") + data)
                self._opened = True
        return chunks

    def _look_for_errors(self, events: Sequence[bytes]) -> None:
        for index, event in enumerate(events):
            if event.find(_ERROR) < 0:
                continue
            document = error_document(event_data(event) or event)
            if document is not None:
                # One read may bring content and then the error.
                shown = self._content or any(e.find(_CONTENT) >= 0 for e in events[:index])
                if self._array or not shown:
                    raise reported_failure(document, self._headers)
                # After content the event is the client's to see; nothing more will come.
                self.done = True


def _ends(event: bytes) -> bool:
    """Whether *event* holds an end; the same words may be an argument of a function call."""
    if event.find(_FINISH) < 0 and event.find(_BLOCKED) < 0:
        return False
    try:
        document = _decode(event_data(event))
    except (msgspec.MsgspecError, RecursionError):
        return False
    feedback = document.prompt_feedback
    if feedback is not None and feedback.block_reason:
        return True
    return any(c.finish_reason and c.finish_reason != _NO_REASON for c in document.candidates)


def _is_whole(rest: bytes) -> bool:
    """Whether the bytes after the last blank line are an event that only lacks its own."""
    try:
        orjson.loads(event_data(rest))
    except orjson.JSONDecodeError:
        return False
    return True
