"""An `Upstream` without sockets: gives each call the same answer, in the pieces that a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay.errors import Headers
    from patchbay_gateway.executors.upstream import Call


class CannedReply:
    """One answer."""

    def __init__(self, status: int, headers: Headers, pieces: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.closed = False
        self._pieces = pieces

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        self.closed = True


class CannedUpstream:
    """
    Gives answers.

    Args:
        pieces: The body.
        content_type: Of it; empty: none is told.
        status: Of it.
    """

    def __init__(
        self, *pieces: bytes, content_type: str = "application/json", status: int = 200
    ) -> None:
        self.calls: list[Call] = []
        self.replies: list[CannedReply] = []
        self._status = status
        self._headers = [(b"content-type", content_type.encode())] if content_type else []
        self._pieces = pieces

    async def send(self, call: Call) -> CannedReply:
        self.calls.append(call)
        self.replies.append(CannedReply(self._status, self._headers, list(self._pieces)))
        return self.replies[-1]

    async def aclose(self) -> None:
        """There is nothing to close."""
