"""
The part of HostService that every process answers alike: lines for the log, and HTTP.

Whatever is open in a scope ends with it, as SCOPE_ENDED. Not here: models and credentials, which processes
answer each in their way (edge/callbacks/servicer.py, scheduler/host_service.py), the server (serving.py).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from patchbay.host.v1 import host_pb2_grpc, http_pb2, log_pb2
from patchbay_gateway.plugins.callbacks import log_lines
from patchbay_gateway.plugins.callbacks.callers import within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.channels.port import CallContext
    from patchbay_gateway.plugins.callbacks.callers import Callers
    from patchbay_gateway.plugins.callbacks.http_calls import HttpCalls

# ruff: noqa: N802 - methods of a servicer have their names on the wire


class CallbackServicer(host_pb2_grpc.HostServiceServicer):
    """
    The servicer but for models and credentials.

    Args:
        callers: Tells who calls.
        http: Makes HTTP requests.
    """

    def __init__(self, callers: Callers, http: HttpCalls) -> None:
        self._callers = callers
        self._http = http

    async def Log(
        self, request: log_pb2.HostLogRequest, context: CallContext
    ) -> log_pb2.HostLogResponse:
        """Write one line (plugins/callbacks/log_lines.py)."""
        log_lines.write(await self._callers.identify(context), request)
        return log_pb2.HostLogResponse()

    async def HttpDo(
        self, request: http_pb2.HTTPRequest, context: CallContext
    ) -> http_pb2.HTTPResponse:
        """Make one HTTP request (plugins/callbacks/http_calls.py)."""
        caller = await self._callers.identify(context)
        with within(caller.scope):
            return await self._http.whole(caller, request)

    async def HttpDoStream(
        self, request: http_pb2.HTTPRequest, context: CallContext
    ) -> AsyncIterator[http_pb2.HTTPStreamResponse]:
        """Make one HTTP request with a streamed answer."""
        caller = await self._callers.identify(context)
        with within(caller.scope):
            async with contextlib.aclosing(self._http.stream(caller, request)) as parts:
                async for part in parts:
                    yield part
