"""
What a translator is: one function for requests, one for whole answers, one object per streamed answer.

A pair may have any of the three; "exists" is judged for each. Answers go from the executor's format to the
client's, and see both the client's body and the one that was sent (names of tools, flags to echo).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer's translator knows of the request."""

    model: str
    """As the client named it."""
    original_request: bytes
    """The client's body."""
    translated_request: bytes
    """The body that the executor got."""
    created: int = 0
    """Unix seconds, for formats that tell it and providers that do not."""


class StreamTranslator(Protocol):
    """Translates one streamed answer. Chunks are whole server-sent events with their blank line."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """
        Return the client's chunks for one of the executor's; none suppresses it.

        Raises:
            UpstreamError: The chunk reports a failure of the provider.
        """
        ...

    def end(self) -> list[bytes]:
        """
        Return what is still owed once the executor's stream ended well. Called once.

        Raises:
            UpstreamError: The stream ended before its own end.
        """
        ...


RequestTranslator = Callable[[str, bytes, bool], bytes]
"""(upstream model, body, stream) → body. Raises InvalidRequest for what the target cannot express."""
AnswerTranslator = Callable[[Context, bytes], bytes]
"""(context, body of a 2xx) → body. Raises UpstreamError for a body that is no answer."""
StreamOpener = Callable[[Context], StreamTranslator]
CountTranslator = Callable[[int], bytes]
"""Input tokens → the client's answer to a count."""
