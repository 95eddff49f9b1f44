"""
Interceptors: the base classes of plugins that rewrite requests, answers and chunks on their way.

Interceptors are called in order of priority, each with its predecessor's result. What they return is a
change: None changes nothing, an empty body keeps the body (no hook can make one empty), headers that are
not named stay. An error changes nothing either, unless the plugin is declared with `Fail`.

    class Redactor(StreamChunkInterceptor[None]):
        id, name, version, author = "redactor", "Redactor", "1.0.0", "You"

        async def intercept_stream_chunk(self, request: StreamChunkInterceptRequest, state: None):
            return StreamChunkInterceptResponse(body=request.body.replace(b"test-key", b"[redacted]"))

Not here: translation between formats (`patchbay.transform`), the end of requests (`patchbay.lifecycle`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.wire import APART

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay.plugin.v1 import plugin_pb2

State = TypeVar("State")
"""What a stream chunk interceptor keeps for one stream."""

HEADER_INIT_INDEX: Final = -1
"""Index of the call that is about headers (pluginapi: StreamChunkHeaderInitIndex)."""


@dataclass(frozen=True, slots=True)
class RequestInterceptRequest:
    """A request about to be executed."""

    request_id: str
    """Id of this execution, the same in every hook."""
    trace_id: str
    """Id of the client's request, shared by nested executions."""
    source_format: str
    """Format that the client spoke; the body is in it."""
    model: str
    """Model; after a credential was chosen the upstream model of the attempt."""
    requested_model: str
    """Model as the client named it."""
    to_format: str = ""
    """Format that the executor takes; empty before a credential is chosen."""
    stream: bool = False
    """Whether a stream is expected."""
    headers: Headers = field(default_factory=list)
    """Headers as they stand, without the client's credentials."""
    body: bytes = b""
    """Body as it stands; empty where `needs_request_body` is False."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host; read-only."""
    content_type: str = ""
    """Empty means application/json."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    attempt: int = 0
    """Number of the attempt, from 1; 0 before a credential is chosen."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


@dataclass(frozen=True, slots=True)
class RequestInterceptResponse:
    """Changes to a request, or its end."""

    headers: Sequence[tuple[bytes, bytes]] = ()
    """To set: each name loses its values and gets these."""
    body: bytes = b""
    """New body; empty: unchanged."""
    clear_headers: Sequence[str] = ()
    """Names to remove, before `headers` are set."""
    terminate: bool = False
    """True ends the request: nothing is executed, and the client gets the fields below as they are."""
    status_code: int = 0
    """For the client; outside 200 to 599 it is 403."""
    response_headers: Sequence[tuple[bytes, bytes]] = ()
    """For the client; the default content type is application/json."""
    response_body: bytes = b""
    """For the client."""


