"""
The ASGI application of the management port.

The outer layer answers probes and metrics by itself and lets the others in or not; it is plain ASGI, so
that answers stream. Behind it stands FastAPI, loaded by the first request that needs it: an edge that
nobody asks starts faster and stays smaller. Not here: the routes (routes.py), who may ask (access.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors
from patchbay_gateway.edge.management.failures import STATUS, error_body
from patchbay_gateway.edge.management.logins import CALLBACK
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.plugins.management_api import PAGES
from patchbay_gateway.plugins.response_headers import SANDBOX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from patchbay_gateway.edge.management.access import Door
    from patchbay_gateway.edge.management.port import ManagementPorts
    from patchbay_gateway.kernel.clock import Clock

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# The page names paths and parameters, no data; a browser cannot send a key for it.
_PUBLIC: Final = frozenset({"/", "/docs", "/openapi.json"})

# One page of our own with styles in it; no script, no frame, nothing from elsewhere.
_SAFETY: Final = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
]
# A plugin's page may have scripts, as an origin of its own that reads nothing of this one.
_PAGE: Final = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), SANDBOX]


def build_management_app(
    ports: ManagementPorts, access: Door, *, clock: Clock | None = None
) -> Application:
    """
    Return the ASGI application.

    Args:
        ports: What it asks of the process.
        access: Who may ask.
        clock: For `since=24h`; None means the machine's.
    """
    return _Gate(ports, access, clock or SystemClock())


class _Gate:
    """Probes, metrics, and the door to the API."""

    def __init__(self, ports: ManagementPorts, access: Door, clock: Clock) -> None:
        self._ports = ports
        self._access = access
        self._clock = clock
        self._api: Application | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        if path in {"/livez", "/readyz"}:
            # A kubelet asks by the pod's address; there is nothing to steal.
            await self._ports.health(scope, receive, send)
            return
        try:
            if path == "/metrics" or path in _PUBLIC or path == CALLBACK:
                self._access.refuse_foreign(scope["headers"])
            else:
                scope["patchbay.principal"] = self._access.admit(scope["method"], scope["headers"])
        except errors.PatchbayError as error:
            await _refuse(send, error)
            return
        if path == "/metrics":
            await self._ports.health(scope, receive, send)
            return
        safety = _PAGE if path.startswith(f"{PAGES}/") else _SAFETY
        await (self._api or await self._load())(scope, receive, _with(safety, send))

    async def _load(self) -> Application:
        """Build the API once; the import runs in a thread, off the loop that serves streams."""
        async with self._loading:
            if self._api is None:
                self._api = await asyncio.to_thread(_build, self._ports, self._clock)
        return self._api


def _build(ports: ManagementPorts, clock: Clock) -> Application:
    from patchbay_gateway.edge.management.routes import build_api  # noqa: PLC0415 - see _load

    return build_api(ports, clock)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _refuse(send: Send, error: errors.PatchbayError) -> None:
    status = STATUS.get(type(error), 500)
    body = json.dumps(error_body(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_SAFETY,
    ]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="patchbay management"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with(safety: list[tuple[bytes, bytes]], send: Send) -> Send:
    async def with_safety(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *safety]
        await send(message)

    return with_safety
