"""
The port for one client request and its answer.

The pipeline sees HTTP through this and nothing else; which server stands behind it is decided by the
bench (docs/architecture.md). Header names are lower-case bytes, bodies are bytes. Not here: routes,
dialects, limits on the whole process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from patchbay.errors import Headers


class ClientGone(Exception):
    """The client left, or took nothing for the write-stall limit. Raised by `body` and `send*`."""


class Head(msgspec.Struct):
    """The head of a client request."""

    method: str
    path: str
    """Percent-decoded path without query."""
    query: bytes
    """Raw query string without `?`."""
    headers: Headers
    """Lower-case names, as received."""
    peer: str
    """Client IP address."""
    scheme: str = "http"


class Exchange(Protocol):
    """One client request and its answer."""

    head: Head

    gone: asyncio.Future[None]
    """Done when the client has left (FIN, RST) or stalled. Never fails; watch it while waiting."""

    committed: bool
    """Whether `send_head` was called."""

    async def body(
        self, limit: int, deadline: float, charge: Callable[[int], None] | None = None
    ) -> bytes:
        """
        Return the whole request body, as sent (content encoding untouched).

        Args:
            limit: Bytes.
            deadline: Seconds for the whole body.
            charge: Told of bytes before they are held; what it raises ends the reading.

        Raises:
            InvalidRequest: reason BODY_TOO_LARGE (413) or BODY_TIMEOUT (408).
            ClientGone: The client left in the middle.
        """
        ...

    async def send_head(self, status: int, headers: Headers) -> None:
        """Commit status and headers. Once."""
        ...

    async def send(self, data: bytes) -> None:
        """Write body bytes; returns when the peer's window lets us go on."""
        ...

    async def finish(self) -> None:
        """End a complete answer."""
        ...

    async def abort(self) -> None:
        """Cut the connection so that a started answer cannot look finished."""
        ...
