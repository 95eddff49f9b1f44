"""
A proxy before an API server that fails as networks and API servers do: on demand, by kind of request.

Plain HTTP in front, or TLS where clients want that; TLS behind. Not here: the API server (apiserver.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.harness.apiserver import ApiServer


class FaultProxy:
    """
    The proxy, whose faults are switches.

    watches  "" passes; "silent" connects and never says anything; "410" answers Gone; "cut" ends at once
    writes   statuses that the next writes get, one each
    away     every request fails
    hold     replacements wait until `release`; those whose client is gone by then are dropped
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.watches = ""
        self.writes: list[int] = []
        self.away = False
        self.hold = False
        self.held = 0
        """Replacements that wait."""
        self._released = asyncio.Event()
        self.seen: list[str] = []
        self.url = ""
        self.port = 0
        self._open: set[asyncio.Task[None] | None] = set()
        self._client: aiohttp.ClientSession | None = None

    def break_watches(self) -> None:
        """End every watch that is open."""
        for task in list(self._open):
            if task is not None:
                task.cancel()

    def release(self) -> None:
        """End `hold`."""
        self.hold = False
        self._released.set()
        self._released = asyncio.Event()

    async def _wait(self, request: web.Request) -> bool:
        """Wait for `release`; return whether somebody still waits for the answer."""
        self.held += 1
        try:
            await self._released.wait()
        finally:
            self.held -= 1
        # The end of a killed client's connection came before the release: have it read.
        for _ in range(3):
            await asyncio.sleep(0)
        return request.transport is not None and not request.transport.is_closing()

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
        if request.method == "PUT" and self.hold:
            await request.read()
            if not await self._wait(request):
                return web.json_response({"message": "dropped"}, status=503)
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
async def running_proxy(
    server: ApiServer, front: ssl.SSLContext | None = None
) -> AsyncIterator[FaultProxy]:
    """Run a proxy before *server*; with *front* it speaks TLS."""
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
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=front)
        await site.start()
        proxy.port = runner.addresses[0][1]
        proxy.url = f"{'https' if front else 'http'}://127.0.0.1:{proxy.port}"
        try:
            yield proxy
        finally:
            proxy.break_watches()
            await runner.cleanup()


class ThreadedProxy:
    """A proxy in a thread of its own, for tests that are no coroutines."""

    def __init__(self, proxy: FaultProxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop
        self.url, self.port = proxy.url, proxy.port

    @property
    def held(self) -> int:
        """Replacements that wait."""
        return self._proxy.held

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Let nobody replace anything while this lasts."""
        self._proxy.hold = True
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._proxy.release)


@contextlib.contextmanager
def proxy_in_thread(server: ApiServer, front: ssl.SSLContext | None) -> Iterator[ThreadedProxy]:
    """Run a proxy before *server*."""
    started = threading.Event()
    made: list[ThreadedProxy] = []
    ending: list[asyncio.Event] = []

    async def body() -> None:
        async with running_proxy(server, front) as proxy:
            made.append(ThreadedProxy(proxy, asyncio.get_running_loop()))
            ending.append(asyncio.Event())
            started.set()
            await ending[0].wait()

    thread = threading.Thread(target=asyncio.run, args=(body(),), name="fault-proxy", daemon=True)
    thread.start()
    try:
        assert started.wait(90)
        yield made[0]
    finally:
        if ending:
            made[0]._loop.call_soon_threadsafe(ending[0].set)
        thread.join()
