"""
Who a client is, from all sources: what made the request, the configured keys, plugins.

An exclusive frontend auth plugin decides alone, the configured keys and open access included; any frontend
auth plugin ends open access. Not here:
the keys (auth.py), the plugins (plugins/frontend_auth.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from patchbay import errors
from patchbay_gateway.edge.auth import OPEN, Client

if TYPE_CHECKING:
    from patchbay_gateway.edge.auth import Authenticator
    from patchbay_gateway.edge.exchange import Head
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.routes.request import RoutedRequest
    from patchbay_gateway.edge.steps import PluginSteps
    from patchbay_gateway.plugins.snapshot import Snapshot


def client(
    routed: RoutedRequest, snapshot: Snapshot, keys: Authenticator, plugins: PluginSteps
) -> Client | None:
    """
    Return who sent the request; None when plugins have to be asked, which takes the body.

    Raises:
        Unauthenticated: No configured key, and no plugin that could know more.
        PermissionDenied: Open access, from a foreign page.
        InvalidRequest: Open access, no JSON.
    """
    if routed.client is not None:
        return routed.client
    return _by_keys(routed.exchange.head, snapshot, keys, plugins)


async def reader(
    head: Head, snapshot: Snapshot, keys: Authenticator, plugins: PluginSteps
) -> Client:
    """
    Return who sent a request without a body.

    Raises:
        Unauthenticated: Nobody knows.
        PermissionDenied: Open access, from a foreign page.
        Unavailable: FRONTEND_AUTH_UNAVAILABLE, the exclusive plugin cannot be asked.
    """
    known = _by_keys(head, snapshot, keys, plugins)
    return known if known is not None else await _by_plugins(head, b"", snapshot, plugins)


def _by_keys(
    head: Head, snapshot: Snapshot, keys: Authenticator, plugins: PluginSteps
) -> Client | None:
    if plugins.frontend.exclusive(snapshot) is not None:
        return None
    try:
        known = keys.authenticate(head, snapshot)
    except errors.Unauthenticated:
        if plugins.frontend.any(snapshot):
            return None
        raise
    if known is OPEN and plugins.frontend.any(snapshot):
        # Whoever has plugins say who enters does not mean that everybody may.
        return None
    return known


async def by_plugins(request: Request, plugins: PluginSteps) -> Client:
    """
    Return whom the plugins know.

    Raises:
        Unauthenticated: Nobody; reason UNKNOWN_KEY.
        Unavailable: FRONTEND_AUTH_UNAVAILABLE, the exclusive plugin cannot be asked.
    """
    assert request.document is not None
    head = request.routed.exchange.head
    return await _by_plugins(head, request.document.data, request.snapshot, plugins)


async def _by_plugins(head: Head, body: bytes, snapshot: Snapshot, plugins: PluginSteps) -> Client:
    found = await plugins.frontend.authenticate(
        snapshot,
        method=head.method,
        path=head.path,
        headers=head.headers,
        query=parse_qs(head.query.decode("latin-1"), keep_blank_values=True),
        body=body,
        remote=head.peer,
    )
    if found is None:
        raise errors.Unauthenticated("the client is not known here", reason="UNKNOWN_KEY")
    return Client(name=found.name, tenant=found.tenant, source=found.provider, matcher=None)
