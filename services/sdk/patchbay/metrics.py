"""
What a plugin's process says to Prometheus and to HTTP probes: `/metrics`, `/livez`, `/readyz`.

Off unless PATCHBAY_HEALTH_PORT names a port (9103 by convention). The numbers are those that the server
counts anyway; with prometheus-client installed (`patchbay-sdk[metrics]`) the page also has the process's
memory and CPU and every instrument of the plugin's own in the default registry. Not here: gRPC health
(server.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from patchbay import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from patchbay.server import Served

PORT: Final = "PATCHBAY_HEALTH_PORT"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# A scraper that says nothing for so long, seconds, is gone; its head is a few hundred bytes.
_PATIENCE: Final = 10.0
_HEAD: Final = 16 << 10


def render(served: Mapping[str, Served]) -> str:
    """Return *served* (method path → counts) as a page of Prometheus."""
    known = {path.removeprefix("/patchbay.").lstrip("/"): s for path, s in sorted(served.items())}
    # Methods that nobody called are not worth a series.
    used = {m: s for m, s in known.items() if s.open or s.answered or s.errors}
    streams = sum(s.open for s in known.values() if s.stream)
    totals = [
        (f'{{method="{method}",code="{code}"}}', count)
        for method, s in used.items()
        for code, count in (("ok", s.answered), *sorted(s.errors.items()))
    ]
    pages = (
        ("open_streams", "gauge", "Streamed answers under way.", [("", streams)]),
        ("open_calls", "gauge", "Calls under way.", [("", sum(s.open for s in known.values()))]),
        ("served_total", "counter", "Calls that ended, by their code.", totals),
        (
            "served_seconds_total",
            "counter",
            "Time that calls took.",
            [(f'{{method="{method}"}}', round(s.seconds, 6)) for method, s in used.items()],
        ),
    )
    lines = []
    for name, kind, text, values in pages:
        full = f"patchbay_plugin_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
        lines += [f"{full}{labels} {value}" for labels, value in values]
    return "\n".join(lines) + "\n"


def health_port(environ: Mapping[str, str]) -> int | None:
    """
    Return the port of PATCHBAY_HEALTH_PORT, None without it.

    Raises:
        FailedPrecondition: It is no port.
    """
    value = environ.get(PORT, "")
    # Kubernetes derives such a variable, an URL, from a Service of a fitting name.
    if not value or "://" in value:
        return None
    if not value.isdigit() or int(value) > 65535:
        raise errors.FailedPrecondition(f"{PORT}={value} is no port", reason="PORT_INVALID")
    return int(value)


@contextlib.asynccontextmanager
async def serving_metrics(
    port: int,
    served: Mapping[str, Served],
    *,
    ready: Callable[[], bool],
    host: str | None = None,
) -> AsyncIterator[int]:
    """
    Answer on *port* (0: any free one) inside the block, which gets the port.

    Args:
        port: Where.
        served: `Server.served`.
        ready: Asked by /readyz.
        host: Which of the machine's addresses; default all.

    Raises:
        FailedPrecondition: The port is taken.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = _answer(head.split(b" ", 2)[1:2], served, ready())
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()

    try:
        listening = await asyncio.start_server(answer, host, port, limit=_HEAD)
    except OSError as error:
        raise errors.FailedPrecondition(
            f"metrics cannot be served on port {port}: {error.strerror}; set another {PORT}",
            reason="ADDRESS_IN_USE",
        ) from error
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await listening.wait_closed()


def _answer(target: list[bytes], served: Mapping[str, Served], ready: bool) -> tuple[str, bytes]:
    path = target[0].partition(b"?")[0] if target else b""
    if path == b"/metrics":
        return "200 OK", render(served).encode() + _own()
    if path == b"/livez":
        return "200 OK", b"ok\n"
    if path == b"/readyz":
        return ("200 OK", b"ok\n") if ready else ("503 Service Unavailable", b"draining\n")
    return "404 Not Found", b"here are /livez, /readyz and /metrics\n"


def _own() -> bytes:
    """Return the page of prometheus-client's default registry, where it is installed."""
    try:
        from prometheus_client import generate_latest  # noqa: PLC0415 - an extra
    except ImportError:
        return b""
    return generate_latest()
