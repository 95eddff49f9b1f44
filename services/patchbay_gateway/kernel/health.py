"""
Liveness, readiness and metrics over HTTP, for processes that serve no HTTP otherwise.

    GET /livez     200 while the event loop turns; nothing else is looked at, for a restart heals nothing else
    GET /readyz    200 when every check passes, else 503 with the reasons
    GET /metrics   the page of `telemetry.Metrics`

Not here: the management API of the edge, which mounts `HealthApp` for the same three paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel import telemetry

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterator,
        Mapping,
        MutableMapping,
    )

    Check = Callable[[], str | None]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"


class HealthApp:
    """
    The ASGI application.

    Args:
        checks: Name and function; it returns None when all is well, else a sentence for people. Functions
            look at state that is there already: probes come often and must not wait.
        metrics: Rendered at each scrape.
    """

    def __init__(self, checks: Mapping[str, Check], metrics: telemetry.Metrics) -> None:
        self._checks = checks
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, kind, body = self.answer(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body."""
        if method not in {"GET", "HEAD"}:
            return 405, _TEXT, b"use GET\n"
        if path == "/livez":
            return 200, _TEXT, b"ok\n"
        if path == "/metrics":
            return 200, telemetry.CONTENT_TYPE, self._metrics.render()
        if path == "/readyz":
            failing = self.failing()
            body = {"ready": not failing, "failing": failing, "checks": sorted(self._checks)}
            return (503 if failing else 200), _JSON, orjson.dumps(body) + b"\n"
        return 404, _TEXT, b"here are /livez, /readyz and /metrics\n"

    def failing(self) -> dict[str, str]:
        """Return the checks that do not pass, with their reasons."""
        results = {name: check() for name, check in self._checks.items()}
        return {name: reason for name, reason in results.items() if reason is not None}


@contextlib.asynccontextmanager
async def serve_health(
    host: str, port: int, checks: Mapping[str, Check], metrics: telemetry.Metrics
) -> AsyncIterator[int]:
    """
    Serve `HealthApp` on *host*:*port* (0: any free one) inside the `async with`, which gives the port.

    Raises:
        FailedPrecondition: The address cannot be had.
    """
    async with serve_app(HealthApp(checks, metrics), host, port) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serve_app(app: Any, host: str, port: int) -> AsyncIterator[int]:
    """
    Serve an ASGI application beside the process's main business; gives the port.

    Raises:
        FailedPrecondition: The address cannot be had.
    """
    import uvicorn  # noqa: PLC0415 - only processes that serve health pay for it

    class Server(uvicorn.Server):
        # Signals belong to `lifecycle.run`.
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",  # it would load a library for them
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="health-http")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise FailedPrecondition(
            f"health cannot be served on {host}:{port}: {error.strerror}; choose another port",
            reason="ADDRESS_IN_USE",
        ) from error
