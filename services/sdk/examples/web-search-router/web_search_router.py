"""
Web search for models that have none: a model router that takes such requests to its own executor.

Requests in the Claude dialect that name the tool `web_search` go to this plugin (`to_self`), every other
to the catalogue. The executor asks the gateway for the same request without the tool, streamed, and passes
on what comes. A gateway leaves this plugin's router and interceptors out of calls that it makes itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from patchbay import errors
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.host_types import HostModelExecutionRequest
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from patchbay.executor import StreamItem


class WebSearchRouter(ModelRouter, Executor):
    """Serves requests with the built-in web search of Claude by another model."""

    id = "web-search-router"
    name = "Web search router"
    version = "1.0.0"
    author = "Patchbay"
    input_formats = ("claude",)
    output_formats = ("claude",)

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Take requests with the tool."""
        if request.source_format != "claude" or b"web_search" not in request.body:
            return None
        if not _has_search(_document(request.body)):
            return None
        return ModelRouteResponse.to_self(reason="the request asks for web_search")

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Run the request without the tool."""
        answer = await request.callbacks.execute_model(_inner(request))
        return ExecutorResponse(answer.body, content_type=answer.content_type)

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Run the request without the tool, streamed."""
        # Leaving the block closes the inner stream, also when the client leaves this one.
        async with await request.callbacks.execute_model_stream(_inner(request)) as stream:
            yield StreamHead(content_type=stream.content_type)
            async for chunk in stream:
                if chunk:
                    yield StreamBatch([chunk])
        yield StreamTail()


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and str(tool.get("type", "")).startswith("web_search")


def _has_search(body: dict[str, Any]) -> bool:
    tools = body.get("tools")
    return isinstance(tools, list) and any(map(_is_search, tools))


def _inner(request: ExecutorRequest) -> HostModelExecutionRequest:
    body = _document(request.payload)
    if not body:
        raise errors.InvalidRequest("the body is no JSON object")
    tools = [tool for tool in body.pop("tools", ()) if not _is_search(tool)]
    if tools:
        body["tools"] = tools
    return HostModelExecutionRequest(
        request.model, json.dumps(body).encode(), entry_protocol="claude"
    )
