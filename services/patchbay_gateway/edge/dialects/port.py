"""
The port of a dialect: what the pipeline asks about a wire format.

Stream chunks are whole events as bytes (an SSE event with its blank line); implementations look for
byte patterns first and parse JSON only where a pattern hit. `StreamState` is the little that must be
remembered per answer, for example the last sequence number of OpenAI Responses.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers, PatchbayError, UpstreamError
    from patchbay_gateway.kernel.outcomes import Fault


class ChunkKind(enum.Enum):
    """What one stream chunk is for the pipeline."""

    CONTENT = "content"
    """Model content: commits the answer."""
    LIFECYCLE = "lifecycle"
    """Comments, pings, `response.created`, blocks that begin empty …: does not commit the answer."""
    ERROR = "error"
    """The provider reports a failure inside a 200."""
    TERMINAL = "terminal"
    """The regular end: `[DONE]`, `message_stop`, `response.completed` …"""


class StreamState(msgspec.Struct, gc=False):
    """What one streamed answer has shown so far."""

    sequence: int = -1
    """Last `sequence_number` known; the dialect may know a later one from `last`."""
    terminal: bool = False
    """The regular end was seen."""
    content: bool = False
    """Model content was seen; from then on chunks are looked at less closely."""
    last: bytes = b""
    """The event written last: what `stream_error` looks at to go on from there."""


@dataclass(frozen=True, slots=True)
class ClientError:
    """An error as the client will see it."""

    status: int
    body: bytes
    headers: Headers
    """Content type, `retry-after` and what the dialect's SDKs obey."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model for a model list."""

    id: str
    owned_by: str
    created: int = 0


class Dialect(Protocol):
    """One wire format."""

    name: str
    """`openai`, `openai-response`, `claude`, `gemini`."""
    stream_content_type: bytes
    limit_signs: tuple[tuple[str, str], ...]
    """Names of (remaining, limit) headers by which this dialect's providers tell of limits."""

    def fault(self, error: UpstreamError, now: float) -> Fault:
        """Return in neutral words what a provider of this dialect reported; *now* in unix seconds."""
        ...

    def error(self, error: PatchbayError, request_id: str) -> ClientError:
        """
        Return *error* in this dialect.

        An UpstreamError whose body is already of this dialect's shape passes its body unchanged; any
        other becomes the dialect's envelope. `Retry-After` is always set when known.
        """
        ...

    def stream_error(self, error: PatchbayError, state: StreamState, request_id: str) -> bytes:
        """
        Return the terminal event for a failure after headers were committed.

        Looks at `state.last` for the sequence number to go on from; nothing is appended after an error or
        terminal event (then the result is a comment line). Empty: this form has no terminal error, the
        connection must be cut.
        """
        ...

    def keepalive(self) -> bytes:
        """Return the bytes of one keep-alive event inside a stream."""
        ...

    def classify(self, chunk: bytes, state: StreamState) -> ChunkKind:
        """Say what *chunk* is and note in *state* what must be remembered."""
        ...

    def in_stream_error(self, chunk: bytes) -> PatchbayError:
        """Return the UpstreamError that a chunk of kind ERROR reports."""
        ...

    def is_usage_only(self, chunk: bytes) -> bool:
        """Whether *chunk* exists only because `stream_options.include_usage` was added."""
        ...

    def model_list(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON of the model list."""
        ...

    def model_detail(self, card: ModelCard) -> bytes:
        """Return the JSON of one model."""
        ...
