"""
Builds the built-in executors: for this process (`running_executors`) or as a service (`run`).

The only module here that knows the kernel. Not here: what executors do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.metrics import render
from patchbay.serve import PluginServer, build_servicers, drain_seconds, load_plugin_keys
from patchbay.server import message_limit_for
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.echo import EchoExecutor
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.oauth2 import OAuth2Provider
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor
from patchbay_gateway.executors.proxies import Proxies
from patchbay_gateway.kernel import lifecycle, logs
from patchbay_gateway.kernel.health import HealthApp
from patchbay_gateway.kernel.keys import load_roots, plugin_key
from patchbay_gateway.kernel.telemetry import NoMetrics, make_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from aiohttp import web

    from patchbay.capability import Plugin
    from patchbay_gateway.executors.upstream import Call, Reply, Upstream
    from patchbay_gateway.kernel.config import Config, ProcessSettings
    from patchbay_gateway.kernel.telemetry import Metrics

_log = logs.get_logger("executors")

_BUILDERS: Final[Mapping[str, Callable[[Upstream], Plugin]]] = {
    OpenAICompatibleExecutor.id: OpenAICompatibleExecutor,
    ClaudeExecutor.id: ClaudeExecutor,
    GeminiExecutor.id: GeminiExecutor,
    OAuth2Provider.id: OAuth2Provider,
    EchoExecutor.id: lambda _: EchoExecutor(),
}

BUILT_IN: Final = tuple(_BUILDERS)
"""Ids of the executors and auth providers that come with the gateway."""


@dataclass(frozen=True, slots=True)
class RunningExecutors:
    """Executors that are ready for calls."""

    executors: tuple[Plugin, ...]
    servicers: Mapping[str, object]
    """Full service name → servicer, for an in-process channel or a server."""


@contextlib.asynccontextmanager
async def built_executors(
    plugins: Iterable[str] = (), *, env: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Plugin, ...]]:
    """
    Build executors over one upstream and close them at the end of the block.

    Args:
        plugins: Ids; none means all built-ins.
        env: The environment, for its proxies.

    Raises:
        NotFound: An id that is no built-in's.
    """
    chosen = tuple(dict.fromkeys(plugins)) or BUILT_IN
    for plugin_id in chosen:
        if plugin_id not in _BUILDERS:
            raise errors.NotFound(
                f"no built-in executor {plugin_id!r}; there are {', '.join(BUILT_IN)}",
                reason="PLUGIN_UNKNOWN",
            )
    upstream = _upstream(Proxies(os.environ if env is None else env))
    executors = tuple(_BUILDERS[plugin_id](upstream) for plugin_id in chosen)
    try:
        yield executors
    finally:
        for executor in executors:
            await executor.aclose()
        await upstream.aclose()


def _upstream(proxies: Proxies) -> Upstream:
    """Our own client where its parser is installed, else aiohttp for all; proxied calls are aiohttp's."""
    proxied = _AiohttpWhenNeeded(proxies)
    try:
        from patchbay_gateway.executors.http1_upstream import Http1Upstream  # noqa: PLC0415 - optional
    except ImportError:
        return proxied
    return Http1Upstream(proxies, proxied)


class _AiohttpWhenNeeded:
    """The `Upstream` over aiohttp, loaded at its first call: 10 MB that most processes never need."""

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self._made: Upstream | None = None

    async def send(self, call: Call) -> Reply:
        """Send and wait for the head (port)."""
        if self._made is None:
            # Loading takes as long as a hundred requests, so not on the loop.
            module = await asyncio.to_thread(
                importlib.import_module, "patchbay_gateway.executors.aiohttp_upstream"
            )
            self._made = self._made or module.AiohttpUpstream(self._proxies)
        return await self._made.send(call)

    async def aclose(self) -> None:
        """Cut every connection (port)."""
        if self._made is not None:
            await self._made.aclose()


@contextlib.asynccontextmanager
async def running_executors(
    plugins: Iterable[str] = (),
    *,
    roots: Sequence[bytes] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningExecutors]:
    """
    Build executors for an in-process channel.

    Args:
        plugins: Ids; none means all built-ins.
        roots: The `plugins` roots, newest first; the executors' keys are derived from them.
        env: The environment, for its proxies.
    """
    async with built_executors(plugins, env=env) as executors:
        yield RunningExecutors(executors, build_servicers(executors, _derived(executors, roots)))


def run(config: Config, settings: ProcessSettings) -> int:
    """
    Run the executors as a process of their own, gRPC and health, until drained; return its exit status.

    Keys are the plugins' own (PATCHBAY_PLUGIN_KEY[_FILE]), or derived from the `plugins` root where this
    process was given that (PATCHBAY_PLUGINS_KEY[_FILE], or the data directory's).

    Raises:
        FailedPrecondition: There is neither; the text has the remedy.
    """
    logs.configure(settings.log_format, settings.log_level)
    return lifecycle.run(lambda shutdown: _serve(config, settings, shutdown))


async def _serve(config: Config, settings: ProcessSettings, shutdown: lifecycle.Shutdown) -> None:
    grace = drain_seconds(os.environ)
    async with built_executors(settings.plugins) as executors:
        server = PluginServer(
            executors,
            _keys(executors, settings.data_dir),
            message_limit=message_limit_for(config.limits.body),
            tls=settings.tls,
        )
        metrics = _Page(make_metrics(enabled=True), server)
        checks = {"executors": lambda: "draining" if shutdown.draining.is_set() else None}
        app = HealthApp(checks, metrics)
        async with _serving_health(app, settings.host, settings.health_port) as health:
            port = await server.start(settings.grpc_listen)
            try:
                _log.info(
                    "executors listen", plugins=[e.id for e in executors], grpc=port, health=health
                )
                await shutdown.wait()
                await server.drain(grace)
            finally:
                await server.stop()


class _Page(NoMetrics):
    """The process, and what its server counts."""

    def __init__(self, process: Metrics, server: PluginServer) -> None:
        self._process = process
        self._server = server

    def render(self) -> bytes:
        """Return both."""
        return self._process.render() + render(self._server.served).encode()


@contextlib.asynccontextmanager
async def _serving_health(app: HealthApp, host: str, port: int) -> AsyncIterator[int]:
    """Serve *app* with what executors have anyway: aiohttp, so that their image needs no other server."""
    from aiohttp import web  # noqa: PLC0415 - only a process of its own serves health here

    async def answer(request: web.BaseRequest) -> web.Response:
        status, kind, body = app.answer(request.method, request.path)
        return web.Response(status=status, body=body, headers={"content-type": kind})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _keys(executors: Sequence[Plugin], data_dir: Path) -> Mapping[str, Sequence[bytes]]:
    env = os.environ
    if env.get("PATCHBAY_PLUGIN_KEY") or env.get("PATCHBAY_PLUGIN_KEY_FILE"):
        return load_plugin_keys(env, [executor.id for executor in executors])
    # A root is never made here: it would be another one than the scheduler's.
    made = (data_dir / "keys" / "plugins").exists()
    roots = load_roots(env, ["plugins"], data_dir if made else None)
    return _derived(executors, roots.plugins)


def _derived(executors: Iterable[Plugin], roots: Sequence[bytes]) -> Mapping[str, Sequence[bytes]]:
    return {
        executor.id: [plugin_key(root, executor.id) for root in roots] for executor in executors
    }