@dataclass(frozen=True, slots=True)
class ResponseInterceptRequest:
    """A successful answer that is not streamed."""

    request_id: str
    """Id of this execution, the same in every hook."""
    source_format: str
    """Format that the client spoke; the body is in it."""
    model: str
    """Upstream model."""
    requested_model: str
    """Model as the client named it."""
    body: bytes
    """The answer's body as it stands."""
    stream: bool = False
    """Always False."""
    request_headers: Headers = field(default_factory=list)
    """Of the request as it was executed."""
    response_headers: Headers = field(default_factory=list)
    """Of the answer as they stand: the provider's, whether the client will see them or not."""
    original_request: bytes = b""
    """The client's body; empty where `needs_request_body` is False, or beside too large an answer."""
    request_body: bytes = b""
    """Body that was executed; empty where it equals `original_request`, or is too large beside it."""
    status_code: int = 200
    """Status of the answer."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host; read-only."""
    content_type: str = ""
    """Empty means application/json."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """As in RequestInterceptRequest."""


@dataclass(frozen=True, slots=True)
class ResponseInterceptResponse:
    """Changes to an answer."""

    headers: Sequence[tuple[bytes, bytes]] = ()
    """To set: each name loses its values and gets these."""
    body: bytes = b""
    """New body; empty: unchanged."""
    clear_headers: Sequence[str] = ()
    """Names to remove, before `headers` are set."""


@dataclass(frozen=True, slots=True)
class StreamStart:
    """What stays the same for a whole stream."""

    request_id: str
    """Id of this execution, the same in every hook."""
    trace_id: str
    """Id of the client's request, shared by nested executions."""
    source_format: str
    """Format that the client spoke; chunks are in it."""
    model: str
    """Upstream model."""
    requested_model: str
    """Model as the client named it."""
    request_headers: Headers = field(default_factory=list)
    """Of the request as it was executed."""
    original_request: bytes = b""
    """The client's body; empty where `needs_request_body` is False, or beside too large an answer."""
    request_body: bytes = b""
    """Body that was executed; empty where it equals `original_request`, or is too large beside it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host; read-only."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """As in RequestInterceptRequest; good until the stream ends."""


@dataclass(frozen=True, slots=True)
class StreamChunkInterceptRequest:
    """One chunk, or (index -1, empty body) the beginning of a stream."""

    start: StreamStart
    """What stays the same for the whole stream."""
    chunk_index: int
    """-1, then from 0; a chunk that an earlier interceptor dropped has a number too."""
    body: bytes
    """The chunk as it stands: for event streams mostly one event with its blank line."""
    response_headers: Headers
    """Of the answer as they stand."""
    history_chunks: Sequence[bytes]
    """Chunks that were delivered, oldest first, at most 64 and 1 MiB. Live: copy what is to be kept."""


@dataclass(frozen=True, slots=True)
class StreamChunkInterceptResponse:
    """Changes to one chunk. For index -1 only headers count."""

    headers: Sequence[tuple[bytes, bytes]] = ()
    """Of the answer, to set; once its head has gone to the client later calls alone see them."""
    body: bytes = b""
    """New chunk; empty: unchanged."""
    clear_headers: Sequence[str] = ()
    """Names to remove, before `headers` are set."""
    drop_chunk: bool = False
    """True drops the chunk: nobody sees it."""


class _Interceptor(Plugin):
    """What interceptors declare alike."""

    needs_request_body: ClassVar[bool] = True
    """False: request bodies come empty, which spares copies."""

    def capabilities(self) -> plugin_pb2.Capabilities:
        """Return the flags and what the interceptors do without."""
        declared = super().capabilities()
        if not self.needs_request_body:
            declared.interceptor_needs.no_request_body = True
        return declared


class RequestInterceptor(_Interceptor):
    """A plugin that rewrites requests, or ends them. A method that is not overridden is never called."""

    capability_flag: ClassVar = "request_interceptor"

    def capabilities(self) -> plugin_pb2.Capabilities:
        """Return the flags and which of the two methods there is."""
        declared = super().capabilities()
        cls = type(self)
        if cls.intercept_request_before_auth is RequestInterceptor.intercept_request_before_auth:
            declared.interceptor_needs.no_request_before_auth = True
        if cls.intercept_request_after_auth is RequestInterceptor.intercept_request_after_auth:
            declared.interceptor_needs.no_request_after_auth = True
        return declared

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Change or end a request once, before a credential is chosen; None: unchanged."""
        return None

    async def intercept_request_after_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Change or end one attempt, after its credential was chosen; None: unchanged."""
        return None


class ResponseInterceptor(_Interceptor):
    """A plugin that rewrites successful answers that are not streamed."""

    capability_flag: ClassVar = "response_interceptor"

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse | None:
        """Change an answer; None: unchanged."""
        raise NotImplementedError


class StreamChunkInterceptor(_Interceptor, Generic[State]):
    """
    A plugin that rewrites or drops the chunks of streamed answers.

    `State` is what `open_stream` returns for one stream: `StreamChunkInterceptor[None]` keeps nothing.
    Calls of one stream come one after the other.
    """

    capability_flag: ClassVar = "response_stream_interceptor"

    async def open_stream(self, start: StreamStart) -> State:
        """Return what this stream is to keep; the default keeps nothing."""
        return None  # type: ignore[return-value] # the default of StreamChunkInterceptor[None]

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: State
    ) -> StreamChunkInterceptResponse | None:
        """Change the answer's headers before its first chunk (pluginapi: ChunkIndex -1); None: unchanged."""
        return None

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: State
    ) -> StreamChunkInterceptResponse | None:
        """Change or drop one chunk; None: unchanged. 1 s at most."""
        raise NotImplementedError

    async def close_stream(self, state: State) -> None:
        """Release what a stream kept. Called once for each `open_stream`, however the stream ended."""
