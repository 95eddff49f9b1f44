"""
What an OpenAI answer consumed: read from its `usage`.

JSON is parsed only where the word was seen, in events an object after it. Not here: prices, other dialects,
answers that say nothing (estimate.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.executor import Usage
from patchbay.sse import event_data
from patchbay_gateway.executors.estimate import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT_FIELDS: Final = (
    b'"content":',
    b'"reasoning_content":',
    b'"reasoning":',
    b'"arguments":',
    b'"refusal":',
)
"""Fields of a chat chunk that hold what the model produced."""
COMPLETION_FIELDS: Final = (b'"text":',)
"""The same for completions."""
RESPONSE_FIELDS: Final = (b'"delta":',)
"""The same for responses; the `.done` events repeat it under other names."""

_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_creation_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Within(msgspec.Struct):
    usage: _Counts | None = None


class _Body(msgspec.Struct):
    """The part of a body or event that can hold usage, as it should be; the decoder skips the rest."""

    usage: _Counts | None = None
    response: _Within | None = None


class _AnyBody(msgspec.Struct):
    """The same whatever it holds."""

    usage: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder(_AnyBody).decode


def has_usage(block: bytes) -> bool:
    """Whether *block* may hold a usage object; `"usage":null`, which many chunks have, does not count."""
    at = block.find(b'"usage"')
    return at >= 0 and _OBJECT.search(block, at) is not None


def usage_of_events(events: Sequence[bytes]) -> Usage | None:
    """Return the last usage in *events*, None if there is none after all."""
    for event in reversed(events):
        if has_usage(event):
            usage = usage_of_body(event_data(event))
            if usage is not None:
                return usage
    return None


def usage_of_body(body: bytes) -> Usage | None:
    """Return the usage of a JSON body, or of the `response` in it; None without one or if malformed."""
    try:
        document = _decode(body)
    except msgspec.ValidationError:
        return _oddly_typed(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    counts = document.usage
    if counts is None and document.response is not None:
        counts = document.response.usage
    return None if counts is None else _usage_of(counts)


def _usage_of(counts: _Counts) -> Usage | None:
    """Return the units of *counts*; a number below 0, or over `MOST`, counts as none."""
    items: list[tuple[str, int]] = []
    prompt = _first(counts.prompt_tokens, counts.input_tokens)
    completion = _first(counts.completion_tokens, counts.output_tokens)
    if prompt is not None:
        items.append(("input_tokens", prompt))
    if completion is not None:
        items.append(("output_tokens", completion))
    if not items:
        return None
    details = counts.prompt_tokens_details or counts.input_tokens_details
    if details is not None:
        if cached := _first(details.cached_tokens, None):
            items.append(("cache_read_tokens", cached))
        if created := _first(details.cache_creation_tokens, details.cache_write_tokens):
            items.append(("cache_creation_tokens", created))
    details = counts.completion_tokens_details or counts.output_tokens_details
    if details is not None and (thought := _first(details.reasoning_tokens, None)):
        items.append(("reasoning_tokens", thought))
    return Usage(tuple(items))


def _first(number: int | None, other: int | None) -> int | None:
    if number is not None and 0 <= number <= MOST:
        return number
    return other if other is not None and 0 <= other <= MOST else None


def _oddly_typed(body: bytes) -> Usage | None:
    """Return the usage where some number is written as another type, or `usage` is no object."""
    try:
        document = _decode_any(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    usage = document.usage
    if not isinstance(usage, dict) and isinstance(document.response, dict):
        usage = document.response.get("usage")
    return read_usage(usage) if isinstance(usage, dict) else None


def read_usage(usage: dict[str, Any]) -> Usage | None:
    """
    Return the units of a `usage` object of any OpenAI shape; None when it says nothing.

    Cached tokens are part of the input and reasoning tokens of the output, as OpenAI has it. What is no
    number, or no object of them, is left out.
    """
    return _usage_of(
        _Counts(
            _number(usage.get("prompt_tokens")),
            _number(usage.get("completion_tokens")),
            _number(usage.get("input_tokens")),
            _number(usage.get("output_tokens")),
            _details(usage.get("prompt_tokens_details")),
            _details(usage.get("input_tokens_details")),
            _details(usage.get("completion_tokens_details")),
            _details(usage.get("output_tokens_details")),
        )
    )


def _details(value: Any) -> _Details | None:
    if not isinstance(value, dict):
        return None
    return _Details(
        _number(value.get("cached_tokens")),
        _number(value.get("cache_creation_tokens")),
        _number(value.get("cache_write_tokens")),
        _number(value.get("reasoning_tokens")),
    )


def _number(value: Any) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST:
        return int(value)
    return None
