"""What a client port does with connections as it stops to accept (edge/server.py)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from patchbay_gateway.edge.server import EdgeServer, listen

if TYPE_CHECKING:
    from collections.abc import Callable


class Late:
    """A connection that is accepted already and shows in the next turn of the loop; and all there are."""

    def __init__(self, serve: Any, sweeper: Any, closed: Callable[[], None]) -> None:
        self.draining = False
        self.open: set[Any] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.transport: Any = self
        self.said: list[str] = []
        self._closed = closed

    def protocol(self) -> asyncio.Protocol:
        return asyncio.Protocol()

    def close_idle(self, since: float) -> None: ...

    def dated(self, date: bytes) -> None: ...

    def begin(self) -> None:
        self.open.add(self)

    def end(self) -> None:
        self.said.append("ended")
        self.open.discard(self)
        self._closed()

    def retire(self) -> None:
        """Have a request under way, which is answered in the next turn."""
        self.said.append("retired")
        asyncio.get_running_loop().call_soon(self.end)

    def shutdown(self) -> None:
        self.said.append("shut down")

    def abort(self) -> None:
        self.said.append("cut")
        self.open.discard(self)


async def test_connection_accepted_as_the_listener_closes_is_answered_and_not_cut() -> None:
    made: list[Late] = []

    def adapter(serve: Any, sweeper: Any, closed: Callable[[], None]) -> Late:
        made.append(Late(serve, sweeper, closed))
        return made[0]

    async def serve(_: Any) -> None: ...

    server = EdgeServer(
        serve, sockets=[listen("127.0.0.1", 0)], write_stall=lambda: 0.0, adapter=adapter
    )
    await server.start()
    asyncio.get_running_loop().call_soon(made[0].begin)
    async with asyncio.timeout(60):
        assert await server.drain(60.0) == 0
    assert made[0].said == ["retired", "ended"]
