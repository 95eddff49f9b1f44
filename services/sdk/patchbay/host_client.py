"""
The gateway as a plugin may use it: HTTP, model calls, credentials, logs (patchbay.host.v1.HostService).

A request that grants callbacks has a client in its `callbacks`, bound to the scope of that call:

    answer = await request.callbacks.execute_model(HostModelExecutionRequest("gpt-5.5", body))
    async with await request.callbacks.execute_model_stream(asked) as stream:
        async for chunk in stream: …

A plugin's own tasks, outside of calls, use `patchbay.serve.connect_host` (PATCHBAY_HOST_ADDRESS). What is
granted is in the plugin's declaration (`host_access`); what is not, ends as PermissionDenied. All methods
raise `patchbay.errors`. Not here: the host's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets as random
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from patchbay import errors, keys, status, wire
from patchbay.host.v1 import auth_pb2, http_pb2, log_pb2, model_pb2
from patchbay.host_types import (
    HostAuth,
    HostAuthFileEntry,
    HostModelExecutionRequest,
    HostModelExecutionResponse,
    HTTPRequest,
    HTTPResponse,
)
from patchbay.secrets import SecretOpener, seal
from patchbay.server import DEFAULT_MESSAGE_LIMIT, wire_options
from patchbay.tls import open_channel
from patchbay.tokens import CALLBACK_KEY, PLUGIN_KEY, SCOPE_KEY, TokenSource, host_audience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from google.protobuf.message import Message

    from patchbay.errors import Headers
    from patchbay.tls import Tls

_HOST: Final = "/patchbay.host.v1.HostService/"
_MAX_CHANNELS: Final = 64
_RETURN_FOR: Final = 900.0
"""Seconds that a returned document may be on its way."""

MODEL_TIMEOUT: Final = 600.0
"""Seconds that a model call may take, where the caller says nothing."""

_LEVELS: Final = {
    "trace": log_pb2.LOG_LEVEL_TRACE,
    "debug": log_pb2.LOG_LEVEL_DEBUG,
    "info": log_pb2.LOG_LEVEL_INFO,
    "warn": log_pb2.LOG_LEVEL_WARN,
    "warning": log_pb2.LOG_LEVEL_WARN,
    "error": log_pb2.LOG_LEVEL_ERROR,
}


class HostStream:
    """
    A running answer: iterate its chunks, and close it; `async with` does.

    The end of the call in which it was opened closes it too.
    """

    def __init__(self, call: Any, status_code: int, headers: Headers, content_type: str) -> None:
        self._call = call
        self._chunks: list[bytes] = []
        self._closed = False
        self.status_code = status_code
        """HTTP status."""
        self.headers = headers
        """Headers, names in lower case."""
        self.content_type = content_type
        """Content type; empty where the headers say it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            message = None if self._closed else await _next(self._call)
            if message is None:
                raise StopAsyncIteration
            if isinstance(message, http_pb2.HTTPStreamResponse):
                self._chunks = [message.payload]
            else:
                self._chunks = list(reversed(message.batch.chunks))
        return self._chunks.pop()

    async def aclose(self) -> None:
        """Cancel what still runs. Idempotent."""
        self._closed = True
        self._chunks.clear()
        self._call.cancel()


