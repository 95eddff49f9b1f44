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
import re
from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import orjson

from patchbay import errors, server, status
from patchbay_gateway.edge import headers
from patchbay_gateway.edge.auth import Client
from patchbay_gateway.edge.callbacks.exchange import MemoryExchange
from patchbay_gateway.edge.dialects.table import GEMINI_JSON
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.request import Request
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.scan import rewrite, scan
from patchbay_gateway.plugins.scopes import MAX_DEPTH
from patchbay_gateway.translate.formats import canonical
from patchbay_gateway.translate.port import Context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from patchbay.errors import Headers, PatchbayError
    from patchbay.host.v1 import model_pb2
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.routes.request import Pipeline
    from patchbay_gateway.plugins.callbacks.callers import Caller
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.translate.port import StreamTranslator
    from patchbay_gateway.translate.registry import Pair, Registry

SOURCE: Final = "plugin_host_model_callback"
"""What plugins are told of where such a request comes from (pluginapi, metadata `source`)."""
CALL_DEPTH: Final = "CALL_DEPTH"
MAX_RUNNING: Final = 1000
"""Model calls of one plugin at once on one edge: a plugin that calls itself without its scope ends here."""

_OPERATIONS: Final = frozenset({"chat", "completions", "embeddings", "count_tokens"})
_WHOLE: Final = frozenset({"embeddings", "count_tokens"})
"""Operations that are never streamed."""
_STREAM_IN_BODY: Final = frozenset({"openai", "openai-response", "claude"})
# An event ends with an empty line (the HTML standard, server-sent events).
_EVENT: Final = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)


def events(data: bytes) -> list[bytes]:
    """Return the server-sent events of *data*, each with its empty line."""
    if b"\r" in data:
        return _EVENT.findall(data)
    whole = [event + b"\n\n" for event in data.split(b"\n\n")]
    rest = whole.pop()[:-2]
    return [*whole, rest] if rest else whole


class ModelCall:
    """One running call. Its answer has begun, and is a good one."""

    def __init__(
        self, exchange: MemoryExchange, answer: _Answer, failure: Callable[[], errors.UpstreamError]
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
        return self._answer.whole(body)

    async def chunks(self) -> AsyncIterator[list[bytes]]:
        """
        Yield the chunks that wait together.

        Raises:
            UpstreamError: The stream failed, or cannot be translated.
        """
        while taken := await self._exchange.take():
            if found := self._answer.feed(b"".join(taken)):
                yield found
        self._check()
        if found := self._answer.end():
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
        most: int = MAX_RUNNING,
    ) -> None:
        self._pipeline = pipeline
        self._holder = holder
        self._dialects = dialects
        self._native = native
        self._mint = mint
        self._now = now
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
        entry = self._checked(asked, stream=stream)
        answer = self._answer(asked, entry, stream=stream)
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
        if operation not in _OPERATIONS or (stream and operation in _WHOLE):
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

    def _answer(
        self, asked: model_pb2.HostModelExecutionRequest, entry: Dialect, *, stream: bool
    ) -> _Answer:
        if not asked.exit_protocol or self._dialect(asked.exit_protocol) is entry:
            return _Answer(entry)
        wanted = self._dialect(asked.exit_protocol)
        pair = self._native.pair(wanted.name, entry.name)
        if (asked.operation or "chat") != "chat" or (pair.stream if stream else pair.whole) is None:
            raise errors.InvalidRequest(
                f"an answer in {entry.name} cannot be translated to {wanted.name}",
                reason="NO_TRANSLATION",
            )
        # The request was never in the wanted format; translators fall back to the answer's own words.
        context = Context(asked.model, b"{}", asked.body, int(self._now()))
        return _Translated(wanted, pair, context)

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
            _payload(asked, entry, stream=stream),
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
            model_from_path=None if entry.name in _STREAM_IN_BODY else asked.model,
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
        error.message if not isinstance(error, errors.Internal) else "internal error",
        body=told.body,
        headers=[*told.headers, (b"x-request-id", routed.request_id.encode())],
        content_type="application/json",
        retry_after=error.retry_after,
        reason=error.reason,
        sent=error.sent,
    )


def _error_status(found: int) -> int:
    return found if 400 <= found <= 599 else 502


class _Answer:
    """An answer that stays as it is."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        """Of the answer and of errors."""
        self._sse = dialect.stream_content_type.startswith(b"text/event-stream")

    def whole(self, body: bytes) -> bytes:
        """Return a whole body."""
        return body

    def feed(self, data: bytes) -> list[bytes]:
        """Return the chunks of *data*, which is a whole number of events where there are events."""
        return events(data) if self._sse else [data]

    def end(self) -> list[bytes]:
        """Return what is still owed after a good end."""
        return []


class _Translated(_Answer):
    """An answer in another format than the request."""

    def __init__(self, dialect: Dialect, pair: Pair, context: Context) -> None:
        super().__init__(dialect)
        self._pair = pair
        self._context = context
        self._stream: StreamTranslator | None = None

    def whole(self, body: bytes) -> bytes:
        assert self._pair.whole is not None
        return self._pair.whole(self._context, body)

    def feed(self, data: bytes) -> list[bytes]:
        if self._stream is None:
            assert self._pair.stream is not None
            self._stream = self._pair.stream(self._context)
        return [out for chunk in events(data) for out in self._stream.feed(chunk)]

    def end(self) -> list[bytes]:
        return self._stream.end() if self._stream is not None else []


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


def _payload(asked: model_pb2.HostModelExecutionRequest, entry: Dialect, *, stream: bool) -> bytes:
    """Return the body with the call's model and, where the format has it there, `stream`."""
    if entry.name not in _STREAM_IN_BODY:
        return asked.body
    try:
        found = scan(asked.body)
    except errors.InvalidRequest:
        return asked.body  # the pipeline says what is wrong with it
    whole = (asked.operation or "chat") in _WHOLE
    same = whole or (found.stream is True) is stream or (not stream and found.stream is None)
    data = rewrite(found, model=asked.model)
    if not same and found.stream is None and b'"stream"' not in data:
        data = _with(data, b'"stream":true')
    elif not same:
        data = orjson.dumps({**orjson.loads(data), "stream": stream})
    return data if found.model is not None else _with(data, b'"model":' + orjson.dumps(asked.model))


def _with(data: bytes, member: bytes) -> bytes:
    """Return the JSON object *data* with one more member, every other byte as it was."""
    start = data.index(b"{") + 1
    comma = b"" if data[start:].lstrip().startswith(b"}") else b","
    return b"".join((data[:start], member, comma, data[start:]))
