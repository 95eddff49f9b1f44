"""
What a Gemini answer consumed, in the ledger's units, from its `usageMetadata`.

Google counts cached input inside of the prompt, as the ledger does, but thoughts and what its own tools read
beside candidates and prompt; the ledger has them inside of output and input. What tools read is a unit of
its own as well, `tool_use_prompt_tokens`. Not here: prices, estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from patchbay.executor import Usage
from patchbay.sse import event_data
from patchbay_gateway.executors.estimate import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT_FIELDS: Final = (b'"text":',)
"""Fields of an answer that hold what the model produced."""

_SIGN: Final = b'"usageMetadata"'
_Count = Annotated[int, msgspec.Meta(le=MOST)]


class UsageMetadata(msgspec.Struct, rename="camel"):
    """What Google says; typed, because each event of a stream repeats it and the rest is skipped fast."""

    prompt_token_count: _Count = 0
    candidates_token_count: _Count | None = None
    thoughts_token_count: _Count = 0
    cached_content_token_count: _Count = 0
    tool_use_prompt_token_count: _Count = 0
    total_token_count: _Count = 0

    @property
    def counts_output(self) -> bool:
        """Whether it already says something of the output."""
        return bool(self.candidates_token_count or self.thoughts_token_count)


class _Body(msgspec.Struct, rename="camel"):
    """The part of a body or event that can hold usage; the decoder skips the rest."""

    usage_metadata: UsageMetadata | None = None


_decode = msgspec.json.Decoder(_Body).decode


def has_usage(block: bytes) -> bool:
    """Whether *block* may hold usage."""
    return block.find(_SIGN) >= 0


def usage_of_events(events: Sequence[bytes]) -> UsageMetadata | None:
    """Return the last `usageMetadata` in *events*, None if there is none; those before it say less."""
    for event in reversed(events):
        if event.find(_SIGN) >= 0:
            usage = usage_of_body(event_data(event))
            if usage is not None:
                return usage
    return None


def usage_of_body(body: bytes) -> UsageMetadata | None:
    """Return the `usageMetadata` of a JSON body; None without one or if malformed."""
    try:
        return _decode(body).usage_metadata
    except (msgspec.MsgspecError, RecursionError):
        return None


def read_usage(told: UsageMetadata, output: int = 0, *, estimated: bool = False) -> Usage:
    """
    Return the units of a `usageMetadata` object.

    Args:
        told: The object.
        output: Output tokens that were counted by ourselves; the larger number counts.
        estimated: Whether that is an estimate.
    """
    tools, thoughts = told.tool_use_prompt_token_count, told.thoughts_token_count
    read = told.prompt_token_count + tools
    candidates = told.candidates_token_count
    # Some models leave the candidates out, and the total has them.
    produced = (
        max(thoughts, told.total_token_count - read)
        if candidates is None
        else candidates + thoughts
    )
    # What contradicts itself or is negative is none: the ledger knows no such quantities.
    items = [("input_tokens", max(read, 0)), ("output_tokens", max(produced, output, 0))]
    if told.cached_content_token_count > 0:
        items.append(("cache_read_tokens", told.cached_content_token_count))
    if thoughts > 0:
        items.append(("reasoning_tokens", thoughts))
    if tools > 0:
        items.append(("tool_use_prompt_tokens", tools))
    return Usage(tuple(items), estimated=estimated)
