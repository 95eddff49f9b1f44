"""
HostService on an edge: who calls, then what is asked, in the scope that it is asked in.

Whatever is open in a scope ends with it, as SCOPE_ENDED. Not here: what is done (models.py, auths.py,
plugins/callbacks), the server (serving.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay import status
from patchbay.host.v1 import model_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.callbacks.callers import within
from patchbay_gateway.plugins.callbacks.servicer import CallbackServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay.host.v1 import auth_pb2
    from patchbay_gateway.edge.callbacks.auths import AuthForwarding
    from patchbay_gateway.edge.callbacks.models import ModelCalls
    from patchbay_gateway.kernel.channels.port import CallContext
    from patchbay_gateway.plugins.callbacks.callers import Callers
    from patchbay_gateway.plugins.callbacks.http_calls import HttpCalls

# ruff: noqa: N802 - methods of a servicer have their names on the wire


class EdgeHostServicer(CallbackServicer):
    """
    The servicer of one edge.

    Args:
        callers: Tells who calls.
        models: Runs models.
        http: Makes HTTP requests.
        auths: Asks the scheduler.
    """

    def __init__(
        self, callers: Callers, *, models: ModelCalls, http: HttpCalls, auths: AuthForwarding
    ) -> None:
        super().__init__(callers, http)
        self._models = models
        self._auths = auths

    async def ExecuteModel(
        self, request: model_pb2.HostModelExecutionRequest, context: CallContext
    ) -> model_pb2.HostModelExecutionResponse:
        """Run one model call (models.py)."""
        caller = await self._callers.identify(context)
        with within(caller.scope):
            async with self._models.call(caller, request, stream=False) as call:
                answer = model_pb2.HostModelExecutionResponse(
                    status_code=call.status,
                    body=await call.whole(),
                    content_type=call.content_type,
                )
                status.headers_to_map(call.headers, answer.headers)
                return answer

    async def ExecuteModelStream(
        self, request: model_pb2.HostModelExecutionRequest, context: CallContext
    ) -> AsyncIterator[model_pb2.HostModelStreamResponse]:
        """Run one model call with a streamed answer."""
        caller = await self._callers.identify(context)
        with within(caller.scope):
            async with self._models.call(caller, request, stream=True) as call:
                head = model_pb2.HostModelStreamHead(
                    status_code=call.status, content_type=call.content_type
                )
                status.headers_to_map(call.headers, head.headers)
                began = False
                async for chunks in call.chunks():
                    if not began:
                        # With the first chunk: a failure before it is the call's own.
                        began = True
                        yield model_pb2.HostModelStreamResponse(head=head)
                    batch = model_pb2.HostModelStreamBatch(chunks=chunks)
                    yield model_pb2.HostModelStreamResponse(batch=batch)
                if not began:
                    yield model_pb2.HostModelStreamResponse(head=head)

    async def ListAuths(
        self, request: auth_pb2.HostAuthListRequest, context: CallContext
    ) -> auth_pb2.HostAuthListResponse:
        """List credentials (scheduler/host_service.py)."""
        await self._callers.identify(context)
        return await self._auths.call(methods.LIST_AUTHS, request, context)

    async def GetAuth(
        self, request: auth_pb2.HostAuthGetRequest, context: CallContext
    ) -> auth_pb2.HostAuthGetResponse:
        """Return a credential's document (scheduler/host_service.py)."""
        await self._callers.identify(context)
        return await self._auths.call(methods.GET_AUTH, request, context)

    async def GetAuthRuntime(
        self, request: auth_pb2.HostAuthGetRequest, context: CallContext
    ) -> auth_pb2.HostAuthGetRuntimeResponse:
        """Return a credential's state (scheduler/host_service.py)."""
        await self._callers.identify(context)
        return await self._auths.call(methods.GET_AUTH_RUNTIME, request, context)

    async def SaveAuth(
        self, request: auth_pb2.HostAuthSaveRequest, context: CallContext
    ) -> auth_pb2.HostAuthSaveResponse:
        """Keep a credential's document (scheduler/host_service.py)."""
        await self._callers.identify(context)
        return await self._auths.call(methods.SAVE_AUTH, request, context)
