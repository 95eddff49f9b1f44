"""
A fake of the gateway for plugins that call back: HostService with grants, answers as told, a log of calls.

    async with FakeHost(grants=Grants(models=True)) as host:
        host.answers["ExecuteModel"] = model_answer(b'{"choices":[]}')
        async with serving(MyPlugin(), host=host) as served: …
        assert host.calls[0].method == "ExecuteModel"

It checks tokens, scopes and grants as gateways do. Not here: models, HTTP and credentials behind it.
"""

from __future__ import annotations

import inspect
import json
import secrets as random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from patchbay import errors, keys
from patchbay.host.v1 import auth_pb2, host_pb2, http_pb2, log_pb2, model_pb2
from patchbay.secrets import SecretOpener, seal
from patchbay.server import Server
from patchbay.testing.connection import TEST_KEY
from patchbay.tokens import HOST_SERVICE, SCOPE_KEY, HostAuthenticator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from google.protobuf.message import Message

DESCRIBED: Final = host_pb2
"""Imported so that the service is found by its name."""
_FOR: Final = 60.0


@dataclass(frozen=True, slots=True)
class Grants:
    """What plugins may ask for (`host_access` of a declaration); the log is always granted."""

    models: bool = False
    http_hosts: tuple[str, ...] = ()
    """Hosts of HTTP requests; `*` for all."""
    auths: str = "none"
    """`none`, `own` or `all`; the fake does not know whose a credential is, so `own` is `all`."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """One callback."""

    method: str
    plugin_id: str
    scope: str
    """Empty outside of one."""
    request: Any
    """The message."""


@dataclass(slots=True)
class FakeHost:
    """A host at `address`, while it is open."""

    grants: Grants = field(default_factory=Grants)
    plugin_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Keys of plugins; others have TEST_KEY."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Method to its answer: a message, an exception, or a function of the request that returns one; for
    streams a list of messages."""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Index of a credential to its document; SaveAuth adds under the file name."""
    calls: list[HostCall] = field(default_factory=list)
    """What was asked, in order."""
    address: str = ""
    _scopes: set[str] = field(default_factory=set)
    _server: Server | None = None
    _authenticator: HostAuthenticator | None = None

    async def __aenter__(self) -> Self:
        self._authenticator = HostAuthenticator(lambda id_: [keys.channel_key(self._key(id_))])
        self._server = Server({HOST_SERVICE: self}, authenticate=self._authenticator)
        self.address = f"127.0.0.1:{await self._server.start('127.0.0.1:0')}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop()

    def open_scope(self) -> str:
        """Return a new scope."""
        scope = random.token_hex(8)
        self._scopes.add(scope)
        return scope

    def end_scope(self, scope: str) -> None:
        """End a scope: its callbacks are refused from now on."""
        self._scopes.discard(scope)

    def asked(self, method: str) -> list[Any]:
        """Return the requests of one method, in order."""
        return [call.request for call in self.calls if call.method == method]

    def _key(self, plugin_id: str) -> bytes:
        return self.plugin_keys.get(plugin_id, TEST_KEY)

    def _enter(self, method: str, request: Any, context: Any) -> str:
        """Log a call and return who makes it; raises what a gateway would."""
        metadata = context.invocation_metadata() or ()
        assert self._authenticator is not None
        plugin_id = self._authenticator.plugin_id(metadata)
        scope = next((value for key, value in metadata if key == SCOPE_KEY), "")
        self.calls.append(HostCall(method, plugin_id, scope, request))
        if scope and scope not in self._scopes:
            raise errors.FailedPrecondition("the scope has ended", reason="SCOPE_ENDED")
        return plugin_id

    @staticmethod
    def _require(granted: bool, what: str) -> None:
        if not granted:
            raise errors.PermissionDenied(
                f"the declaration of the plugin grants no {what}", reason="HOST_ACCESS_DENIED"
            )

    async def _answer(self, method: str, request: Any, default: Callable[[], Any]) -> Any:
        found = self.answers.get(method)
        if callable(found):
            found = found(request)
            if inspect.isawaitable(found):
                found = await found
        if isinstance(found, BaseException):
            raise found
        return default() if found is None else found

    def _require_http(self, url: str) -> None:
        hosts = self.grants.http_hosts
        self._require(bool(hosts), "HTTP")
        if "*" not in hosts and urlsplit(url).hostname not in hosts:
            raise errors.PermissionDenied(
                f"{urlsplit(url).hostname} is not granted", reason="HTTP_ADDRESS_REFUSED"
            )

    async def HttpDo(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Answer `answers["HttpDo"]`, or 204."""
        self._enter("HttpDo", request, context)
        self._require_http(request.url)
        return await self._answer(  # type: ignore[no-any-return] # as told
            "HttpDo", request, lambda: http_pb2.HTTPResponse(status_code=204)
        )

    async def HttpDoStream(  # noqa: N802 - name on the wire
        self, request: Any, context: Any
    ) -> AsyncGenerator[Message, None]:
        """Answer `answers["HttpDoStream"]`, or an empty stream."""
        self._enter("HttpDoStream", request, context)
        self._require_http(request.url)
        head = http_pb2.HTTPStreamResponse(head=http_pb2.HTTPStreamHead(status_code=200))
        for message in await self._answer("HttpDoStream", request, lambda: [head]):
            yield message

    async def ExecuteModel(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Answer `answers["ExecuteModel"]`, or an empty completion."""
        self._enter("ExecuteModel", request, context)
        self._require(self.grants.models, "model calls")
        return await self._answer(  # type: ignore[no-any-return] # as told
            "ExecuteModel", request, lambda: model_answer(b'{"choices":[]}')
        )

    async def ExecuteModelStream(  # noqa: N802 - name on the wire
        self, request: Any, context: Any
    ) -> AsyncGenerator[Message, None]:
        """Answer `answers["ExecuteModelStream"]`, or one `[DONE]`."""
        self._enter("ExecuteModelStream", request, context)
        self._require(self.grants.models, "model calls")
        default = model_stream([b"data: [DONE]\n\n"])
        for message in await self._answer("ExecuteModelStream", request, lambda: default):
            yield message

    async def ListAuths(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Answer the documents' names."""
        self._enter("ListAuths", request, context)
        self._require(self.grants.auths != "none", "credentials")
        files = [self._entry(index) for index in sorted(self.documents)]
        return auth_pb2.HostAuthListResponse(files=files)

    async def GetAuth(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Answer one document, sealed for the plugin."""
        plugin_id = self._enter("GetAuth", request, context)
        self._require(self.grants.auths != "none", "credentials")
        entry = self._entry(request.auth_index)
        sealed = seal(
            keys.sealing_key(self._key(plugin_id)),
            plugin_id,
            entry.id,
            1,
            (),
            time.time() + _FOR,
            {"document": json.dumps(self.documents[request.auth_index])},
        )
        return auth_pb2.HostAuthGetResponse(
            auth_index=entry.auth_index, name=entry.name, json=sealed
        )

    async def GetAuthRuntime(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Answer one entry."""
        self._enter("GetAuthRuntime", request, context)
        self._require(self.grants.auths != "none", "credentials")
        return auth_pb2.HostAuthGetRuntimeResponse(auth=self._entry(request.auth_index))

    async def SaveAuth(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Keep a document."""
        plugin_id = self._enter("SaveAuth", request, context)
        self._require(self.grants.auths != "none", "credentials")
        if "/" in request.name or not request.name.endswith(".json"):
            raise errors.InvalidRequest(
                "a file name ends in .json and has no directories", reason="INVALID_AUTH_NAME"
            )
        opener = SecretOpener([keys.return_key(self._key(plugin_id))])
        self.documents[request.name] = json.loads(opener.open(request.json)["document"])
        return auth_pb2.HostAuthSaveResponse(name=request.name, path=request.name)

    async def Log(self, request: Any, context: Any) -> Message:  # noqa: N802 - name on the wire
        """Take a line; it is in `calls`."""
        self._enter("Log", request, context)
        return log_pb2.HostLogResponse()

    def _entry(self, index: str) -> Any:
        if index not in self.documents:
            raise errors.NotFound(f"no credential has the index {index}", reason="AUTH_UNKNOWN")
        return auth_pb2.HostAuthFileEntry(id=index, auth_index=index, name=index, status="ready")


def model_answer(body: bytes, status_code: int = 200) -> model_pb2.HostModelExecutionResponse:
    """Return the message of a whole answer."""
    return model_pb2.HostModelExecutionResponse(
        status_code=status_code, body=body, content_type="application/json"
    )


def model_stream(chunks: Sequence[bytes]) -> list[model_pb2.HostModelStreamResponse]:
    """Return the messages of a streamed answer: its head, then each chunk by itself."""
    head = model_pb2.HostModelStreamHead(status_code=200, content_type="text/event-stream")
    return [
        model_pb2.HostModelStreamResponse(head=head),
        *(
            model_pb2.HostModelStreamResponse(batch=model_pb2.HostModelStreamBatch(chunks=[chunk]))
            for chunk in chunks
        ),
    ]
