"""
Plugins' own routes and pages behind the management API.

They come last: what the gateway serves itself is never theirs. A plugin that fails or is silent is a 502 in
plain text. Pages run scripts in a sandbox of their own origin, so that they cannot read the API that stands
beside them.

Not here: which routes there are (plugins/management_api.py), the clients' port (edge/routes/pages.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from patchbay import errors
from patchbay_gateway.edge.headers import for_plugins, query_for_plugins
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins.management_api import PAGES
from patchbay_gateway.plugins.response_headers import for_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from patchbay_gateway.edge.management.port import ManagementPorts
    from patchbay_gateway.plugins.hooks import Hook

_BODY: Final = 32 << 20
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")

_log = logs.get_logger("management.plugins")


async def serve(request: Request, ports: ManagementPorts, own: Sequence[BaseRoute]) -> Response:
    """
    Answer a request that no route of the gateway takes.

    Raises:
        HTTPException: 404, 405 or 413.
    """
    path = request.url.path
    hook: Hook | None = None
    plugins = ports.plugin_pages
    if plugins is not None:
        if path.startswith(f"{PAGES}/"):
            if request.method not in {"GET", "HEAD"}:
                raise HTTPException(405, "pages are read by GET", {"allow": "GET, HEAD"})
            hook = await plugins.page(path)
        else:
            hook = await plugins.route(request.method, path.rstrip("/"))
    if hook is None or plugins is None:
        allowed = _allowed(request, own)
        if allowed:
            raise HTTPException(405, "Method Not Allowed", {"allow": ", ".join(allowed)})
        raise HTTPException(404, "Not Found")
    is_page = path.startswith(f"{PAGES}/")
    method = "GET" if is_page else request.method
    try:
        code, headers, body = await plugins.handle(
            hook,
            method,
            path.rstrip("/"),
            [pair for pair in for_plugins(request.headers.raw) if pair[0] != b"x-management-key"],
            parse_qsl(
                query_for_plugins(request.scope["query_string"]).decode("latin-1"),
                keep_blank_values=True,
            ),
            b"" if is_page else await _body(request),
        )
    except errors.PatchbayError as error:
        _log.warning("a plugin did not answer", plugin=hook.plugin_id, path=path, why=error.message)
        return Response(
            f"plugin {hook.plugin_id} did not answer: {error.reason}\n",
            502,
            media_type="text/plain",
        )
    response = Response(body if request.method != "HEAD" else b"", code)
    response.raw_headers = [
        *for_pages(headers),
        (b"content-length", str(len(body)).encode()),
    ]
    return response


def _allowed(request: Request, own: Sequence[BaseRoute]) -> list[str]:
    """Return the methods by which the gateway itself serves the path."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in own)
    ]


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > _BODY:
            raise HTTPException(413, "the body is larger than 32 MiB")
        parts.append(part)
    return b"".join(parts)
