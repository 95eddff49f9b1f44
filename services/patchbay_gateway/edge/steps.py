"""
What plugins do to one request, step by step: the pipeline's view of them.

`PluginSteps` belongs to the process and says in one look-up whether anybody wants a request; `Steps`
belongs to the request and keeps what each step made of it. A request that nobody wants and that needs no
translation has no `Steps`, and costs no RPC and no copy. Not here: the chains themselves (plugins/),
translation (translation.py), chunks of a streamed answer (outgoing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import orjson

from patchbay.plugin.v1 import request_lifecycle_pb2
from patchbay_gateway.edge import headers
from patchbay_gateway.edge.translation import Formats, Translation
from patchbay_gateway.plugins.execution import PluginExecution
from patchbay_gateway.plugins.frontend_auth import FrontendAuth
from patchbay_gateway.plugins.hooks import Facts, Hooks
from patchbay_gateway.plugins.lifecycle import Lifecycle
from patchbay_gateway.plugins.model_router import ModelRouters
from patchbay_gateway.plugins.request_interceptors import Intercepted, RequestInterceptors
from patchbay_gateway.plugins.response_interceptors import ResponseInterceptors
from patchbay_gateway.plugins.stream_interceptors import StreamInterceptors

if TYPE_CHECKING:
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.model_router import ModelRoute
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.translate.registry import Registry

OUTCOMES: Final = request_lifecycle_pb2.RequestCompletionOutcome

_HOOKED: Final = (
    "model_router",
    "request_interceptor",
    "request_normalizer",
    "request_translator",
    "response_before_translator",
    "response_translator",
    "response_after_translator",
    "response_interceptor",
    "response_stream_interceptor",
    "request_lifecycle_plugin",
)


class PluginSteps:
    """
    The steps of this process.

    Args:
        registry: The plugins.
        calls: How they are asked.
        native: What the gateway translates itself.
    """

    def __init__(self, registry: PluginRegistry, calls: PluginCalls, native: Registry) -> None:
        self.registry = registry
        self.calls = calls
        self.native = native
        self.hooks = Hooks(registry)
        self.routers = ModelRouters(self.hooks, calls)
        self.requests = RequestInterceptors(self.hooks, calls)
        self.answers = ResponseInterceptors(self.hooks, calls)
        self.chunks = StreamInterceptors(self.hooks, calls)
        self.translation = Translation(native, self.hooks, calls)
        self.lifecycle = Lifecycle(self.hooks, calls)
        self.frontend = FrontendAuth(self.hooks, calls)

    def of(self, request: Request) -> Steps | None:
        """Return the steps of *request*, whose client, body and model are known; None: nobody wants it."""
        snapshot = request.snapshot
        if not any(self.hooks.of(snapshot, flag) for flag in _HOOKED):
            return None
        return Steps(self, request)

    async def aclose(self) -> None:
        """End what still runs for lifecycle plugins."""
        await self.lifecycle.aclose()


@dataclass(frozen=True, slots=True)
class Prepared:
    """One attempt's request as its executor gets it."""

    formats: Formats
    headers: headers.Headers
    original: bytes
    """The client's body after the interceptors."""
    payload: bytes


class Steps:
    """The steps of one request."""

    def __init__(self, steps: PluginSteps, request: Request) -> None:
        assert request.client is not None
        assert request.document is not None
        self._steps = steps
        self._request = request
        routed = request.routed
        snapshot = request.snapshot
        self.execution = PluginExecution(
            request_id=request.uid,
            trace_id=routed.trace_id or routed.request_id,
            snapshot=snapshot,
            facts=Facts(
                routed.dialect.name,
                request.model,
                route=request.model if request.model in snapshot.route_names else "",
                client_key=request.client.name,
            ),
            operation=routed.operation,
            stream=request.stream,
            metadata=_metadata(request),
            depth=routed.depth,
            skip=routed.skip_plugin,
        )
        self.request_hooks: tuple[Hook, ...] = steps.requests.of(self.execution)
        self.answer_hooks: tuple[Hook, ...] = steps.answers.of(self.execution)
        self.chunk_hooks: tuple[Hook, ...] = (
            steps.chunks.of(self.execution) if request.stream else ()
        )
        self.current = Intercepted(
            headers.for_plugins(routed.exchange.head.headers), request.document.data
        )
        """Headers and body of the client as the steps left them."""
        self._started = request.clock.now()

    async def route(self) -> ModelRoute | None:
        """Return where a model router sends the request; None: the catalogue decides."""
        hooks = self._steps.routers.of(self.execution)
        if not hooks:
            return None
        query = headers.query_for_plugins(self._request.routed.exchange.head.query)
        return await self._steps.routers.route(
            hooks,
            self.execution,
            headers=self.current.headers,
            query=parse_qs(query.decode("latin-1"), keep_blank_values=True),
            body=self.current.body,
            serves=self._serves,
        )

    async def before(self) -> bool:
        """
        Let the interceptors see the request before a credential is chosen; return whether the body changed.

        Raises:
            Terminated: A plugin answered the client.
            Unavailable: PLUGIN_FAILED.
        """
        if not self.request_hooks:
            return False
        body = self.current.body
        self.current = await self._steps.requests.before(
            self.request_hooks, self.execution, self.current.headers, body
        )
        return self.current.body is not body

    async def after(self, *, model: str, to_format: str, attempt: int) -> Intercepted:
        """
        Return the request of one attempt after its interceptors.

        Raises:
            Terminated: A plugin answered the client.
            Unavailable: PLUGIN_FAILED.
        """
        if not self.request_hooks:
            return self.current
        return await self._steps.requests.after(
            self.request_hooks,
            self.execution,
            self.current,
            model=model,
            to_format=to_format,
            attempt=attempt,
        )

    def complete(self, outcome: OUTCOMES.ValueType, error: str = "") -> None:
        """Tell the lifecycle plugins how it ended."""
        if not self._steps.lifecycle.wanted(self.execution):
            return
        request, execution = self._request, self.execution
        completion = request_lifecycle_pb2.RequestCompletion(
            request_id=execution.request_id,
            trace_id=execution.trace_id,
            source_format=execution.source_format,
            model=request.upstream_model or request.model,
            requested_model=request.model,
            stream=request.stream,
            outcome=outcome,
            status_code=0
            if outcome == request_lifecycle_pb2.REQUEST_COMPLETION_OUTCOME_CANCELED
            else request.status,
            error=error,
            metadata=execution.metadata,
            operation=execution.operation,
            attempts=request.number,
        )
        completion.started_at.FromNanoseconds(int(self._started * 1e9))
        completion.completed_at.FromNanoseconds(int(request.clock.now() * 1e9))
        self._steps.lifecycle.complete(execution, completion)

    def _serves(self, plugin_id: str) -> bool:
        capability = self._steps.registry.executor(plugin_id)
        return capability is not None


def _metadata(request: Request) -> bytes:
    found = {
        "requested_model": request.model,
        "request_path": request.routed.exchange.head.path,
    }
    for name, value in request.routed.exchange.head.headers:
        if name == b"idempotency-key":
            found["idempotency_key"] = value.decode("latin-1")
    if request.routed.pinned_credential_id:
        found["pinned_auth_id"] = request.routed.pinned_credential_id
    if request.routed.execution_session_id:
        found["execution_session_id"] = request.routed.execution_session_id
    if request.routed.source:
        found["source"] = request.routed.source
    return orjson.dumps(found)
