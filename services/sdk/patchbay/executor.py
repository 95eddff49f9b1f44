"""
Executors: the base classes of a plugin that calls a provider, and their adapter to the wire.

An executor turns one request into one upstream call and never retries. It raises `errors.UpstreamError`
when the provider fails, with all that is known about the failure. Cancellation of the call arrives as
CancelledError (or the close of the generator) and must end the upstream call at once.

The dataclasses are thin: a request is a view on its message that decodes only what is asked for, and a
batch is a list of chunks, so that an executor in the gateway's process costs microseconds.

Not here: registration and the server (`patchbay.serve`), HTTP clients (the executor's own matter).
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from patchbay import errors, executor_wire
from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient, HostConnections
from patchbay.plugin.v1 import executor_pb2, executor_pb2_grpc, identifier_pb2, plugin_pb2
from patchbay.status import headers_from_map, headers_to_map

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from google.protobuf.duration_pb2 import Duration

    from patchbay.errors import Headers
    from patchbay.secrets import OpenedSecret, SecretOpener
    from patchbay.type.v1 import secret_pb2

    class CallContext(Protocol):
        """What the adapter asks of a call; grpc.aio's context and the in-process one have it."""

        def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
            """The caller's metadata."""


FIRST_BYTE_TIMEOUT = 120.0
"""Seconds, where the provider's settings say nothing."""
IDLE_TIMEOUT = 300.0
"""Seconds, where the provider's settings say nothing."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt consumed so far, cumulative (patchbay.type.v1.Usage)."""

    items: tuple[tuple[str, int], ...]
    """(unit, quantity); `input_tokens` includes the cache's, `output_tokens` includes reasoning."""
    estimated: bool = False
    """True when we counted because the provider had not said."""


@dataclass(frozen=True, slots=True)
class ExecutorRequest:
    """One model execution or token count: a view on the message."""

    message: executor_pb2.ExecutorRequest
    """The message; not to be changed."""
    opener: SecretOpener | None = None
    """Opens the secrets of this plugin; None where there are no keys."""
    plugin_id: str = ""
    """Whose call this is."""
    now: Callable[[], float] = time.time
    """Unix seconds."""
    callbacks: HostClient = UNREACHABLE
    """What the plugin may ask of the gateway meanwhile."""

    @property
    def model(self) -> str:
        """Upstream model name."""
        return self.message.model

    @property
    def format(self) -> str:
        """Format of the payload and of the answer."""
        return self.message.format

    @property
    def operation(self) -> str:
        """`chat`, `completions`, `embeddings` or `count_tokens`."""
        return self.message.operation

    @property
    def payload(self) -> bytes:
        """The body for the provider."""
        return self.message.payload

    @property
    def alt(self) -> str:
        """Alternate route or mode suffix, for example Gemini's `alt`."""
        return self.message.alt

    @property
    def attempt_uid(self) -> str:
        """Id of this attempt."""
        return self.message.attempt_uid

    @property
    def provider(self) -> executor_pb2.ProviderSettings:
        """Where and how to call the provider."""
        return self.message.provider

    @property
    def first_byte_timeout(self) -> float:
        """Seconds until the first byte of the answer's body."""
        provider = self.message.provider
        if not provider.HasField("first_byte_timeout"):
            return FIRST_BYTE_TIMEOUT
        return _seconds(provider.first_byte_timeout)

    @property
    def idle_timeout(self) -> float:
        """Seconds between two bytes of the answer."""
        provider = self.message.provider
        if not provider.HasField("idle_timeout"):
            return IDLE_TIMEOUT
        return _seconds(provider.idle_timeout)

    @property
    def token_factor(self) -> float:
        """Factor of the estimate UTF-8 bytes / 4, where the provider does not count."""
        return self.message.provider.token_factor or 1.0

    def header(self, name: str) -> str:
        """Return the first value of the client's header *name* (lower case), or an empty string."""
        headers = self.message.headers
        return headers[name].values[0] if name in headers and headers[name].values else ""

    def headers(self) -> Headers:
        """Return the client's headers as pairs."""
        return headers_from_map(self.message.headers)

    def secret(self) -> OpenedSecret | None:
        """
        Return the credential's opened secret, None when the provider needs none.

        Raises:
            FailedPrecondition: expired, for another plugin, or no key to open it with.
        """
        message = self.message
        if not message.HasField("secret"):
            return None
        return _open(self.opener, message.secret, self.plugin_id, self.now())


