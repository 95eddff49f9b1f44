"""
A proxy before an API server that fails as networks and API servers do: on demand, by kind of request.

Plain HTTP in front, TLS behind. Not here: the API server (apiserver.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.harness.apiserver import ApiServer


class FaultProxy:
    """
    The proxy, whose faults are switches.

    watches  "" passes; "silent" connects and never says anything; "410" answers Gone; "cut" ends at once
    writes   statuses that the next writes get, one each
    away     every request fails
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.watches = ""
        self.writes: list[int] = []
        self.away = False
        self.seen: list[str] = []
        self.url = ""
        self._open: set[asyncio.Task[None] | None] = set()
        self._client: aiohttp.ClientSession | None = None

    def break_watches(self) -> None:
        """End every watch that is open."""
        for task in list(self._open):
            if task is not None:
                task.cancel()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on, or fail."""
        watch = request.query.get("watch") == "true"
        self.seen.append(f"{request.method} {request.path}")
        if self.away:
            return web.json_response({"message": "away"}, status=503)
        if watch and self.watches == "410":
            gone = {
                "type": "ERROR",
                "object": {"kind": "Status", "code": 410, "reason": "Expired"},
            }
            return web.json_response(gone)
        if watch and self.watches:
            answer = web.StreamResponse(headers={"content-type": "application/json"})
            await answer.prepare(request)
            if self.watches == "silent":
                await asyncio.sleep(3600)
            return answer
        if request.method in {"POST", "PATCH", "PUT"} and self.writes:
            status = self.writes.pop(0)
            headers = {"retry-after": "1"} if status == 429 else {}
            return web.json_response({"message": "injected"}, status=status, headers=headers)
        return await self._pass(request, watch=watch)

    async def _pass(self, request: web.Request, *, watch: bool) -> web.StreamResponse:
        assert self._client is not None
        headers = {
            k: v
            for k, v in request.headers.items()
            if k.lower() in {"authorization", "accept", "content-type"}
        }
        async with self._client.request(
            request.method,
            f"{self._server.url}{request.path_qs}",
            headers=headers,
            data=await request.read(),
        ) as found:
            if not watch:
                kept = {k: v for k, v in found.headers.items() if k.lower() == "content-type"}
                return web.Response(status=found.status, body=await found.read(), headers=kept)
            answer = web.StreamResponse(status=found.status)
            await answer.prepare(request)
            task = asyncio.current_task()
            self._open.add(task)
            try:
                async for chunk in found.content.iter_any():
                    await answer.write(chunk)
            finally:
                self._open.discard(task)
            return answer


@contextlib.asynccontextmanager
async def running_proxy(server: ApiServer) -> AsyncIterator[FaultProxy]:
    """Run a proxy before *server*."""
    proxy = FaultProxy(server)
    context = ssl.create_default_context(cafile=str(server._directory / "pki" / "apiserver.crt"))
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        proxy._client = client
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{tail:.*}", proxy.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        proxy.url = f"http://127.0.0.1:{port}"
        try:
            yield proxy
        finally:
            proxy.break_watches()
            await runner.cleanup()
