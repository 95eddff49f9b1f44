"""
Which choices of an OpenAI stream have begun and which have ended.

An answer of one choice, which nearly all are, costs a search in each block of events: JSON is parsed only
where a choice ends and in what follows that. Where several were asked for each event is, because one of them
may end long before another. Not here: `[DONE]`, errors, consumption (openai_stream.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.sse import event_data

if TYPE_CHECKING:
    from collections.abc import Sequence

_REASON: Final = b'"finish_reason"'
# Many providers write `null` into each chunk, some `""`.
_END: Final = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_CHOICES: Final = b'"choices"'


class _Choice(msgspec.Struct, gc=False):
    index: Any = 0
    finish_reason: Any = None


class _Event(msgspec.Struct, gc=False):
    """The part of an event that speaks of choices; the decoder skips the rest."""

    choices: list[_Choice] | None = None


class _Asked(msgspec.Struct, gc=False):
    n: Any = None
    prompt: Any = None


_decode: Final = msgspec.json.Decoder(_Event).decode
_decode_asked: Final = msgspec.json.Decoder(_Asked).decode


def several_asked(payload: bytes) -> bool:
    """Whether a request asks for more than one choice: by `n`, or by a list of prompts."""
    if payload.find(b'"n"') < 0 and payload.find(b'"prompt"') < 0:
        return False
    try:
        asked = _decode_asked(payload)
    except (msgspec.MsgspecError, RecursionError):
        return False
    prompts = len(asked.prompt) if isinstance(asked.prompt, list) else 1
    return prompts > 1 or (asked.n is not None and asked.n != 1)


class Choices:
    """
    The choices of one streamed answer.

    Args:
        several: Whether more than one was asked for.
    """

    __slots__ = ("_close", "_ended", "_seen")

    def __init__(self, *, several: bool = False) -> None:
        # From the first end on each event is looked at: providers may send more choices than were asked for.
        self._close = several
        self._seen: set[Any] = set()
        self._ended: set[Any] = set()

    def take(self, events: Sequence[bytes], block: bytes) -> bool | None:
        """
        Take *events*, which are *block* cut up.

        Returns:
            Whether every choice that was seen so far has ended; None: nothing in it was of interest.
        """
        if not self._close:
            at = block.find(_REASON)
            end = None if at < 0 else _END.search(block, at)
            if end is None:
                return None
            events = _from(events, end.start())
        elif block.find(_CHOICES) < 0:
            return None
        for event in events:
            if event.find(_CHOICES) >= 0:
                self._look(event)
        self._close = self._close or bool(self._ended)
        return bool(self._ended) and self._seen <= self._ended

    def _look(self, event: bytes) -> None:
        try:
            choices = _decode(event_data(event)).choices or ()
        except (msgspec.MsgspecError, RecursionError):
            # No JSON as our decoder has it (`NaN`): what it says is better believed than called half.
            choices = [_Choice(finish_reason=bool(_END.search(event)))]
        for choice in choices:
            index = choice.index if isinstance(choice.index, int | str) else 0
            self._seen.add(index)
            if choice.finish_reason:
                self._ended.add(index)


def _from(events: Sequence[bytes], at: int) -> Sequence[bytes]:
    """Return *events* from the one on that holds the byte *at* of them all."""
    for index, event in enumerate(events):
        at -= len(event)
        if at < 0:
            return events[index:]
    return events