@dataclass(frozen=True, slots=True)
class ExecutorHTTPRequest:
    """One plain HTTP request with a credential: a view on the message."""

    message: executor_pb2.ExecutorHTTPRequest
    """The message; not to be changed."""
    opener: SecretOpener | None = None
    """As in ExecutorRequest."""
    plugin_id: str = ""
    """As in ExecutorRequest."""
    now: Callable[[], float] = time.time
    """Unix seconds."""
    callbacks: HostClient = UNREACHABLE
    """As in ExecutorRequest."""

    @property
    def provider(self) -> executor_pb2.ProviderSettings:
        """Where and how to call the provider."""
        return self.message.provider

    @property
    def first_byte_timeout(self) -> float:
        """Seconds until the first byte of the answer's body."""
        provider = self.message.provider
        if not provider.HasField("first_byte_timeout"):
            return FIRST_BYTE_TIMEOUT
        return _seconds(provider.first_byte_timeout)

    @property
    def idle_timeout(self) -> float:
        """Seconds between two bytes of the answer."""
        provider = self.message.provider
        if not provider.HasField("idle_timeout"):
            return IDLE_TIMEOUT
        return _seconds(provider.idle_timeout)

    def headers(self) -> Headers:
        """Return the request's headers as pairs."""
        return headers_from_map(self.message.headers)

    def secret(self) -> OpenedSecret | None:
        """Return the credential's opened secret, as ExecutorRequest.secret does."""
        message = self.message
        if not message.HasField("secret"):
            return None
        return _open(self.opener, message.secret, self.plugin_id, self.now())


@dataclass(frozen=True, slots=True)
class ExecutorResponse:
    """A non-streamed answer."""

    payload: bytes
    """Body as the provider sent it."""
    status: int = 200
    """The provider's 2xx status."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Lower-case names, hop-by-hop ones removed."""
    content_type: str = ""
    """Empty means application/json."""
    usage: Usage | None = None
    """None: nothing is known."""
    metadata: bytes = b""
    """JSON object with executor-specific data."""


@dataclass(frozen=True, slots=True)
class ExecutorHTTPResponse:
    """The answer to a plain HTTP request; any status is an answer."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class StreamHead:
    """The first message of a stream."""

    status: int = 200
    """The provider's 2xx status."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Lower-case names, hop-by-hop ones removed."""
    content_type: str = ""
    """Empty means text/event-stream."""


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """Chunks that were waiting together."""

    chunks: Sequence[bytes]
    """Each one whole event with its blank line, never empty."""
    usage_so_far: Usage | None = None
    """Consumption up to and including these chunks; None: no news."""


@dataclass(frozen=True, slots=True)
class StreamTail:
    """The last message of a complete stream."""

    usage: Usage | None = None
    """Final consumption."""
    metadata: bytes = b""
    """JSON object with executor-specific data."""


StreamItem = StreamHead | StreamBatch | StreamTail
"""What `Executor.execute_stream` yields: one head, any number of batches, one tail."""


