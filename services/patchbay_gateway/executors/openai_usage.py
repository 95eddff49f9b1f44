"""
What an OpenAI answer consumed: read from its `usage`.

JSON is parsed only where the bytes `"usage":{` were seen, and on whole blocks of events. Not here: prices,
other dialects, answers that say nothing (estimate.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.executor import Usage
from patchbay.sse import event_data

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


class _Body(msgspec.Struct):
    """The part of a body or event that can hold usage; the decoder skips the rest."""

    usage: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def has_usage(block: bytes) -> bool:
    """Whether *block* may hold a usage object; `"usage":null`, which many chunks have, does not count."""
    return block.find(b'"usage":{') >= 0 or block.find(b'"usage": {') >= 0


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
    except msgspec.MsgspecError:
        return None
    usage = document.usage
    if not isinstance(usage, dict) and isinstance(document.response, dict):
        usage = document.response.get("usage")
    return read_usage(usage) if isinstance(usage, dict) else None


def read_usage(usage: dict[str, Any]) -> Usage | None:
    """
    Return the units of a `usage` object of any OpenAI shape; None when it says nothing.

    Cached tokens are part of the input and reasoning tokens of the output, as OpenAI has it.
    """
    items: list[tuple[str, int]] = []
    prompt = _number(usage, "prompt_tokens", "input_tokens")
    completion = _number(usage, "completion_tokens", "output_tokens")
    if prompt is not None:
        items.append(("input_tokens", prompt))
    if completion is not None:
        items.append(("output_tokens", completion))
    if not items:
        return None
    details = _details(usage, "prompt_tokens_details", "input_tokens_details")
    for unit, names in _INPUT_DETAILS:
        if found := _number(details, *names):
            items.append((unit, found))
    details = _details(usage, "completion_tokens_details", "output_tokens_details")
    if found := _number(details, "reasoning_tokens"):
        items.append(("reasoning_tokens", found))
    return Usage(tuple(items))


_INPUT_DETAILS = (
    ("cache_read_tokens", ("cached_tokens",)),
    ("cache_creation_tokens", ("cache_creation_tokens", "cache_write_tokens")),
)


def _details(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        found = usage.get(name)
        if isinstance(found, dict):
            return found
    return {}


def _number(source: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = source.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return int(value)
    return None
