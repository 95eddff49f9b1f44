"""A page about credentials: what a plugin that is granted them may list, read and keep."""

from __future__ import annotations

import json

from patchbay import errors
from patchbay.headers import parameter
from patchbay.management import (
    ManagementAPI,
    ManagementRequest,
    ManagementResponse,
    ManagementRoute,
)

_JSON = ((b"content-type", b"application/json"),)


class AuthFiles(ManagementAPI):
    """Lists credentials, tells the names of a document's keys, and adds a note to a document."""

    id = "auth-files"
    name = "Auth files"
    version = "1.0.0"
    author = "Patchbay"
    routes = (
        ManagementRoute("auth-files", description="All, or with `index` one."),
        ManagementRoute("auth-files", "POST", description="Adds a note: `index`, `note`."),
    )

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Serve one request."""
        host, index = request.callbacks, parameter(request.query, "index")
        try:
            if not index:
                files = await host.list_auths()
                found: object = [{"index": f.auth_index, "status": f.status} for f in files]
            elif request.method == "POST":
                auth = await host.get_auth(index)
                note = parameter(request.query, "note")
                found = {"saved": await host.save_auth(auth.name, {**auth.document, "note": note})}
            else:
                auth = await host.get_auth(index)
                # Values stay where they are: a page is no place for secrets.
                found = {"name": auth.name, "keys": sorted(auth.document)}
        except errors.PatchbayError as error:
            problem = json.dumps({"error": error.reason}).encode()
            return ManagementResponse(problem, 502, _JSON)
        return ManagementResponse(json.dumps(found).encode(), headers=_JSON)
