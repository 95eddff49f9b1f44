"""A page and a route: a management plugin that shows and clears a count."""

from __future__ import annotations

import html
import json

from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
)
from patchbay.management import (
    ManagementAPI,
    ManagementRequest,
    ManagementResponse,
    ManagementRoute,
    ResourceRoute,
)

_HTML = ((b"content-type", b"text/html; charset=utf-8"),)
_JSON = ((b"content-type", b"application/json"),)


class ManagementPage(ManagementAPI, RequestInterceptor):
    """Counts requests by model; a page shows the counts, a route behind the management key clears them."""

    id = "management-page"
    name = "Management page"
    version = "1.0.0"
    author = "Patchbay"
    needs_request_body = False
    resources = (ResourceRoute("status", menu="Requests", description="Requests by model."),)
    routes = (
        ManagementRoute("management-page/counts", description="The counts."),
        ManagementRoute("management-page/counts", "DELETE", description="Clears them."),
    )

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Count."""
        model = request.requested_model
        self._counts[model] = self._counts.get(model, 0) + 1
        return None

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Show or clear."""
        if request.path.endswith("/status"):
            rows = "".join(
                f"<tr><td>{html.escape(model)}</td><td>{count}</td></tr>"
                for model, count in sorted(self._counts.items())
            )
            page = f"<!doctype html><title>Requests</title><table>{rows}</table>"
            return ManagementResponse(page.encode(), headers=_HTML)
        if request.method == "DELETE":
            self._counts.clear()
            return ManagementResponse(status_code=204)
        return ManagementResponse(json.dumps(self._counts).encode(), headers=_JSON)
