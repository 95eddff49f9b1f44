"""
A gRPC server for servicers of the contract: one wrapper around each method does what all of them need.

The wrapper turns errors of the tree into a rich status, foreign exceptions into INTERNAL with an id that
the log line repeats, refuses unary calls without a deadline, asks *authenticate* who calls, refuses new
calls while draining and counts what is in flight. Servicers are plain objects: a coroutine method
`(request, context)` per unary RPC, an async generator method per stream. grpc.health.v1 is served beside
them. Not here: what plugins are (`patchbay.serve`), tokens (`patchbay.tokens`), signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from patchbay import errors, status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence

    from patchbay.tls import Tls

    Metadata = Sequence[tuple[str, str | bytes]]
    Authenticate = Callable[[str, Metadata], None]
    """Takes the method path and the call's metadata; raises Unauthenticated or PermissionDenied."""

_logger = logging.getLogger("patchbay.server")

_BESIDE: Final = 1 << 20
# An answer may be this large however small request bodies are kept.
_LEAST_BODY: Final = 32 << 20

DEFAULT_MESSAGE_LIMIT: Final = _LEAST_BODY + _BESIDE
"""Body limit of 32 MiB and 1 MiB for what travels beside a body."""

STREAM_WINDOW: Final = 256 << 10
"""Bytes that a stopped reader lets its peer send."""

# A provider's error body of 1 MiB travels in the trailers, in base64 where a peer insists.
_METADATA_LIMIT: Final = 2 << 20

_EXECUTOR = "/patchbay.plugin.v1.ExecutorService/"
WITHOUT_DEADLINE: Final = frozenset(
    {
        _EXECUTOR + "Execute",
        _EXECUTOR + "CountTokens",
        _EXECUTOR + "HttpRequest",
        "/patchbay.plugin.v1.CommandLinePluginService/ExecuteCommandLine",
    }
)
"""Unary methods whose limits the servicer keeps itself, upstream, or that a person waits for."""

READY: Final = "ready"
"""Health name of readiness; the empty name is the process as a whole."""


def message_limit_for(body_limit: int) -> int:
    """Return the largest message, bytes, between processes that take request bodies up to *body_limit*."""
    return max(body_limit, _LEAST_BODY) + _BESIDE


def wire_options(message_limit: int = DEFAULT_MESSAGE_LIMIT) -> list[tuple[str, int]]:
    """Return the gRPC options that both ends of a channel share."""
    return [
        ("grpc.max_receive_message_length", message_limit),
        ("grpc.max_send_message_length", message_limit),
        ("grpc.max_metadata_size", _METADATA_LIMIT),
        ("grpc.absolute_max_metadata_size", _METADATA_LIMIT),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Bandwidth probes grow windows, and with them what a stopped reader costs.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW),
    ]


def report_foreign(path: str, error: BaseException) -> str:
    """Log *error*, which nobody mapped, and return the id that the caller is told instead of its text."""
    error_id = secrets.token_hex(6)
    _logger.error(
        "unmapped error in %s, error id %s", path, error_id, exc_info=error, extra={"method": path}
    )
    return error_id


def is_foreign(error: BaseException) -> bool:
    """Whether only an id of *error* may leave: it is outside the tree, or our own bug."""
    return not isinstance(error, errors.PatchbayError) or isinstance(error, errors.Internal)


async def throw_into(generator: AsyncGenerator[Any, Any], error: BaseException) -> None:
    """
    Raise *error* where *generator* stands at its yield, and close it.

    A generator that waits at its yield does not see the cancellation of the task that drives it; this
    shows it. A finished one is left alone.
    """
    with contextlib.suppress(StopAsyncIteration, asyncio.CancelledError):
        await generator.athrow(error)
    await generator.aclose()


class Served:
    """What a server did under one method."""

    __slots__ = ("answered", "errors", "open", "seconds", "stream")

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        """Whether its answers are streams."""
        self.open = 0
        """Calls that run now."""
        self.answered = 0
        """Calls that ended well."""
        self.errors: dict[str, int] = {}
        """gRPC code, in lower case → calls that ended so."""
        self.seconds = 0.0
        """Time that all of them took."""

    def begin(self) -> float:
        """Count a call that starts; returns what `end` wants to know."""
        self.open += 1
        return time.monotonic()

    def failed(self, error: BaseException) -> None:
        """Count how a call failed."""
        code = "cancelled"
        if not isinstance(error, asyncio.CancelledError):
            code = _CODES[status.code_of(error)].name.lower()
        self.errors[code] = self.errors.get(code, 0) + 1

    def end(self, started: float) -> None:
        """Count a call that is over."""
        self.open -= 1
        self.seconds += time.monotonic() - started


