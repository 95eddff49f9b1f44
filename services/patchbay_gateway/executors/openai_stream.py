"""
What an OpenAI stream has shown so far: its end, its errors, its consumption. Pure and without a parser.

`OpenAIStream.take` is fed the bytes of the provider and returns whole events to deliver. All questions
are asked of the block of events that arrived together, by patterns of bytes; JSON is parsed only where a
usage object, the end of a choice or, before any content, an error was seen. Patterns with unescaped quotes
cannot match inside of the model's text, where quotes are escaped. Not here: HTTP, which choices there are
(openai_choices.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from patchbay.executor import StreamBatch, Usage
from patchbay.sse import EventCutter, EventTooLarge, event_data
from patchbay_gateway.executors import openai_usage
from patchbay_gateway.executors.estimate import Estimate, OutputCounter
from patchbay_gateway.executors.openai_choices import Choices
from patchbay_gateway.executors.openai_errors import ERROR, may_report, reported_failure
from patchbay_gateway.executors.provider_call import too_large, truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESPONSE_ENDS = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"')
_DONE = b"[DONE]"


class OpenAIStream:
    """
    One streamed answer.

    Args:
        responses: Whether it speaks Responses, and not chat or completions.
        completions: Whether it is the older completions form.
        payload: Bytes of the request, for an estimate.
        factor: The provider's factor for estimates.
        several: Whether more than one choice was asked for.
    """

    __slots__ = (
        "_choices",
        "_counter",
        "_cutter",
        "_estimate",
        "_fields",
        "_told",
        "_usage",
        "done",
        "finished",
    )

    def __init__(
        self,
        *,
        responses: bool,
        completions: bool,
        payload: int,
        factor: float = 1.0,
        several: bool = False,
    ) -> None:
        fields: Sequence[bytes] = openai_usage.CHAT_FIELDS
        if responses:
            fields = openai_usage.RESPONSE_FIELDS
        elif completions:
            fields = openai_usage.COMPLETION_FIELDS
        self._choices = None if responses else Choices(several=several)
        self._cutter = EventCutter()
        self._fields = fields
        self._counter = OutputCounter(fields)
        self._estimate = Estimate(payload, factor)
        self._usage: Usage | None = None
        self._told = -1
        self.finished = False
        """Whether every choice that was seen has its finish reason, or `done`."""
        self.done = False
        """Whether the provider had its last word: [DONE], a terminal event, an error."""

    @property
    def usage(self) -> Usage:
        """Consumption so far: the provider's word, else our estimate."""
        return self._usage or self._estimate.usage(self._counter.total)

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
            UpstreamError: 502 UPSTREAM_TRUNCATED when the answer is not complete; half an event is
                never delivered.
        """
        rest = self._cutter.rest()
        batch = self._look([rest], rest) if rest and _is_whole(rest) else None
        if not self.finished:
            raise truncated()
        return batch

    def _look(self, events: Sequence[bytes], block: bytes) -> StreamBatch:
        # `in` asks first whether a number is meant, with an exception, and so costs twice what `find` does.
        find = block.find
        if find(ERROR) >= 0 and may_report(block):
            self._look_for_errors(events)
        choices = self._choices
        if choices is None:
            for end in _RESPONSE_ENDS:
                if find(end) >= 0:
                    self.finished = self.done = True
        elif not self.done:
            finished = choices.take(events, block)
            if finished is not None:
                self.finished = finished
        if find(_DONE) >= 0 and any(event_data(e) == _DONE for e in reversed(events)):
            self.finished = self.done = True
        if openai_usage.has_usage(block):
            self._usage = openai_usage.usage_of_events(events) or self._usage
            return StreamBatch(events, self.usage)
        counter = self._counter
        if self._usage is None:
            counter.add(block)
            if counter.total != self._told:
                self._told = counter.total
                return StreamBatch(events, self._estimate.usage(counter.total))
        return StreamBatch(events)

    def _look_for_errors(self, events: Sequence[bytes]) -> None:
        for index, event in enumerate(events):
            reported = _reported_error(event)
            if reported is not None:
                # One read may bring content and then the error.
                before = OutputCounter(self._fields)
                before.add(b"".join(events[:index]))
                if not self._counter.total and not before.total:
                    raise reported_failure(reported, event_data(event))
                # After content the event is the client's to see; nothing more will come.
                self.finished = self.done = True


def _is_whole(rest: bytes) -> bool:
    """Whether the bytes after the last blank line are an event that only lacks its own."""
    data = event_data(rest)
    if data == _DONE:
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _reported_error(event: bytes) -> dict[str, Any] | None:
    """
    Return the event if it reports a failure: a chat event with an `error` and no choices, or a
    Responses event of type `error`, `response.failed` or `response.error`.
    """
    try:
        document = orjson.loads(event_data(event))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    kind = document.get("type")
    if kind in {"error", "response.failed", "response.error"}:
        return document
    if document.get("error") and not document.get("choices") and kind is None:
        return document
    return None
