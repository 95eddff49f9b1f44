"""
What an OpenAI stream has shown so far: its end, its errors, its consumption. Pure and without a parser.

`OpenAIStream.take` is fed the bytes of the provider and returns whole events to deliver. All questions
are asked of the block of events that arrived together, by patterns of bytes; JSON is parsed only where a
usage object or, before any content, an error was seen. Patterns with unescaped quotes cannot match
inside of the model's text, where quotes are escaped. Not here: HTTP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from patchbay import errors
from patchbay.executor import StreamBatch, Usage
from patchbay.sse import EventCutter, EventTooLarge, event_data
from patchbay_gateway.executors import openai_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHAT_ENDS = (b'"finish_reason":"', b'"finish_reason": "')
_RESPONSE_ENDS = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"')
_DONE = b"[DONE]"
# `"error":null` is a part of sound events; `"type":"error"` is not.
_ERROR = b'"error"'
_ERROR_SIGN = re.compile(rb'"error"(?!: ?null)')


class OpenAIStream:
    """
    One streamed answer.

    Args:
        responses: Whether it speaks Responses, and not chat or completions.
        completions: Whether it is the older completions form.
        payload: Bytes of the request, for an estimate.
        factor: The provider's factor for estimates.
    """

    __slots__ = (
        "_counter",
        "_cutter",
        "_ends",
        "_factor",
        "_fields",
        "_payload",
        "_responses",
        "_told",
        "_usage",
        "done",
        "finished",
    )

    def __init__(
        self, *, responses: bool, completions: bool, payload: int, factor: float = 1.0
    ) -> None:
        fields: Sequence[bytes] = openai_usage.CHAT_FIELDS
        if responses:
            fields = openai_usage.RESPONSE_FIELDS
        elif completions:
            fields = openai_usage.COMPLETION_FIELDS
        self._ends = _RESPONSE_ENDS if responses else _CHAT_ENDS
        self._responses = responses
        self._cutter = EventCutter()
        self._fields = fields
        self._counter = openai_usage.OutputCounter(fields)
        self._payload = payload
        self._factor = factor
        self._usage: Usage | None = None
        self._told = -1
        self.finished = False
        """Whether some choice has its finish reason, or `done`."""
        self.done = False
        """Whether the provider had its last word: [DONE], a terminal event, an error."""

    @property
    def usage(self) -> Usage:
        """Consumption so far: the provider's word, else our estimate."""
        return self._usage or openai_usage.estimate(
            self._payload, self._counter.total, self._factor
        )

    def take(self, data: bytes) -> StreamBatch | None:
        """
        Return the events that *data* completes, None when it completes none.

        Raises:
            UpstreamError: an error event came before any content, or an event is too large.
        """
        try:
            events = self._cutter.feed(data)
        except EventTooLarge as e:
            raise errors.UpstreamError(
                502, str(e), reason="UPSTREAM_TOO_LARGE", sent=errors.Sent.YES
            ) from e
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
            raise errors.UpstreamError(
                502,
                "the provider's stream ended before the answer was complete",
                reason="UPSTREAM_TRUNCATED",
                sent=errors.Sent.YES,
            )
        return batch

    def _look(self, events: Sequence[bytes], block: bytes) -> StreamBatch:
        counter = self._counter
        if _ERROR in block and _ERROR_SIGN.search(block):
            self._look_for_errors(events)
        self._look_for_end(events, block)
        if openai_usage.has_usage(block):
            self._usage = openai_usage.usage_of_events(events) or self._usage
            return StreamBatch(events, self.usage)
        if self._usage is None:
            counter.add(block)
            if counter.total != self._told:
                self._told = counter.total
                return StreamBatch(events, self.usage)
        return StreamBatch(events)

    def _look_for_end(self, events: Sequence[bytes], block: bytes) -> None:
        for end in self._ends:
            if end in block:
                self.finished = True
                self.done = self.done or self._responses
        if _DONE in block and any(_DONE in e and event_data(e) == _DONE for e in reversed(events)):
            self.finished = self.done = True

    def _look_for_errors(self, events: Sequence[bytes]) -> None:
        for index, event in enumerate(events):
            reported = _reported_error(event)
            if reported is not None:
                # One read may bring content and then the error.
                before = openai_usage.OutputCounter(self._fields)
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


_STATUS_BY_CODE = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "context_length_exceeded": 400,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
}


def _status(told: object) -> int:
    """Return the HTTP status that a status, code or type stands for; 0 for none."""
    if isinstance(told, str):
        told = int(told) if told.isdigit() and len(told) == 3 else _STATUS_BY_CODE.get(told)
    return told if isinstance(told, int) and 400 <= told <= 599 else 0


def reported_failure(document: dict[str, Any], body: bytes) -> errors.UpstreamError:
    """
    Return the failure that a provider reports inside a 200.

    Args:
        document: The event or body, parsed.
        body: The same as bytes; becomes the error's body when it has the shape of an error answer.
    """
    response = document.get("response")
    inner = document.get("error") or (response.get("error") if isinstance(response, dict) else None)
    detail = inner if isinstance(inner, dict) else document
    status = 502
    for told in (
        document.get("status"),
        document.get("status_code"),
        detail.get("status"),
        detail.get("code"),
        detail.get("type"),
    ):
        found = _status(told)
        if found:
            status = found
            break
    message = detail.get("message")
    if not isinstance(message, str):
        message = inner if isinstance(inner, str) else "the provider reported a failure"
    shaped = isinstance(document.get("error"), dict)
    return errors.UpstreamError(
        status,
        message,
        body=body
        if shaped
        else orjson.dumps(
            {
                "error": {
                    "message": message,
                    "type": "server_error" if status >= 500 else "invalid_request_error",
                    "param": detail.get("param"),
                    "code": detail.get("code"),
                }
            }
        ),
        content_type="application/json",
        sent=errors.Sent.YES,
        reason="UPSTREAM_ERROR_EVENT",
    )