class Server:
    """
    One listening gRPC server.

    Args:
        servicers: Full service name to servicer; the services' descriptors must be imported.
        authenticate: Asked before each call but health's.
        message_limit: Largest message in either direction, bytes.
        without_deadline: Paths of unary methods that may be called without a deadline.
        max_connection_age: Seconds after which a client is asked to connect anew, so that it sees new
            addresses; None for never.
        tls: Certificates; None for plain HTTP/2.
    """

    def __init__(
        self,
        servicers: Mapping[str, object],
        *,
        authenticate: Authenticate | None = None,
        message_limit: int = DEFAULT_MESSAGE_LIMIT,
        without_deadline: Collection[str] = WITHOUT_DEADLINE,
        max_connection_age: float | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        self._authenticate = authenticate
        self._without_deadline = frozenset(without_deadline)
        self._services = tuple(servicers)
        self._draining = False
        self._in_flight = 0
        self.served: dict[str, Served] = {}
        """What was served so far, by method path."""
        self._idle = asyncio.Event()
        self._idle.set()
        options = [
            *wire_options(message_limit),
            # Clients ping each 30 s; without this the server calls that too many.
            ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
            ("grpc.so_reuseport", 0),
        ]
        if max_connection_age is not None:
            options.append(("grpc.max_connection_age_ms", int(max_connection_age * 1000)))
        self._server = grpc.aio.server(options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        pool = descriptor_pool.Default()
        for name, servicer in servicers.items():
            self._add(pool.FindServiceByName(name), servicer)

    @property
    def in_flight(self) -> int:
        """Calls that run now, health aside."""
        return self._in_flight

    def _add(self, service: Any, servicer: object) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in service.methods:
            implementation = getattr(servicer, method.name, None)
            if implementation is None:
                continue
            path = f"/{service.full_name}/{method.name}"
            kind = (
                "stream" if method.client_streaming else "unary",
                "stream" if method.server_streaming else "unary",
            )
            wrapper = self._stream(path, implementation)
            if kind[1] == "unary":
                wrapper = self._unary(path, implementation)
            handlers[method.name] = getattr(grpc, f"{kind[0]}_{kind[1]}_rpc_method_handler")(
                wrapper,
                request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
                response_serializer=message_factory.GetMessageClass(
                    method.output_type
                ).SerializeToString,
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )

    def _admit(self, path: str, context: Any, *, unary: bool) -> None:
        if self._draining:
            raise errors.Unavailable(
                "this process is shutting down; call another address",
                reason="DRAINING",
                sent=errors.Sent.NO,
            )
        if self._authenticate is not None:
            self._authenticate(path, context.invocation_metadata() or ())
        if unary and path not in self._without_deadline and context.time_remaining() is None:
            raise errors.InvalidRequest(
                f"{path} needs a deadline; set a timeout on the call", reason="NO_DEADLINE"
            )

    def _enter(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    def _unary(
        self, path: str, method: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        served = self.served[path] = Served(stream=False)

        async def handle(request: Any, context: Any) -> Any:
            self._enter()
            started = served.begin()
            try:
                self._admit(path, context, unary=True)
                answer = await method(request, context)
            except BaseException as error:  # noqa: BLE001 - the boundary: each becomes a status
                served.failed(error)
                await _abort(context, path, error)
            else:
                served.answered += 1
                return answer
            finally:
                served.end(started)
                self._leave()

        return handle

    def _stream(
        self, path: str, method: Callable[[Any, Any], AsyncGenerator[Any, None]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        served = self.served[path] = Served(stream=True)

        # A coroutine that writes, not a generator: one cancelled at its own yield could not pass that on.
        async def handle(request: Any, context: Any) -> None:
            self._enter()
            started = served.begin()
            try:
                self._admit(path, context, unary=False)
                generator = method(request, context)
                try:
                    async for message in generator:
                        await context.write(message)
                except asyncio.CancelledError as cancelled:
                    await throw_into(generator, cancelled)
                    raise
                finally:
                    await generator.aclose()
                served.answered += 1
            except BaseException as error:  # noqa: BLE001 - the boundary: each becomes a status
                served.failed(error)
                await _abort(context, path, error)
            finally:
                served.end(started)
                self._leave()

        return handle

    async def start(self, *addresses: str, serving: bool = True) -> int:
        """
        Listen on *addresses* (`host:port`, port 0 picks one, or `unix:/path`) and return the last port.

        Raises:
            FailedPrecondition: An address cannot be bound.
        """
        port = 0
        for address in addresses:
            try:
                if self._tls is not None and not address.startswith("unix:"):
                    port = self._server.add_secure_port(address, self._tls.server_credentials())
                else:
                    port = self._server.add_insecure_port(address)
            except RuntimeError as error:
                raise errors.FailedPrecondition(
                    f"cannot listen on {address}; is another process there?",
                    reason="ADDRESS_IN_USE",
                ) from error
        await self._server.start()
        if serving:
            await self.set_serving(True)
        return port

    async def set_serving(self, serving: bool) -> None:
        """Tell health watchers whether calls are welcome."""
        value = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", READY, *self._services):
            await self._health.set(name, value)

    async def drain(self, grace: float, *, notice: float = 1.0) -> None:
        """
        Stop without cutting: NOT_SERVING, *notice* seconds for callers to see it, then refuse new calls.

        Calls in flight may go on for *grace* seconds after the notice. Ends like `stop`.
        """
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(notice)
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        await self.stop()

    async def stop(self) -> None:
        """Cancel what runs and close. Idempotent."""
        self._draining = True
        await self._server.stop(None)

    async def wait_closed(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


async def _abort(context: Any, path: str, error: BaseException) -> None:
    """End the call with the status of *error*; a call that the caller has left ends as cancelled."""
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if context.cancelled() or context.done() or (task is not None and task.cancelling()):
            raise error
        error = errors.Cancelled("the servicer gave the call up")
    elif not isinstance(error, Exception):
        raise error
    error_id = report_foreign(path, error) if is_foreign(error) else ""
    wire = status.to_status(error, error_id=error_id)
    await context.abort(
        _CODES[wire.code],
        wire.message,
        ((status.DETAILS_KEY, wire.SerializeToString()),),
    )


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
