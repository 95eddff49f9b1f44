"""
Model calls of plugins: a request through the whole pipeline, but for the client's authentication.

In a scope the call inherits the client, and where the plugin gives none the headers and the query; it is
nested one deeper and ends with the scope. Outside, the plugin itself is the client. The caller's own
interceptors, router and lifecycle are left out of this one level (pluginapi, host.model). Failures come as
UpstreamError with the status and the body that a client would have got. Not here: the wire (servicer.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from patchbay import errors, server, status
from patchbay_gateway.edge import headers
from patchbay_gateway.edge.auth import Client
from patchbay_gateway.edge.callbacks.answers import Answer, ByPlugins, Translated
from patchbay_gateway.edge.callbacks.exchange import MemoryExchange
from patchbay_gateway.edge.callbacks.payload import STREAM_IN_BODY, WHOLE, payload
from patchbay_gateway.edge.dialects import blotting
from patchbay_gateway.edge.dialects.table import GEMINI_JSON
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.request import Request
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.translation import Formats
from patchbay_gateway.plugins.execution import PluginExecution
from patchbay_gateway.plugins.hooks import Facts
from patchbay_gateway.plugins.scopes import MAX_DEPTH
from patchbay_gateway.translate.formats import canonical
from patchbay_gateway.translate.port import Context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from patchbay.errors import Headers, PatchbayError
    from patchbay.host.v1 import model_pb2
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.routes.request import Pipeline
    from patchbay_gateway.edge.translation import Translation
    from patchbay_gateway.plugins.callbacks.callers import Caller
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.translate.registry import Registry


SOURCE: Final = "plugin_host_model_callback"
"""What plugins are told of where such a request comes from (pluginapi, metadata `source`)."""
CALL_DEPTH: Final = "CALL_DEPTH"
MAX_RUNNING: Final = 1000
"""Model calls of one plugin at once on one edge: a plugin that calls itself without its scope ends here."""

# What requests become that come in a format which only plugins know.
_PIVOT: Final = "openai"
_OPERATIONS: Final = frozenset({"chat", "completions", "embeddings", "count_tokens"})


class ModelCall:
    """One running call. Its answer has begun, and is a good one."""

    def __init__(
        self, exchange: MemoryExchange, answer: Answer, failure: Callable[[], errors.UpstreamError]
    ) -> None:
        self._exchange = exchange
        self._answer = answer
        self._failure = failure
        self.status = exchange.status
        self.headers = [(n, v) for n, v in exchange.headers if n not in _LENGTHS]
        self.content_type = next(
            (v.decode("latin-1") for n, v in exchange.headers if n == b"content-type"), ""
        )

    async def whole(self) -> bytes:
        """
        Return the body.

        Raises:
            UpstreamError: It did not come to its end, or cannot be translated.
        """
        body = await self._exchange.whole()
        self._check()
        return await self._answer.whole(body)

    async def chunks(self) -> AsyncIterator[list[bytes]]:
        """
        Yield the chunks that wait together.

        Raises:
            UpstreamError: The stream failed, or cannot be translated.
        """
        while taken := await self._exchange.take():
            if found := await self._answer.feed(b"".join(taken)):
                yield found
        self._check()
        if found := await self._answer.end():
            yield found

    def _check(self) -> None:
        if self._exchange.error is not None or not self._exchange.complete:
            raise self._failure()


_LENGTHS: Final = frozenset({b"content-length", b"content-type"})


class ModelCalls:
    """
    The model calls of one edge.

    Args:
        pipeline: Runs them.
        holder: The limits of the current snapshot.
        dialects: By name.
        native: Translates answers, where the plugin wants another format than it asks in.
        mint: Makes request ids.
        now: Unix seconds.
        translation: Plugins' part in it, for formats that only they know; None: they have none.
        most: Calls of one plugin at once.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        holder: SnapshotHolder,
        dialects: Mapping[str, Dialect],
        native: Registry,
        mint: Callable[[], str],
        now: Callable[[], float],
        translation: Translation | None = None,
        most: int = MAX_RUNNING,
    ) -> None:
        self._pipeline = pipeline
        self._holder = holder
        self._dialects = dialects
        self._native = native
        self._mint = mint
        self._now = now
        self._translation = translation
        self._most = most
        self._running: dict[asyncio.Task[None], str] = {}
        self._counts: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def call(
        self, caller: Caller, asked: model_pb2.HostModelExecutionRequest, *, stream: bool
    ) -> AsyncIterator[ModelCall]:
        """
        Run one call; what leaves the block leaves the answer.

        Args:
            caller: Who, in which scope.
            asked: What.
            stream: By which RPC.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
            InvalidRequest: STREAM_MISMATCH, UNKNOWN_FORMAT, UNKNOWN_OPERATION, MISSING_MODEL, NO_TRANSLATION.
            FailedPrecondition: CALL_DEPTH.
            ResourceExhausted: TOO_MANY_MODEL_CALLS.
            UpstreamError: The call failed before its answer began.
        """
        caller.need(caller.grants.models, "run models", "models")
        foreign = await self._brought_in(caller, asked, stream=stream)
        if foreign is not None:
            asked = foreign
        entry = self._checked(asked, stream=stream)
        answer = self._answer(caller, asked, entry, stream=stream)
        depth = _depth(caller)
        if self._counts[caller.plugin_id] >= self._most:
            raise errors.ResourceExhausted(
                f"plugin {caller.plugin_id} has {self._most} model calls under way here",
                reason="TOO_MANY_MODEL_CALLS",
                retry_after=1,
            )
        exchange = self._exchange(caller, asked, entry, stream=stream)
        routed = self._routed(caller, asked, entry, exchange, stream=stream, depth=depth)
        if caller.scope is not None:
            caller.scope.nested = True
        task = asyncio.get_running_loop().create_task(
            self._run(routed, exchange), name=f"model call of plugin {caller.plugin_id}"
        )
        self._running[task] = caller.plugin_id
        self._counts[caller.plugin_id] += 1
        task.add_done_callback(self._over)
        try:
            await exchange.answered()
            if not 200 <= exchange.status < 300:
                body = await exchange.whole()
                raise self._failed(answer.dialect, routed, exchange, body)
            yield ModelCall(
                exchange, answer, lambda: self._failed(answer.dialect, routed, exchange, b"")
            )
        finally:
            exchange.leave()
            await answer.aclose()

    async def aclose(self) -> None:
        """End what still runs."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._counts[self._running.pop(task)] -= 1

    async def _run(self, routed: RoutedRequest, exchange: MemoryExchange) -> None:
        try:
            await self._pipeline.run(routed)
        except errors.PatchbayError as error:
            exchange.fail(error)
        except Exception as error:  # noqa: BLE001 - the boundary: the log has it, the plugin gets its id
            error_id = server.report_foreign("model call of a plugin", error)
            exchange.fail(errors.Internal("a bug", metadata={"error_id": error_id}))
        finally:
            exchange.end()

    def _checked(self, asked: model_pb2.HostModelExecutionRequest, *, stream: bool) -> Dialect:
        if asked.stream != stream:
            named = "ExecuteModelStream" if asked.stream else "ExecuteModel"
            raise errors.InvalidRequest(
                f"'stream' does not agree with the method; call {named}", reason="STREAM_MISMATCH"
            )
        operation = asked.operation or "chat"
        if operation not in _OPERATIONS or (stream and operation in WHOLE):
            raise errors.InvalidRequest(
                f"there is no {'streamed ' if stream else ''}operation {operation!r}",
                reason="UNKNOWN_OPERATION",
            )
        if not asked.model:
            raise errors.InvalidRequest("'model' is missing", reason="MISSING_MODEL")
        return self._dialect(asked.entry_protocol)

    def _dialect(self, name: str) -> Dialect:
        found = self._dialects.get(canonical(name))
        if found is None:
            raise errors.InvalidRequest(
                f"{name!r} is no format of model calls; there are "
                f"{', '.join(sorted(d for d in self._dialects if d != GEMINI_JSON))}",
                reason="UNKNOWN_FORMAT",
            )
        return found

    async def _brought_in(
        self, caller: Caller, asked: model_pb2.HostModelExecutionRequest, *, stream: bool
    ) -> model_pb2.HostModelExecutionRequest | None:
        """
        Return the call in a dialect, where it comes in a format that only plugins can translate.

        Raises:
            InvalidRequest: NO_TRANSLATION, none of them does.
        """
        name = canonical(asked.entry_protocol)
        translation = self._by_plugins(name, "request_translator")
        if translation is None:
            return None
        formats = Formats(name, _PIVOT)
        execution = self._execution(caller, asked, name, stream=stream)
        body = await translation.request(execution, formats, model=asked.model, body=asked.body)
        if body == asked.body:
            raise errors.InvalidRequest(
                f"no plugin translates a request in {name}", reason="NO_TRANSLATION"
            )
        found = type(asked)()
        found.CopyFrom(asked)
        found.entry_protocol, found.body = _PIVOT, body
        found.exit_protocol = asked.exit_protocol or name
        return found

    def _by_plugins(self, name: str, flag: str) -> Translation | None:
        """Return the translation by plugins of a format that is no dialect; None where there is none."""
        snapshot, translation = self._holder.current, self._translation
        if not name or name in self._dialects or snapshot is None or translation is None:
            return None
        return translation if translation.any(snapshot, flag) else None

    def _execution(
        self,
        caller: Caller,
        asked: model_pb2.HostModelExecutionRequest,
        name: str,
        *,
        stream: bool,
    ) -> PluginExecution:
        """Return what translators are told of a call."""
        parent = caller.scope.execution if caller.scope is not None else None
        snapshot = self._holder.current
        assert snapshot is not None  # else nobody could have called
        return PluginExecution(
            request_id=parent.request_id if parent is not None else "",
            trace_id=parent.trace_id if parent is not None else "",
            snapshot=snapshot,
            facts=Facts(name, asked.model),
            operation=asked.operation or "chat",
            stream=stream,
            depth=_depth(caller),
        )

    def _answer(
        self,
        caller: Caller,
        asked: model_pb2.HostModelExecutionRequest,
        entry: Dialect,
        *,
        stream: bool,
    ) -> Answer:
        name = canonical(asked.exit_protocol)
        if not name or self._dialects.get(name) is entry:
            return Answer(entry)
        if (translation := self._by_plugins(name, "response_translator")) is not None:
            context = Context(asked.model, b"{}", asked.body, int(self._now()))
            execution = self._execution(caller, asked, name, stream=stream)
            formats = Formats(name, entry.name)
            return ByPlugins(entry, translation, execution, formats, context)
        wanted = self._dialect(asked.exit_protocol)
        pair = self._native.pair(wanted.name, entry.name)
        if (asked.operation or "chat") != "chat" or (pair.stream if stream else pair.whole) is None:
            raise errors.InvalidRequest(
                f"an answer in {entry.name} cannot be translated to {wanted.name}",
                reason="NO_TRANSLATION",
            )
        # The request was never in the wanted format; translators fall back to the answer's own words.
        context = Context(asked.model, b"{}", asked.body, int(self._now()))
        return Translated(wanted, pair, context)

    def _exchange(
        self,
        caller: Caller,
        asked: model_pb2.HostModelExecutionRequest,
        entry: Dialect,
        *,
        stream: bool,
    ) -> MemoryExchange:
        parent = _parent(caller)
        given = status.headers_from_map(asked.headers)
        found: Headers = [(name.lower(), value) for name, value in given]
        query = urlencode([(n, v) for n, vs in asked.query.items() for v in vs.values]).encode()
        path, peer = "/", "127.0.0.1"
        if parent is not None:
            head = parent.routed.exchange.head
            path, peer = head.path, head.peer
            found = found or head.headers
            query = query or headers.query_for_plugins(head.query)
        snapshot = self._holder.current
        return MemoryExchange(
            Head("POST", path, query, headers.for_plugins(found), peer),
            payload(asked, entry, stream=stream),
            stall=snapshot.settings.streaming.write_stall if snapshot is not None else 0.0,
        )

    def _routed(
        self,
        caller: Caller,
        asked: model_pb2.HostModelExecutionRequest,
        entry: Dialect,
        exchange: MemoryExchange,
        *,
        stream: bool,
        depth: int,
    ) -> RoutedRequest:
        parent = _parent(caller)
        client = parent.client if parent is not None else None
        execution = caller.scope.execution if caller.scope is not None else None
        alt = "" if asked.alt == "sse" else asked.alt
        if entry.name == "gemini" and alt and stream:
            entry = self._dialects[GEMINI_JSON]
        return RoutedRequest(
            dialect=entry,
            operation=asked.operation or "chat",
            exchange=exchange,
            model_from_path=None if entry.name in STREAM_IN_BODY else asked.model,
            stream_from_path=stream,
            alt=alt,
            request_id=self._mint(),
            client_request_id=None,
            client=client
            or Client(f"plugin:{caller.plugin_id}", "default", "plugin", matcher=None),
            skip_plugin=caller.plugin_id,
            depth=depth,
            trace_id=execution.trace_id if execution is not None else "",
            source=SOURCE,
            on_error=exchange.fail,
        )

    @staticmethod
    def _failed(
        dialect: Dialect, routed: RoutedRequest, exchange: MemoryExchange, body: bytes
    ) -> errors.UpstreamError:
        """Return the failure of a call as a client would have been told of it."""
        error = exchange.error
        if error is None and not body and exchange.status < 300:
            error = errors.UpstreamError(
                502, "the model call ended before its answer did", reason="UPSTREAM_TRUNCATED"
            )
        if error is None:
            # A plugin ended it.
            return errors.UpstreamError(
                _error_status(exchange.status),
                f"model execution failed with status {exchange.status}",
                body=body,
                headers=exchange.headers,
                reason="TERMINATED_BY_PLUGIN",
            )
        return _as_upstream(dialect, routed, error)


def _as_upstream(
    dialect: Dialect, routed: RoutedRequest, error: PatchbayError
) -> errors.UpstreamError:
    told = dialect.error(error, routed.request_id)
    return errors.UpstreamError(
        _error_status(told.status),
        blotting.clean(error.message)
        if not isinstance(error, errors.Internal)
        else "internal error",
        body=told.body,
        headers=[*told.headers, (b"x-request-id", routed.request_id.encode())],
        content_type="application/json",
        retry_after=error.retry_after,
        reason=error.reason,
        sent=error.sent,
    )


def _error_status(found: int) -> int:
    return found if 400 <= found <= 599 else 502


def _parent(caller: Caller) -> Request | None:
    """Return the request in which the plugin calls back; None outside of one."""
    if caller.scope is None or caller.scope.execution is None:
        return None
    origin = caller.scope.execution.origin
    return origin if isinstance(origin, Request) else None


def _depth(caller: Caller) -> int:
    execution = caller.scope.execution if caller.scope is not None else None
    depth = execution.depth + 1 if execution is not None else 1
    if depth > MAX_DEPTH:
        raise errors.FailedPrecondition(
            f"model calls are nested more than {MAX_DEPTH} deep; does a plugin call itself?",
            reason=CALL_DEPTH,
        )
    return depth
