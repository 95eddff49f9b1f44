"""
Translators and normalizers: the base classes of plugins that turn payloads from format to format.

A translator is asked where no native one exists, and the first that answers wins; normalizers are all
called, each with its predecessor's result. All return the new payload, or None for "not mine" or "no
change"; no hook can make a payload empty. An error counts as None.

Streamed answers come chunk by chunk through the same method, with `request.stream` True; what is to be kept
between chunks goes into `request.state`. Not here: native translation (the gateway's), interceptors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from patchbay.capability import Plugin
from patchbay.wire import APART


@dataclass(frozen=True, slots=True)
class RequestTransformRequest:
    """A request's payload."""

    from_format: str
    """Format that the client spoke."""
    to_format: str
    """Format that the executor takes."""
    model: str
    """Upstream model."""
    body: bytes
    """For a normalizer in `to_format` where a native translator made it, else in `from_format`."""
    stream: bool = False
    """Whether a stream is expected."""
    content_type: str = ""
    """Empty means application/json."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""


@dataclass(frozen=True, slots=True)
class ResponseTransformRequest:
    """A whole answer, or one chunk."""

    from_format: str
    """Format that the executor emits."""
    to_format: str
    """Format that the client spoke."""
    model: str
    """Model as the client named it."""
    body: bytes
    """The answer's body, or one chunk: for event streams one event with its blank line."""
    stream: bool = False
    """True: `body` is a chunk."""
    original_request: bytes = b""
    """The client's body."""
    translated_request: bytes = b""
    """The body that the executor got."""
    content_type: str = ""
    """Content type of the body."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    state: dict[str, Any] = field(default_factory=dict, metadata=APART)
    """Empty with the first chunk of an answer, then whatever the plugin left there."""


class RequestTranslator(Plugin):
    """A plugin that translates requests."""

    capability_flag: ClassVar = "request_translator"

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the payload in `to_format`, None if this plugin does not know the pair."""
        raise NotImplementedError


class RequestNormalizer(Plugin):
    """A plugin with last changes to requests."""

    capability_flag: ClassVar = "request_normalizer"

    async def normalize_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the changed payload, None for no change."""
        raise NotImplementedError


class ResponseTranslator(Plugin):
    """A plugin that translates answers."""

    capability_flag: ClassVar = "response_translator"

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the answer or chunk in `to_format`, None if this plugin does not know the pair."""
        raise NotImplementedError


class ResponseBeforeTranslator(Plugin):
    """A plugin that changes what executors emit, before translation."""

    capability_flag: ClassVar = "response_before_translator"

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the changed answer or chunk, None for no change (pluginapi: NormalizeResponse)."""
        raise NotImplementedError


class ResponseAfterTranslator(Plugin):
    """A plugin that changes what goes to the client, after translation."""

    capability_flag: ClassVar = "response_after_translator"

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the changed answer or chunk, None for no change (pluginapi: NormalizeResponse)."""
        raise NotImplementedError
