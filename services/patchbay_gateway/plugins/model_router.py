"""
Model routers: plugins that say where a request goes before the catalogue is asked.

The first valid answer wins; an error, no answer, and a target that cannot serve pass the question on.
Source: pluginapi, ModelRouter. Not here: what follows from a route (the pipeline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import status
from patchbay.plugin.v1 import model_router_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks

_FLAG: Final = "model_router"
_SELF: Final = model_router_pb2.MODEL_ROUTE_TARGET_KIND_SELF
_EXECUTOR: Final = model_router_pb2.MODEL_ROUTE_TARGET_KIND_EXECUTOR
_PROVIDER: Final = model_router_pb2.MODEL_ROUTE_TARGET_KIND_PROVIDER

_log = logs.get_logger("plugins")


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Where a request goes; exactly one of `executor` and `provider` is set."""

    router: str
    executor: str = ""
    """Plugin id: a direct route, without a credential, with the client's model."""
    provider: str = ""
    model: str = ""
    """With `provider`: the model to ask it for; the client's when it named none."""


class ModelRouters:
    """
    Asks routers.

    Args:
        hooks: Who is asked.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls

    def of(self, execution: PluginExecution) -> tuple[Hook, ...]:
        """Return who is asked about *execution*."""
        return self._hooks.asked(execution, _FLAG)

    async def route(
        self,
        hooks: Sequence[Hook],
        execution: PluginExecution,
        *,
        headers: Headers,
        query: Mapping[str, Sequence[str]],
        body: bytes,
        serves: Callable[[str], bool],
    ) -> ModelRoute | None:
        """
        Return the first valid route, None when every router passes.

        Args:
            hooks: From `of`.
            execution: Which one.
            headers: The client's without credentials.
            query: Likewise.
            body: The client's.
            serves: Whether a plugin's executor can take this request on a direct route.
        """
        snapshot = execution.snapshot
        available = sorted(
            p.name for p in snapshot.providers if any(not c.disabled for c in p.credentials)
        )
        for hook in hooks:
            message = model_router_pb2.ModelRouteRequest(
                source_format=execution.source_format,
                requested_model=execution.requested_model,
                stream=execution.stream,
                body=body,
                metadata=execution.metadata,
                available_providers=available,
                operation=execution.operation,
                request_id=execution.request_id,
            )
            status.headers_to_map(headers, message.headers)
            for name, values in query.items():
                message.query[name].values.extend(values)
            answer = await self._calls.ask(hook, methods.ROUTE_MODEL, message, execution)
            if answer is None or not answer.handled:
                continue
            route = _route(hook.plugin_id, execution, answer)
            if route is not None and (
                route.provider in available if route.provider else serves(route.executor)
            ):
                return route
            _log.warning(
                "a model router named a target that cannot serve; the next is asked",
                plugin=hook.plugin_id,
                target=answer.target,
                kind=answer.target_kind,
            )
        return None


def _route(
    router: str, execution: PluginExecution, answer: model_router_pb2.ModelRouteResponse
) -> ModelRoute | None:
    target = answer.target.strip()
    if answer.target_kind == _SELF:
        return ModelRoute(router, executor=router)
    if answer.target_kind == _EXECUTOR and target:
        return ModelRoute(router, executor=target)
    if answer.target_kind == _PROVIDER and target:
        model = answer.target_model.strip() or execution.requested_model
        return ModelRoute(router, provider=target, model=model)
    return None
