"""
A page that asks a model: every parameter of a model call back to the gateway, whole and streamed.

Query of `/v0/resource/plugins/host-model-callback/status`: `model`, `prompt`, `body` (JSON, in place of the
one that is made from the prompt), `entry_protocol`, `exit_protocol`, `alt`, `stream`, `implicit_close`.
A wrong query is a page of status 400; a failed model call is a page of status 200 that says so.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.headers import parameter
from patchbay.host_types import HostModelExecutionRequest
from patchbay.management import ManagementAPI, ManagementRequest, ManagementResponse, ResourceRoute

if TYPE_CHECKING:
    from patchbay.headers import Query
    from patchbay.host_client import HostStream

_HTML = ((b"content-type", b"text/html; charset=utf-8"),)
_FORMATS = ("openai", "openai-response", "claude", "gemini")


class HostModelCallback(ManagementAPI):
    """Asks a model for a page."""

    id = "host-model-callback"
    name = "Host model callback"
    version = "1.0.0"
    author = "Patchbay"
    resources = (
        ResourceRoute(
            "status", menu="Model callback", description="Asks a model through the gateway."
        ),
    )

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Ask, and show what came."""
        try:
            asked, stream = _asked(request.query), _flag(request.query, "stream")
            implicit = _flag(request.query, "implicit_close")
        except errors.InvalidRequest as error:
            return _page(400, [("error", error.message)])
        rows = [("model", asked.model), ("entry_protocol", asked.entry_protocol)]
        try:
            if stream:
                found = await request.callbacks.execute_model_stream(asked)
                rows += await _read(found, implicit=implicit)
            else:
                answer = await request.callbacks.execute_model(asked)
                rows += [("status", str(answer.status_code)), ("body", answer.body.decode())]
        except errors.PatchbayError as error:
            rows.append(("error", f"{error.reason}: {error.message}"))
        return _page(200, rows)


async def _read(stream: HostStream, *, implicit: bool) -> list[tuple[str, str]]:
    """
    Read to the end.

    A stream that is not closed here (*implicit*) is closed by the gateway when this call ends. To close it
    oneself is better: what it holds is free at once.
    """
    rows = [("status", str(stream.status_code))]
    try:
        rows += [("chunk", chunk.decode(errors="replace")) async for chunk in stream]
    finally:
        if not implicit:
            await stream.aclose()
    return [*rows, ("close", "implicit" if implicit else "explicit")]


def _asked(query: Query) -> HostModelExecutionRequest:
    """Return the model call that *query* asks for; raises InvalidRequest."""
    entry = parameter(query, "entry_protocol") or "openai"
    leave = parameter(query, "exit_protocol") or entry
    for name in (entry, leave):
        if name not in _FORMATS:
            raise errors.InvalidRequest(f"{name} is none of {', '.join(_FORMATS)}")
    model = parameter(query, "model") or "gpt-5.5"
    text = parameter(query, "body")
    if text:
        try:
            json.loads(text)
        except ValueError:
            raise errors.InvalidRequest("body is no JSON") from None
    else:
        message = {"role": "user", "content": parameter(query, "prompt") or "Say hello."}
        chat = {"model": model, "messages": [message], "stream": _flag(query, "stream")}
        text = json.dumps(chat)
    return HostModelExecutionRequest(
        model, text.encode(), entry, leave, alt=parameter(query, "alt")
    )


def _flag(query: Query, name: str) -> bool:
    value = parameter(query, name).lower() or "false"
    if value not in {"true", "false", "1", "0"}:
        raise errors.InvalidRequest(f"{name} must be true or false")
    return value in {"true", "1"}


def _page(status: int, rows: list[tuple[str, str]]) -> ManagementResponse:
    cells = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in rows)
    page = f"<!doctype html><title>Model callback</title><dl>{cells}</dl>"
    return ManagementResponse(page.encode(), status, _HTML)
