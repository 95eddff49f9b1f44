"""
Response interceptors: whole successful answers before they go to the client.

Source: pluginapi, ResponseInterceptor. Each plugin gets what its predecessors made of headers and body.
Not here: streams (stream_interceptors.py), which of the headers reach the client (the pipeline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import status
from patchbay.plugin.v1 import response_interceptor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.beside import with_room
from patchbay_gateway.plugins.header_merge import merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks

_FLAG: Final = "response_interceptor"


@dataclass(frozen=True, slots=True)
class Executed:
    """The request as the successful attempt executed it."""

    model: str
    """Upstream model."""
    headers: Headers
    original: bytes
    """The client's body after the interceptors."""
    body: bytes
    """What the executor got; empty where it equals `original`."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer on its way to the client."""

    status: int
    headers: Headers
    """All of the provider's, whether the client will see them or not."""
    body: bytes
    content_type: str = ""


class ResponseInterceptors:
    """
    The chain.

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

    async def run(
        self,
        hooks: Sequence[Hook],
        execution: PluginExecution,
        request: Executed,
        answer: Answered,
    ) -> Answered:
        """
        Return *answer* after the chain.

        Raises:
            Unavailable: PLUGIN_FAILED.
        """
        headers, body = answer.headers, answer.body
        for hook in hooks:
            message = response_interceptor_pb2.ResponseInterceptRequest(
                request_id=execution.request_id,
                source_format=execution.source_format,
                model=request.model,
                requested_model=execution.requested_model,
                body=body,
                status_code=answer.status,
                metadata=execution.metadata,
                content_type=answer.content_type,
                operation=execution.operation,
            )
            status.headers_to_map(request.headers, message.request_headers)
            status.headers_to_map(headers, message.response_headers)
            if not hook.needs.no_request_body:
                message.original_request, message.request_body = with_room(
                    execution.snapshot, body, request.original, request.body
                )
            reply = await self._calls.ask(hook, methods.INTERCEPT_RESPONSE, message, execution)
            if reply is None:
                continue
            headers = merge(headers, reply.headers, reply.clear_headers)
            body = reply.body or body
        return Answered(answer.status, headers, body, answer.content_type)
