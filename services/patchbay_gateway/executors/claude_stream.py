"""
What an Anthropic stream has shown so far: its end, its errors, its consumption. Pure and without a parser.

`ClaudeStream.take` is fed the bytes of the provider and returns whole events to deliver. All questions are
asked of the block of events that arrived together, by patterns of bytes; JSON is parsed only where one hits,
which for a sound answer are its first and last events. Patterns with unescaped quotes cannot match inside of
the model's text, where quotes are escaped. Not here: HTTP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import orjson

from patchbay.executor import StreamBatch, Usage
from patchbay.sse import EventCutter, EventTooLarge, event_data
from patchbay_gateway.executors.claude_errors import error_document, reported_failure
from patchbay_gateway.executors.claude_usage import (
    OUTPUT_FIELDS,
    Counts,
    has_usage,
    usage_object,
)
from patchbay_gateway.executors.estimate import BYTES_PER_TOKEN, OutputCounter, estimate
from patchbay_gateway.executors.provider_call import too_large, truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers

_STOP = b'"message_stop"'
_DELTA = b'"message_delta"'
_SAID = b'"content_block_delta"'
_ERROR_SIGN = re.compile(rb'"type"\s*:\s*"error"')


class _Event(msgspec.Struct):
    """The part of an event that says which one it is."""

    type: str = ""


_decode = msgspec.json.Decoder(_Event).decode


class ClaudeStream:
    """
    One streamed answer.

    Args:
        payload: Bytes of the request, for an estimate.
        factor: The provider's factor for estimates.
        headers: Of the answer, for errors inside of it.
    """

    __slots__ = (
        "_content",
        "_counter",
        "_counts",
        "_cutter",
        "_factor",
        "_final",
        "_headers",
        "_payload",
        "_told",
        "done",
    )

    def __init__(self, *, payload: int, factor: float = 1.0, headers: Headers) -> None:
        self._cutter = EventCutter()
        self._counter = OutputCounter(OUTPUT_FIELDS)
        self._counts = Counts()
        self._payload = payload
        self._factor = factor
        self._headers = headers
        self._told = -1
        self._content = False
        # The numbers of message_delta are the last ones; before it the output is our estimate.
        self._final = False
        self.done = False
        """Whether the provider had its last word: message_stop or an error."""

    @property
    def usage(self) -> Usage:
        """Consumption so far: the provider's word, our estimate where it has not spoken."""
        if not self._counts.known:
            return estimate(self._payload, self._counter.total, self._factor)
        if self._final:
            return self._counts.usage()
        output = round(self._counter.total * self._factor / BYTES_PER_TOKEN)
        return self._counts.usage(output, estimated=True)

    def take(self, data: bytes) -> StreamBatch | None:
        """
        Return the events that *data* completes, None when it completes none.

        Raises:
            UpstreamError: an error event came before any content, or an event is too large.
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
            UpstreamError: 502 UPSTREAM_TRUNCATED without message_stop; half an event is never delivered.
        """
        rest = self._cutter.rest()
        batch = self._look([rest], rest) if rest and _is_whole(rest) else None
        if not self.done:
            raise truncated()
        return batch

    def _look(self, events: Sequence[bytes], block: bytes) -> StreamBatch:
        if block.find(b'"error"') >= 0 and _ERROR_SIGN.search(block):
            self._look_for_errors(events)
        if not self._content:
            self._content = block.find(_SAID) >= 0
        if block.find(_STOP) >= 0 and _has(events, _STOP, "message_stop"):
            self.done = True
        if has_usage(block):
            self._read_usage(events)
            return StreamBatch(events, self.usage)
        if not self._final:
            self._counter.add(block)
            if self._counter.total != self._told:
                self._told = self._counter.total
                return StreamBatch(events, self.usage)
        return StreamBatch(events)

    def _read_usage(self, events: Sequence[bytes]) -> None:
        self._counter.add(b"".join(events))
        for event in events:
            if has_usage(event):
                usage = usage_object(event_data(event))
                if usage is not None:
                    self._counts.add(usage)
                    self._final = self._final or (
                        event.find(_DELTA) >= 0 and "output_tokens" in usage
                    )

    def _look_for_errors(self, events: Sequence[bytes]) -> None:
        for index, event in enumerate(events):
            if _ERROR_SIGN.search(event):
                data = event_data(event)
                document = error_document(data)
                if document is not None:
                    # One read may bring content and then the error.
                    if not self._content and not any(e.find(_SAID) >= 0 for e in events[:index]):
                        raise reported_failure(document, data, self._headers)
                    # After content the event is the client's to see; nothing more will come.
                    self.done = True


def _has(events: Sequence[bytes], sign: bytes, kind: str) -> bool:
    """Whether one of *events* is of type *kind*; the same words may be an argument of a tool."""
    for event in reversed(events):
        if sign in event:
            try:
                if _decode(event_data(event)).type == kind:
                    return True
            except (msgspec.MsgspecError, RecursionError):
                continue
    return False


def _is_whole(rest: bytes) -> bool:
    """Whether the bytes after the last blank line are an event that only lacks its own."""
    try:
        orjson.loads(event_data(rest))
    except orjson.JSONDecodeError:
        return False
    return True
