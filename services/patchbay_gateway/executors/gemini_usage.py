"""
What a Gemini answer consumed, in the ledger's units, from its `usageMetadata`.

Google counts cached input inside of the prompt, as the ledger does, but thoughts and what its own tools read
beside candidates and prompt; the ledger has them inside of output and input. What tools read is a unit of
its own as well, `tool_use_prompt_tokens`. Not here: prices, estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.executor import Usage
from patchbay.sse import event_data

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT_FIELDS: Final = (b'"text":',)
"""Fields of an answer that hold what the model produced."""

_SIGN: Final = b'"usageMetadata"'


class _Body(msgspec.Struct, rename="camel"):
    """The part of a body or event that can hold usage; the decoder skips the rest."""

    usage_metadata: Any = None


_decode = msgspec.json.Decoder(_Body).decode


def has_usage(block: bytes) -> bool:
    """Whether *block* may hold usage."""
    return _SIGN in block


def usage_of_events(events: Sequence[bytes]) -> dict[str, Any] | None:
    """Return the last `usageMetadata` in *events*, None if there is none; those before it say less."""
    for event in reversed(events):
        if _SIGN in event:
            usage = usage_of_body(event_data(event))
            if usage is not None:
                return usage
    return None


def usage_of_body(body: bytes) -> dict[str, Any] | None:
    """Return the `usageMetadata` of a JSON body; None without one or if malformed."""
    try:
        usage = _decode(body).usage_metadata
    except msgspec.MsgspecError:
        return None
    return usage if isinstance(usage, dict) else None


def counts_output(usage: dict[str, Any]) -> bool:
    """Whether *usage* already says something of the output."""
    return bool(_number(usage, "candidatesTokenCount") or _number(usage, "thoughtsTokenCount"))


def read_usage(usage: dict[str, Any], output: int = 0, *, estimated: bool = False) -> Usage:
    """
    Return the units of a `usageMetadata` object.

    Args:
        usage: The object.
        output: Output tokens that were counted by ourselves; the larger number counts.
        estimated: Whether that is an estimate.
    """
    prompt = _number(usage, "promptTokenCount")
    tools = _number(usage, "toolUsePromptTokenCount")
    thoughts = _number(usage, "thoughtsTokenCount")
    produced = _number(usage, "candidatesTokenCount") + thoughts
    if "candidatesTokenCount" not in usage:
        # Some models leave it out, and the total has it.
        produced = max(produced, _number(usage, "totalTokenCount") - prompt - tools)
    items = [("input_tokens", prompt + tools), ("output_tokens", max(produced, output))]
    parts = (
        ("cache_read_tokens", _number(usage, "cachedContentTokenCount")),
        ("reasoning_tokens", thoughts),
        ("tool_use_prompt_tokens", tools),
    )
    items += ((unit, quantity) for unit, quantity in parts if quantity)
    return Usage(tuple(items), estimated=estimated)


def _number(source: dict[str, Any], name: str) -> int:
    value = source.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return int(value)
    return 0
