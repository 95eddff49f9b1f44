"""
The channel to another process: grpc.aio, with the errors of the tree instead of its own.

A failure that no answer stands behind is Unavailable(reason TRANSPORT) or DeadlineExceeded(reason
CALL_DEADLINE); `sent` is NO when the connection was never made. Not here: which address to call
(plugins/addresses.py), and retries, which gRPC is told not to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, Generic

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from patchbay import errors, status
from patchbay.server import DEFAULT_MESSAGE_LIMIT, wire_options
from patchbay.tls import open_channel
from patchbay_gateway.kernel.channels.port import (
    ANSWER_TOO_LARGE,
    CALL_DEADLINE,
    MESSAGE_TOO_LARGE,
    TRANSPORT,
    Metadata,
    Method,
    Req,
    Res,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from patchbay.tls import Tls

_SERVICE_CONFIG: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

CLOSE_GRACE: Final = 1.0
"""Seconds that `aclose` waits for gRPC to settle a cancelled call."""

# What gRPC says when a call failed before anything was written.
_NEVER_SENT: Final = (
    "failed to connect",
    "Connection refused",
    "DNS resolution failed",
    "No route",
)


class RemoteChannel:
    """
    One gRPC channel; made inside a running loop.

    Args:
        address: `host:port`, `unix:/path`, or any gRPC target; several addresses behind one name are used
            in turn.
        metadata: Asked before each call for what goes in front of the call's own metadata.
        message_limit: Largest message in either direction, bytes.
        tls: Certificates; None for plain HTTP/2.
    """

    def __init__(
        self,
        address: str,
        *,
        metadata: Callable[[], Metadata] | None = None,
        message_limit: int = DEFAULT_MESSAGE_LIMIT,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self._metadata = metadata
        self._channel = open_channel(
            address,
            [
                *wire_options(message_limit),
                ("grpc.enable_retries", 0),
                ("grpc.service_config", _SERVICE_CONFIG),
                # A peer that comes back is wanted at once, not after the default two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 2000),
                # The default of half a minute is how long a restarted service would stay unseen.
                ("grpc.dns_min_time_between_resolutions_ms", 1000),
                # Two channels to one address must not share a connection: each is closed on its own.
                ("grpc.use_local_subchannel_pool", 1),
            ],
            tls,
        )
        self._stubs: dict[str, Any] = {}
        self._closed = False

    def _stub(self, kind: str, method: Method[Any, Any]) -> Any:
        stub = self._stubs.get(method.path)
        if stub is None:
            if self._closed:
                raise _closed()
            stub = self._stubs[method.path] = getattr(self._channel, kind)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub

    def _with_own(self, metadata: Metadata) -> Metadata | None:
        return (self._metadata() + metadata if self._metadata else metadata) or None

    async def unary(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> Res:
        """Call and wait for the one answer (port.Channel)."""
        stub = self._stub("unary_unary", method)
        try:
            response: Res = await stub(request, timeout=deadline, metadata=self._with_own(metadata))
        except grpc.aio.AioRpcError as error:
            raise _mapped(error) from None
        except grpc.aio.UsageError:
            raise _closed() from None
        except asyncio.CancelledError:
            _raise_unless_ours("the channel was closed under the call")
            raise
        if response is None:
            raise _malformed()
        return response

    def stream(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> _Stream[Res]:
        """Start a server stream (port.Channel)."""
        stub = self._stub("unary_stream", method)
        return _Stream(stub, request, deadline, self._with_own(metadata))

    def bidi(
        self,
        method: Method[Req, Res],
        requests: AsyncIterable[Req],
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> _Stream[Res]:
        """Start a bidirectional stream (port.Channel)."""
        stub = self._stub("stream_stream", method)
        return _Stream(stub, None, deadline, self._with_own(metadata), requests)

    async def close(self) -> None:
        """Cancel what runs and release everything. Idempotent."""
        self._closed = True
        self._stubs.clear()
        await self._channel.close()


class _Stream(Generic[Res]):
    """One stream; the call begins with the first iteration."""

    __slots__ = (
        "_call",
        "_deadline",
        "_error",
        "_messages",
        "_metadata",
        "_pump",
        "_request",
        "_requests",
        "_stopped",
        "_stub",
    )

    def __init__(
        self,
        stub: Any,
        request: Any,
        deadline: float | None,
        metadata: Metadata | None,
        requests: AsyncIterable[Any] | None = None,
    ) -> None:
        self._stub = stub
        self._request = request
        self._deadline = deadline
        self._metadata = metadata
        self._requests = requests
        self._pump: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._call: Any = None
        self._messages: Any = None
        self._stopped = False

    def __aiter__(self) -> AsyncIterator[Res]:
        return self

    async def __anext__(self) -> Res:
        if self._messages is None:
            self._start()
        try:
            # Not `read()`: that drops what has arrived once the status is known.
            message: Res = await self._messages.__anext__()
        except StopAsyncIteration:
            self._stop_pump()
            raise
        except grpc.aio.AioRpcError as error:
            self._stop_pump()
            raise _mapped(error) from None
        except asyncio.CancelledError:
            self._stop_pump()
            if self._error is not None:
                raise self._error from None
            _raise_unless_ours("the call was cancelled")
            raise
        if message is None:
            self.cancel()
            raise _malformed()
        return message

    def _start(self) -> None:
        if self._stopped:
            raise errors.Cancelled("the call was cancelled")
        try:
            if self._requests is None:
                self._call = self._stub(
                    self._request, timeout=self._deadline, metadata=self._metadata
                )
            else:
                # gRPC's own pump outlives a call that the peer ended; ours does not.
                self._call = self._stub(timeout=self._deadline, metadata=self._metadata)
                self._pump = asyncio.create_task(self._feed(self._requests))
        except grpc.aio.UsageError:
            raise _closed() from None
        self._messages = self._call.__aiter__()

    async def _feed(self, requests: AsyncIterable[Any]) -> None:
        call = self._call
        try:
            async for request in requests:
                await call.write(request)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended; the reader learns how
        except Exception as error:  # noqa: BLE001 - the caller's own error goes back to the caller
            self._error = error
            call.cancel()

    def _stop_pump(self) -> None:
        if self._pump is not None:
            self._pump.cancel()

    def cancel(self) -> None:
        """Cancel the call without waiting. Idempotent."""
        self._stopped = True
        self._stop_pump()
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        """Cancel the call if it still runs and wait until nothing of it is left. Idempotent."""
        self.cancel()
        if self._call is None:
            return
        if not self._call.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_GRACE):
                    await self._call.code()
        await self._messages.aclose()
        if self._pump is not None:
            await asyncio.wait([self._pump])


def _mapped(error: grpc.aio.AioRpcError) -> errors.PatchbayError:
    """Return the error of the tree, marked when the channel made it and not the peer."""
    code, details = error.code(), error.details() or ""
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == status.DETAILS_KEY and isinstance(value, bytes):
            try:
                return status.from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    if code is grpc.StatusCode.UNAVAILABLE:
        never = any(mark in details for mark in _NEVER_SENT)
        return errors.Unavailable(
            details, reason=TRANSPORT, sent=errors.Sent.NO if never else errors.Sent.UNKNOWN
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(details, reason=CALL_DEADLINE)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.FailedPrecondition(details, reason="UNIMPLEMENTED")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        answer = "CLIENT: Received" in details or "SERVER: Sent" in details
        reason = ANSWER_TOO_LARGE if answer else MESSAGE_TOO_LARGE
        return errors.ResourceExhausted(details, reason=reason)
    return status.from_rpc_error(code, details, ())


def _raise_unless_ours(message: str) -> None:
    """
    Raise Cancelled when nobody cancelled the running task.

    gRPC raises CancelledError for a call that was cancelled, too; in a task that was not, that would end
    an innocent caller.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise errors.Cancelled(message) from None


def _closed() -> errors.Unavailable:
    return errors.Unavailable("the channel is closed", reason="CHANNEL_CLOSED", sent=errors.Sent.NO)


def _malformed() -> errors.Internal:
    return errors.Internal("the peer's message does not parse", reason="MALFORMED_MESSAGE")