class Executor(Plugin):
    """A plugin that calls a provider. Subclasses implement what their `operations` name."""

    input_formats: ClassVar[Sequence[str]] = ()
    """Formats taken as they are."""
    output_formats: ClassVar[Sequence[str]] = ()
    """Formats of the answers."""
    operations: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Operations by input format; empty means `chat` in each."""
    model_scope: ClassVar[plugin_pb2.ExecutorModelScope.ValueType] = (
        plugin_pb2.EXECUTOR_MODEL_SCOPE_BOTH
    )
    """Which model registrations it serves."""

    capability_flag: ClassVar = "executor"

    def capabilities(self) -> plugin_pb2.Capabilities:
        """Return the executor capability as the class attributes say, beside the others."""
        declared = super().capabilities()
        declared.executor.CopyFrom(
            plugin_pb2.ExecutorCapability(
                model_scope=self.model_scope,
                input_formats=self.input_formats,
                output_formats=self.output_formats,
                operations=[
                    plugin_pb2.FormatOperations(format=name, operations=names)
                    for name, names in self.operations.items()
                ],
            )
        )
        return declared

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """
        Run one non-streamed call.

        Raises:
            UpstreamError: the provider failed.
        """
        raise _unsupported(self.id, "execute")

    def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """
        Run one streamed call: yield a head, batches, a tail; write it as an async generator.

        Raises:
            UpstreamError: the provider failed, before the head or after any batch.
        """
        raise _unsupported(self.id, "execute_stream")

    async def count_tokens(self, request: ExecutorRequest) -> ExecutorResponse:
        """Count tokens of a request without running it."""
        raise _unsupported(self.id, "count_tokens")

    async def http_request(self, request: ExecutorHTTPRequest) -> ExecutorHTTPResponse:
        """Run one plain HTTP request with the credential, within its allowed origins."""
        raise _unsupported(self.id, "http_request")


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """
    Serves executors: messages in, dataclasses out, dispatched by the metadata `patchbay-plugin`.

    Args:
        executors: Those of this address.
        opener: Opens secrets sealed for any of them; None where there are no keys.
        hosts: The ways back to hosts; None: there are none.
        now: Unix seconds.
    """

    def __init__(
        self,
        executors: Iterable[Executor],
        *,
        opener: SecretOpener | None = None,
        hosts: HostConnections | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hosts = hosts
        self._executors = {executor.id: executor for executor in executors}
        self._opener = opener
        self._now = now
        only = list(self._executors.values())
        self._only = only[0] if len(only) == 1 else None

    async def Identifier(  # noqa: N802 - the method's name on the wire
        self, request: identifier_pb2.IdentifierRequest, context: CallContext
    ) -> identifier_pb2.IdentifierResponse:
        """Name the provider key."""
        return identifier_pb2.IdentifierResponse(identifier=self._executor(context).identifier)

    async def Execute(  # noqa: N802 - the method's name on the wire
        self, request: executor_pb2.ExecutorRequest, context: CallContext
    ) -> executor_pb2.ExecutorResponse:
        """Run one non-streamed call."""
        executor = self._executor(context)
        return executor_wire.response_message(
            await executor.execute(self._request(request, executor, context))
        )

    async def ExecuteStream(  # noqa: N802 - the method's name on the wire
        self, request: executor_pb2.ExecutorRequest, context: CallContext
    ) -> AsyncGenerator[executor_pb2.ExecutorStreamResponse, None]:
        """Run one streamed call."""
        executor = self._executor(context)
        items = executor.execute_stream(self._request(request, executor, context))
        # Closed here and not by the garbage collector: the provider must notice a cancel at once.
        batch = executor_wire.BatchWriter().message
        async with aclosing(items):
            async for item in items:
                if isinstance(item, StreamBatch):
                    yield batch(item)
                elif isinstance(item, StreamHead):
                    yield executor_wire.head_message(item)
                else:
                    yield executor_wire.tail_message(item)

    async def CountTokens(  # noqa: N802 - the method's name on the wire
        self, request: executor_pb2.ExecutorRequest, context: CallContext
    ) -> executor_pb2.ExecutorResponse:
        """Count tokens."""
        executor = self._executor(context)
        return executor_wire.response_message(
            await executor.count_tokens(self._request(request, executor, context))
        )

    async def HttpRequest(  # noqa: N802 - the method's name on the wire
        self, request: executor_pb2.ExecutorHTTPRequest, context: CallContext
    ) -> executor_pb2.ExecutorHTTPResponse:
        """Run one plain HTTP request."""
        executor = self._executor(context)
        answer = await executor.http_request(
            ExecutorHTTPRequest(
                request, self._opener, executor.id, self._now, self._callbacks(executor, context)
            )
        )
        message = executor_pb2.ExecutorHTTPResponse(
            status_code=answer.status, body=answer.body, content_type=answer.content_type
        )
        headers_to_map(answer.headers, message.headers)
        return message

    def _request(
        self, message: executor_pb2.ExecutorRequest, executor: Executor, context: CallContext
    ) -> ExecutorRequest:
        callbacks = self._callbacks(executor, context)
        return ExecutorRequest(message, self._opener, executor.id, self._now, callbacks)

    def _callbacks(self, executor: Executor, context: CallContext) -> HostClient:
        if self._hosts is None:
            return UNREACHABLE
        return self._hosts.client(executor.id, context.invocation_metadata())

    def _executor(self, context: CallContext) -> Executor:
        for key, value in context.invocation_metadata() or ():
            if key == "patchbay-plugin":
                executor = self._executors.get(value) if isinstance(value, str) else None
                if executor is None:
                    raise errors.NotFound(
                        f"no executor {value!r} is served here", reason="PLUGIN_UNKNOWN"
                    )
                return executor
        if self._only is None:
            raise errors.InvalidRequest(
                "several executors are served here; name one in the metadata patchbay-plugin",
                reason="PLUGIN_NOT_NAMED",
            )
        return self._only


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _open(
    opener: SecretOpener | None, sealed: secret_pb2.SealedSecret, plugin_id: str, now: float
) -> OpenedSecret:
    if sealed.plugin_id != plugin_id:
        raise errors.FailedPrecondition(
            f"the secret is sealed for plugin {sealed.plugin_id}, not {plugin_id}",
            reason="SECRET_FOREIGN",
            sent=errors.Sent.NO,
        )
    if opener is None:
        raise errors.FailedPrecondition(
            f"plugin {plugin_id} has no key; set PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE",
            reason="SECRET_KEY_UNKNOWN",
            sent=errors.Sent.NO,
        )
    return opener.open(sealed, now)


def _unsupported(plugin_id: str, what: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"executor {plugin_id} does not serve {what}", reason="OPERATION_NOT_SUPPORTED"
    )
