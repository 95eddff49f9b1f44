"""
Request interceptors: the chain before a credential is chosen, and the one of each attempt.

Each plugin gets what its predecessors made of headers and body. A plugin may end the request with an
answer of its own; nothing after it is asked. Source: pluginapi, RequestInterceptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors, status
from patchbay.plugin.v1 import request_interceptor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import failed, warn
from patchbay_gateway.plugins.header_merge import for_client, merge
from patchbay_gateway.plugins.policy import OnError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.kernel.channels.port import Method
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks

    Check = Callable[[bytes], Awaitable[object]]
    """Raises InvalidRequest for a body that is none of a request."""

_FLAG: Final = "request_interceptor"
_DEFAULT_STATUS: Final = 403


class Terminated(Exception):
    """A plugin ended the request; the client gets this."""

    def __init__(self, plugin_id: str, status_code: int, headers: Headers, body: bytes) -> None:
        super().__init__(f"request terminated by plugin {plugin_id}")
        self.plugin_id = plugin_id
        self.status = status_code if 200 <= status_code <= 599 else _DEFAULT_STATUS
        self.headers = headers
        """Without those of the connection; `content-type` is among them."""
        self.body = body


@dataclass(frozen=True, slots=True)
class Intercepted:
    """A request after a chain."""

    headers: Headers
    body: bytes


class RequestInterceptors:
    """
    The two chains.

    Args:
        hooks: Who is asked.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls

    def of(self, execution: PluginExecution) -> tuple[Hook, ...]:
        """Return who is asked about *execution*; with nobody the caller need not ask."""
        return self._hooks.asked(execution, _FLAG)

    async def before(
        self,
        hooks: Sequence[Hook],
        execution: PluginExecution,
        headers: Headers,
        body: bytes,
        *,
        check: Check | None = None,
    ) -> Intercepted:
        """
        Run the chain of the whole execution.

        Args:
            hooks: From `of`.
            execution: Which one.
            headers: The client's.
            body: The client's.
            check: Looks at each body that a plugin puts in its place.

        Raises:
            Terminated: A plugin answered the client.
            Unavailable: PLUGIN_FAILED.
        """
        message = self._message(execution, model=execution.requested_model)
        return await self._run(
            [h for h in hooks if not h.needs.no_request_before_auth],
            methods.INTERCEPT_REQUEST_BEFORE_AUTH,
            execution,
            message,
            Intercepted(headers, body),
            check,
        )

    async def after(
        self,
        hooks: Sequence[Hook],
        execution: PluginExecution,
        request: Intercepted,
        *,
        model: str,
        to_format: str,
        attempt: int,
        check: Check | None = None,
    ) -> Intercepted:
        """
        Run the chain of one attempt, from what `before` made of the request.

        Args:
            hooks: From `of`.
            execution: Which one.
            request: Headers and body as they stand.
            model: Upstream model.
            to_format: What the executor takes.
            attempt: From 1.
            check: As in `before`.

        Raises:
            Terminated: A plugin answered the client.
            Unavailable: PLUGIN_FAILED.
        """
        message = self._message(execution, model=model)
        message.to_format = to_format
        message.attempt = attempt
        return await self._run(
            [h for h in hooks if not h.needs.no_request_after_auth],
            methods.INTERCEPT_REQUEST_AFTER_AUTH,
            execution,
            message,
            request,
            check,
        )

    @staticmethod
    def _message(
        execution: PluginExecution, *, model: str
    ) -> request_interceptor_pb2.RequestInterceptRequest:
        return request_interceptor_pb2.RequestInterceptRequest(
            request_id=execution.request_id,
            trace_id=execution.trace_id,
            source_format=execution.source_format,
            model=model,
            requested_model=execution.requested_model,
            stream=execution.stream,
            metadata=execution.metadata,
            operation=execution.operation,
        )

    async def _run(
        self,
        hooks: Sequence[Hook],
        method: Method[
            request_interceptor_pb2.RequestInterceptRequest,
            request_interceptor_pb2.RequestInterceptResponse,
        ],
        execution: PluginExecution,
        template: request_interceptor_pb2.RequestInterceptRequest,
        request: Intercepted,
        check: Check | None,
    ) -> Intercepted:
        headers, body = request.headers, request.body
        for hook in hooks:
            message = request_interceptor_pb2.RequestInterceptRequest()
            message.CopyFrom(template)
            status.headers_to_map(headers, message.headers)
            if not hook.needs.no_request_body:
                message.body = body
            answer = await self._calls.ask(hook, method, message, execution)
            if answer is None:
                continue
            if answer.body and check is not None and not answer.terminate:
                try:
                    await check(answer.body)
                except errors.InvalidRequest as error:
                    # The plugin's fault, not the client's, and treated like its other failures.
                    broken = errors.Internal(f"its body is no request: {error.message}")
                    if hook.policy.on_error is OnError.FAIL_REQUEST:
                        raise failed(hook, broken) from error
                    warn(hook, broken)
                    continue
            headers = merge(headers, answer.headers, answer.clear_headers)
            body = answer.body or body
            if answer.terminate:
                raise Terminated(
                    hook.plugin_id,
                    answer.status_code,
                    for_client(status.headers_from_map(answer.response_headers)),
                    answer.response_body,
                )
        return Intercepted(headers, body)