class HostClient:
    """
    The gateway, for one plugin and, where there is one, in the scope of one call.

    Args:
        plugin_id: Whose client it is.
        connections: The ways to hosts; None: there is none.
        address: `host:port` of a HostService; empty: there is none.
        scope: Id of the call of the host; empty outside of one.
    """

    __slots__ = ("_address", "_connections", "_plugin_id", "_scope")

    def __init__(
        self,
        plugin_id: str = "",
        connections: HostConnections | None = None,
        address: str = "",
        scope: str = "",
    ) -> None:
        self._plugin_id = plugin_id
        self._connections = connections
        self._address = address
        self._scope = scope

    @property
    def reachable(self) -> bool:
        """Whether there is a host to call."""
        return self._connections is not None and bool(self._address)

    async def http_do(self, request: HTTPRequest, *, seconds: float = 30.0) -> HTTPResponse:
        """
        Make one HTTP request; any status is an answer.

        Raises:
            PermissionDenied: no grant, or the address is not one that plugins may reach.
            Unavailable: HTTP_CONNECTION; `sent` is NO when nothing was written.
        """
        message = http_pb2.HTTPRequest()
        wire.write(request, message)
        answer = await self._unary("HttpDo", message, http_pb2.HTTPResponse, seconds)
        return wire.read(HTTPResponse, answer)

    async def http_do_stream(self, request: HTTPRequest) -> HostStream:
        """Make one HTTP request and return when its head is there; raises as `http_do`."""
        message = http_pb2.HTTPRequest()
        wire.write(request, message)
        call, first = await self._stream("HttpDoStream", message, http_pb2.HTTPStreamResponse)
        head = first.head
        return HostStream(call, head.status_code, status.headers_from_map(head.headers), "")

    async def execute_model(
        self, request: HostModelExecutionRequest, *, seconds: float = MODEL_TIMEOUT
    ) -> HostModelExecutionResponse:
        """
        Run one model call through the gateway, without this plugin's own interceptors and router.

        Raises:
            UpstreamError: the call failed, with the status that a client would have got.
            FailedPrecondition: too many model calls within model calls, or no model calls here.
        """
        message = _model_message(request, stream=False)
        answer = await self._unary(
            "ExecuteModel", message, model_pb2.HostModelExecutionResponse, seconds
        )
        return wire.read(HostModelExecutionResponse, answer)

    async def execute_model_stream(self, request: HostModelExecutionRequest) -> HostStream:
        """Run one streamed model call and return when its head is there; raises as `execute_model`."""
        message = _model_message(request, stream=True)
        call, first = await self._stream(
            "ExecuteModelStream", message, model_pb2.HostModelStreamResponse
        )
        head = first.head
        return HostStream(
            call, head.status_code, status.headers_from_map(head.headers), head.content_type
        )

    async def list_auths(self, provider: str = "") -> Sequence[HostAuthFileEntry]:
        """Return the credentials that the grant covers, ordered by name."""
        answer = await self._unary(
            "ListAuths",
            auth_pb2.HostAuthListRequest(provider=provider),
            auth_pb2.HostAuthListResponse,
        )
        return tuple(wire.read(HostAuthFileEntry, file) for file in answer.files)

    async def get_auth(self, auth_index: str) -> HostAuth:
        """
        Return the document of one credential, secrets included.

        Raises:
            NotFound: AUTH_UNKNOWN, or the grant does not cover it.
        """
        answer = await self._unary(
            "GetAuth",
            auth_pb2.HostAuthGetRequest(auth_index=auth_index),
            auth_pb2.HostAuthGetResponse,
        )
        text = self._reached().opener(self._plugin_id).open(answer.json)["document"]
        return HostAuth(
            answer.auth_index,
            answer.name,
            answer.path,
            wire.json_object(text.encode(), "the document"),
        )

    async def get_auth_runtime(self, auth_index: str) -> HostAuthFileEntry:
        """Return the state of one credential; raises as `get_auth`."""
        answer = await self._unary(
            "GetAuthRuntime",
            auth_pb2.HostAuthGetRequest(auth_index=auth_index),
            auth_pb2.HostAuthGetRuntimeResponse,
        )
        return wire.read(HostAuthFileEntry, answer.auth)

    async def save_auth(self, name: str, document: Mapping[str, object]) -> str:
        """
        Keep a credential document and return where, for people.

        Args:
            name: Ends in `.json`, no directories.
            document: A JSON object.
        """
        sealed = seal(
            self._reached().return_key(self._plugin_id),
            self._plugin_id,
            name,
            0,
            (),
            time.time() + _RETURN_FOR,
            {"document": json.dumps(dict(document), ensure_ascii=False)},
        )
        answer = await self._unary(
            "SaveAuth",
            auth_pb2.HostAuthSaveRequest(name=name, json=sealed),
            auth_pb2.HostAuthSaveResponse,
        )
        return str(answer.path)

    async def log(self, level: str, message: str, **fields: object) -> None:
        """Write one line to the gateway's log, with the ids of the plugin and of the request."""
        request = log_pb2.HostLogRequest(
            level=_LEVELS.get(level, log_pb2.LOG_LEVEL_DEBUG),
            message=message,
            fields=wire.json_bytes(fields),
        )
        await self._unary("Log", request, log_pb2.HostLogResponse, 5.0)

    def _reached(self) -> HostConnections:
        if self._connections is None or not self._address:
            raise errors.FailedPrecondition(
                "there is no gateway to call: the declaration of the plugin grants no callbacks "
                "(host_access), or PATCHBAY_HOST_ADDRESS is not set",
                reason="HOST_NOT_REACHABLE",
            )
        return self._connections

    async def _unary(
        self, name: str, request: Message, answer: type[Any], seconds: float = 10.0
    ) -> Any:
        reached = self._reached()
        call = reached.channel(self._address).unary_unary(
            _HOST + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        with _translated():
            return await call(
                request, timeout=seconds, metadata=reached.metadata(self._plugin_id, self._scope)
            )

    async def _stream(self, name: str, request: Message, item: type[Any]) -> tuple[Any, Any]:
        """Return the call and its first message."""
        reached = self._reached()
        call = reached.channel(self._address).unary_stream(
            _HOST + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=item.FromString,
        )(request, metadata=reached.metadata(self._plugin_id, self._scope))
        try:
            first = await _next(call)
        except BaseException:
            call.cancel()
            raise
        if first is None or first.WhichOneof("message") != "head":
            call.cancel()
            raise errors.Unavailable("the host's answer has no head", reason="STREAM_NOT_BEGUN")
        return call, first


UNREACHABLE: Final = HostClient()
"""The client of requests that a test makes, and where no callbacks are granted."""


class HostConnections:
    """
    The ways from the plugins of a process to their hosts; channels are opened when used.

    Args:
        plugin_keys: Plugin id to its keys, the newest first.
        host_address: Where calls outside of a scope go; default PATCHBAY_HOST_ADDRESS.
        message_limit: Largest message, bytes.
        tls: Certificates; None for plain HTTP/2.
    """

    def __init__(
        self,
        plugin_keys: Mapping[str, Sequence[bytes]],
        *,
        host_address: str | None = None,
        message_limit: int = DEFAULT_MESSAGE_LIMIT,
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        self._keys = plugin_keys
        self._address = (
            os.environ.get("PATCHBAY_HOST_ADDRESS", "") if host_address is None else host_address
        )
        self._options = wire_options(message_limit)
        self._caller = "plugin-" + random.token_hex(8)
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._tokens: dict[str, TokenSource] = {}
        self._openers: dict[str, SecretOpener] = {}
        self._plain: dict[str, HostClient] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def client(
        self, plugin_id: str, metadata: Sequence[tuple[str, str | bytes]] | None = ()
    ) -> HostClient:
        """Return the client for a call with *metadata*; without a scope, that of the environment."""
        address = scope = ""
        for key, value in metadata or ():
            if key == CALLBACK_KEY:
                address = str(value)
            elif key == SCOPE_KEY:
                scope = str(value)
        if not address:
            found = self._plain.get(plugin_id)
            if found is None:
                found = self._plain[plugin_id] = HostClient(plugin_id, self, self._address)
            return found
        return HostClient(plugin_id, self, address, scope)

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the channel to *address*."""
        found = self._channels.get(address)
        if found is None:
            found = open_channel(address, self._options, self._tls)
            self._channels[address] = found
            if len(self._channels) > _MAX_CHANNELS:
                _, oldest = self._channels.popitem(last=False)
                task = asyncio.ensure_future(oldest.close(grace=MODEL_TIMEOUT))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        else:
            self._channels.move_to_end(address)
        return found

    def metadata(self, plugin_id: str, scope: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a callback."""
        source = self._tokens.get(plugin_id)
        if source is None:
            key = keys.channel_key(self._newest(plugin_id))
            source = TokenSource(key, host_audience(plugin_id), self._caller)
            self._tokens[plugin_id] = source
        named = ((PLUGIN_KEY, plugin_id), *source.metadata())
        return (*named, (SCOPE_KEY, scope)) if scope else named

    def opener(self, plugin_id: str) -> SecretOpener:
        """Return what opens documents sealed for a plugin."""
        found = self._openers.get(plugin_id)
        if found is None:
            found = SecretOpener(keys.sealing_key(key) for key in self._keys.get(plugin_id, ()))
            self._openers[plugin_id] = found
        return found

    def return_key(self, plugin_id: str) -> bytes:
        """Return the key for documents that go back."""
        return keys.return_key(self._newest(plugin_id))

    def _newest(self, plugin_id: str) -> bytes:
        found = self._keys.get(plugin_id)
        if not found:
            raise errors.FailedPrecondition(
                f"plugin {plugin_id} has no key; set PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE",
                reason="PLUGIN_KEY_MISSING",
            )
        return found[0]

    async def aclose(self) -> None:
        """Close every channel. Idempotent."""
        channels = [*self._channels.values()]
        self._channels.clear()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))
        await asyncio.gather(*self._closing, return_exceptions=True)


def _model_message(request: HostModelExecutionRequest, *, stream: bool) -> Message:
    message = model_pb2.HostModelExecutionRequest()
    wire.write(dataclasses.replace(request, stream=stream), message)
    return message


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(
            error.code(), error.details() or "", tuple(error.trailing_metadata() or ())
        ) from None


async def _next(call: Any) -> Any:
    """Return the next message of a stream, None at its end."""
    with _translated():
        message = await call.read()
    return None if message is grpc.aio.EOF else message
