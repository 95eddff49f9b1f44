"""
What plugins do to one request, step by step: the pipeline's view of them.

`PluginSteps` belongs to the process and says in one look-up whether anybody wants a request; `Steps`
belongs to the request and keeps what each step made of it. A request that nobody wants and that needs no
translation has no `Steps`, and costs no RPC and no copy. Not here: the chains themselves (plugins/),
translation (translation.py), chunks of a streamed answer (outgoing.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import orjson

from patchbay import status
from patchbay.plugin.v1 import executor_pb2, plugin_pb2, request_lifecycle_pb2
from patchbay_gateway.edge import asking, body, formats, headers, targets
from patchbay_gateway.edge.outgoing import Outgoing
from patchbay_gateway.edge.remembered import Remembered
from patchbay_gateway.edge.translation import Formats, Translation
from patchbay_gateway.plugins.execution import PluginExecution
from patchbay_gateway.plugins.frontend_auth import FrontendAuth
from patchbay_gateway.plugins.grants import grants_of
from patchbay_gateway.plugins.hooks import Facts, Hook, Hooks
from patchbay_gateway.plugins.lifecycle import Lifecycle
from patchbay_gateway.plugins.model_router import ModelRouters
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.request_interceptors import Intercepted, RequestInterceptors
from patchbay_gateway.plugins.response_interceptors import Answered, ResponseInterceptors
from patchbay_gateway.plugins.stream_interceptors import StreamInterceptors
from patchbay_gateway.plugins.thinking import ThinkingAppliers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patchbay.errors import Headers
    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.edge.asking import Asked
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.plugins.calls import PluginCalls, Scope
    from patchbay_gateway.plugins.model_router import ModelRoute
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.plugins.snapshot import ProviderEntry, Snapshot
    from patchbay_gateway.translate.registry import Registry

_SUCCEEDED: Final = request_lifecycle_pb2.REQUEST_COMPLETION_OUTCOME_SUCCEEDED
_FAILED: Final = request_lifecycle_pb2.REQUEST_COMPLETION_OUTCOME_FAILED
_REJECTED: Final = request_lifecycle_pb2.REQUEST_COMPLETION_OUTCOME_REJECTED
_CANCELED: Final = request_lifecycle_pb2.REQUEST_COMPLETION_OUTCOME_CANCELED

_HOOKED: Final = frozenset(
    {
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
    }
)


class PluginSteps:
    """
    The steps of this process.

    Args:
        registry: The plugins.
        calls: How they are asked.
        native: What the gateway translates itself.
        dialects: Formats whose failures are understood, by name.
    """

    def __init__(
        self,
        registry: PluginRegistry,
        calls: PluginCalls,
        native: Registry,
        dialects: Mapping[str, Dialect],
    ) -> None:
        self.registry = registry
        self.calls = calls
        self.native = native
        self.dialects = dialects
        self.hooks = Hooks(registry)
        self._candidates = Remembered[tuple[str, str, str], targets.Candidates](registry)
        self._formats = Remembered[tuple[str, str, str, bool], Formats](registry)
        self._settings = Remembered[str, executor_pb2.ProviderSettings](registry)
        self.routers = ModelRouters(self.hooks, calls)
        self.requests = RequestInterceptors(self.hooks, calls)
        self.answers = ResponseInterceptors(self.hooks, calls)
        self.chunks = StreamInterceptors(self.hooks, calls)
        self.translation = Translation(native, self.hooks, calls)
        self.lifecycle = Lifecycle(self.hooks, calls)
        self.frontend = FrontendAuth(self.hooks, calls)
        self.thinking = ThinkingAppliers(self.hooks, calls)

    def of(self, request: Request) -> Steps | None:
        """Return the steps of *request*, whose client, body and model are known; None: nobody wants it."""
        snapshot = request.snapshot
        if not self.hooks.wanted(snapshot, _HOOKED):
            return None
        return Steps(self, request)

    def made(self, request: Request) -> Steps:
        """Return the steps of a request that nobody wants but that is to be translated."""
        return Steps(self, request)

    def scope(self, request: Request, plugin_id: str) -> Scope | None:
        """Return what an executor may call back in during one call; None when it is granted nothing."""
        entry = request.snapshot.plugin_by_id.get(plugin_id)
        if entry is None or not entry.host_access or not grants_of(entry).some:
            return None
        steps = request.steps or self.made(request)
        hook = Hook(plugin_id, "executor", entry, policy("executor"))
        return self.calls.scopes.open(hook, steps.execution)

    def tell_scheduler(self, request: Request, item: scheduler_pb2.AcquireItem) -> bool:
        """
        Give scheduler plugins, where there are any, the client's headers to look at.

        Returns:
            Whether one of them is asked.
        """
        if not self.hooks.of(request.snapshot, "scheduler"):
            return False
        sent = headers.for_plugins(request.routed.exchange.head.headers)
        status.headers_to_map(sent, item.headers)
        return bool(self.hooks.matching(request.snapshot, "scheduler", _facts(request)))

    def translates(self, request: Request) -> bool:
        """Whether a plugin translates requests of this snapshot."""
        return bool(self.hooks.of(request.snapshot, "request_translator"))

    def candidates(self, request: Request) -> targets.Candidates:
        """
        Return who can serve *request*, by the catalogue.

        Raises:
            NotFound, InvalidRequest, Unavailable: As `targets.resolve`.
        """
        routed = request.routed
        known = self._candidates.of(request.snapshot)
        key = (request.model, routed.dialect.name, routed.operation)
        found = known.get(key)
        if found is None:
            found = known[key] = targets.resolve(
                request.snapshot,
                self.registry,
                model=request.model,
                dialect=routed.dialect.name,
                operation=routed.operation,
                accepts=self.accepts(request),
            )
        return found

    def formats_of(self, request: Request, plugin_id: str) -> Formats:
        """
        Return the formats in which a plugin's executor is asked and answers *request*.

        Raises:
            InvalidRequest: DIALECT_NOT_AVAILABLE.
        """
        routed = request.routed
        known = self._formats.of(request.snapshot)
        key = (plugin_id, routed.dialect.name, routed.operation, request.stream)
        found = known.get(key)
        if found is None:
            found = known[key] = asking.formats_at(request, plugin_id, self)
        return found

    def settings_of(
        self, snapshot: Snapshot, provider: ProviderEntry | None
    ) -> executor_pb2.ProviderSettings:
        """Return what executors are told of *provider*; not to be changed."""
        known = self._settings.of(snapshot)
        name = provider.name if provider is not None else ""
        found = known.get(name)
        if found is None:
            found = known[name] = asking.settings_message(snapshot, provider)
        return found

    def accepts(self, request: Request) -> Callable[[plugin_pb2.ExecutorCapability], bool]:
        """Return whether an executor can serve *request*, translated if need be."""
        return lambda capability: bool(self.format_of(capability, request))

    def format_of(self, capability: plugin_pb2.ExecutorCapability, request: Request) -> str:
        """Return the format in which an executor gets *request*; empty when it takes none."""
        return formats.input_format(
            capability,
            request.routed.dialect.name,
            request.routed.operation,
            self.native,
            translators=self.translates(request),
        )

    def answer_format(
        self, capability: plugin_pb2.ExecutorCapability, request: Request, given: str
    ) -> str:
        """Return the format in which an executor answers that does not answer in what it gets; or empty."""
        return formats.output_format(
            capability,
            request.routed.dialect.name,
            given,
            self.native,
            stream=request.stream,
            translators=bool(self.hooks.of(request.snapshot, "response_translator")),
        )

    async def answered(self, request: Request, asked: Asked, answer: Answered) -> Answered:
        """
        Return a whole answer as the client gets it: translated, then intercepted.

        Raises:
            UpstreamError: What came is no answer.
            Unavailable: PLUGIN_FAILED.
        """
        steps = request.steps or self.made(request)
        if asked.context is not None:
            body = await self.translation.whole(
                steps.execution, asked.formats, asked.context, answer.body
            )
            answer = Answered(answer.status, answer.headers, body, answer.content_type)
        if steps.answer_hooks and asked.executed is not None:
            answer = await self.answers.run(
                steps.answer_hooks, steps.execution, asked.executed, answer
            )
        return answer

    def outgoing(self, request: Request, asked: Asked, upstream: Headers) -> Outgoing:
        """Return the way out of a streamed answer whose provider's headers are *upstream*."""
        steps = request.steps or self.made(request)
        translation = chain = None
        if asked.context is not None:
            translation = self.translation.stream(steps.execution, asked.formats, asked.context)
        if steps.chunk_hooks and asked.executed is not None:
            chain = self.chunks.chain(steps.chunk_hooks, steps.execution, asked.executed, upstream)
        return Outgoing(request.routed.dialect, translation, chain, provider=request.answered_in)

    async def aclose(self) -> None:
        """End what still runs for lifecycle plugins."""
        await self.lifecycle.aclose()


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
            facts=_facts(request),
            operation=routed.operation,
            stream=request.stream,
            metadata=_metadata(request),
            depth=routed.depth,
            skip=routed.skip_plugin,
            origin=request,
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
        self._reached = False
        """Whether it came to the interceptors; lifecycle plugins hear of nothing that ended before."""
        self._after: tuple[tuple[str, str], Intercepted] | None = None
        self._scanned: body.Document | None = request.document
        """The last body that was looked at: the client's, or an interceptor's."""
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
        self._reached = True
        if not self.request_hooks:
            return False
        sent = self.current.body
        self.current = await self._steps.requests.before(
            self.request_hooks, self.execution, self.current.headers, sent, check=self._scan
        )
        return self.current.body is not sent

    async def after(
        self, *, credential: str, model: str, to_format: str, attempt: int
    ) -> Intercepted:
        """
        Return the request of one attempt after its interceptors.

        The attempt that follows the refresh of a credential is the same to them: they are not asked again.

        Raises:
            Terminated: A plugin answered the client.
            Unavailable: PLUGIN_FAILED.
        """
        if not self.request_hooks:
            return self.current
        key = (credential, model)
        if self._after is None or self._after[0] != key:
            found = await self._steps.requests.after(
                self.request_hooks,
                self.execution,
                self.current,
                model=model,
                to_format=to_format,
                attempt=attempt,
                check=self._scan,
            )
            self._after = key, found
        return self._after[1]

    async def scanned(self, data: bytes) -> body.Document:
        """Return *data*, which a chain left, as it is understood; most often that was done already."""
        kept = self._scanned
        return kept if kept is not None and kept.data is data else await body.scanned(data)

    async def _scan(self, data: bytes) -> None:
        self._scanned = await body.scanned(data)

    def complete(self, *, gone: bool) -> None:
        """Tell the lifecycle plugins how it ended; *gone* where the client left."""
        if not self._reached or not self._steps.lifecycle.wanted(self.execution):
            return
        request, execution = self._request, self.execution
        outcome = _FAILED
        if gone or not request.status:
            outcome = _CANCELED
        elif request.terminated:
            outcome = _REJECTED
        elif not request.error and request.status < 400:
            outcome = _SUCCEEDED
        completion = request_lifecycle_pb2.RequestCompletion(
            request_id=execution.request_id,
            trace_id=execution.trace_id,
            source_format=execution.source_format,
            model=request.upstream_model or request.model,
            requested_model=request.model,
            stream=request.stream,
            outcome=outcome,
            status_code=0 if outcome == _CANCELED else request.status,
            error=request.error,
            metadata=execution.metadata,
            operation=execution.operation,
            attempts=request.number,
        )
        # The scope of the call holds the request; nobody needs its bodies any more, and many may wait.
        self.current, self._after, request.document = Intercepted([], b""), None, None
        self._scanned = None
        completion.started_at.FromNanoseconds(int(self._started * 1e9))
        completion.completed_at.FromNanoseconds(int(request.clock.now() * 1e9))
        self._steps.lifecycle.complete(execution, completion)

    def _serves(self, plugin_id: str) -> bool:
        """Whether a plugin's executor can take this request without a credential."""
        capability = self._steps.registry.executor(plugin_id)
        return (
            capability is not None
            and capability.model_scope != plugin_pb2.EXECUTOR_MODEL_SCOPE_OAUTH
            and self._steps.accepts(self._request)(capability)
        )


def _facts(request: Request) -> Facts:
    assert request.client is not None
    # `match` speaks of models, as allow-lists do: else `model(high)` would pass a plugin by.
    model, _ = targets.bare(request.snapshot, request.model)
    return Facts(
        request.routed.dialect.name,
        model,
        route=model if model in request.snapshot.route_names else "",
        client_key=request.client.name,
    )


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
