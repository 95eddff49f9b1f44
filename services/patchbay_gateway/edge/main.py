"""
Builds an edge and runs it: within another process (`running_edge`) or as one (`run`).

The only module of the edge that knows how its parts fit together. Not here: what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors, server
from patchbay.tokens import TokenSource
from patchbay_gateway.edge import attempts
from patchbay_gateway.edge.auth import Authenticator
from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.callbacks.serving import edge_callbacks
from patchbay_gateway.edge.clients import SchedulerKeys
from patchbay_gateway.edge.counting import EdgeCounts
from patchbay_gateway.edge.deciding import Decider
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.judging import Judge
from patchbay_gateway.edge.leases import Leases
from patchbay_gateway.edge.management.access import make_access
from patchbay_gateway.edge.management.app import build_management_app
from patchbay_gateway.edge.management.clients import UsageReports
from patchbay_gateway.edge.management.logins import Logins
from patchbay_gateway.edge.management.pool import Pool
from patchbay_gateway.edge.management.port import ManagementPorts
from patchbay_gateway.edge.models import ModelLists
from patchbay_gateway.edge.outbox import Outbox
from patchbay_gateway.edge.pipeline import Pipeline
from patchbay_gateway.edge.refreshes import Refreshes
from patchbay_gateway.edge.routes.pages import PublicPages
from patchbay_gateway.edge.routes.router import Router
from patchbay_gateway.edge.schedulers import PooledCalls
from patchbay_gateway.edge.server import EdgeServer, listen
from patchbay_gateway.edge.steps import PluginSteps
from patchbay_gateway.kernel import lifecycle, logs, memory
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.health import HealthApp, serve_app
from patchbay_gateway.kernel.keys import client_key_digest, load_roots, service_key
from patchbay_gateway.kernel.lifecycle import Tasks
from patchbay_gateway.kernel.management_token import ensure_token
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import NoMetrics, make_metrics
from patchbay_gateway.kernel.uid import UidSource
from patchbay_gateway.plugins.callbacks.serving import wanted as called_back
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.command_line import CommandLines
from patchbay_gateway.plugins.counting import PluginCounts
from patchbay_gateway.plugins.distribution import SnapshotHolder, SnapshotWatcher
from patchbay_gateway.plugins.dns import DnsResolver, named_settings
from patchbay_gateway.plugins.endpoints import EndpointsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.instances import Heartbeat, Instance
from patchbay_gateway.plugins.management_api import ManagementPlugins
from patchbay_gateway.plugins.registry import PluginRegistry, remote
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.translate.native import native_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.edge.translation import Translation
    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config, ProcessSettings
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.lifecycle import Shutdown
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.snapshot import Snapshot

SCHEDULER: Final = "patchbay.scheduler.v1.SchedulerService"
USAGE: Final = "patchbay.usage.v1.UsageService"

# So long a starting edge waits for the last of the executors that its models need.
_PATIENCE: Final = 10.0
# Reports that wait at the end get this long; the rest stays in the outbox file.
_LAST_REPORTS: Final = 3.0
_NO_METRICS: Final = NoMetrics()


@dataclass(slots=True)
class RunningEdge:
    """An edge that accepts clients."""

    edge_id: str
    registry: PluginRegistry
    server: EdgeServer
    outbox: Outbox
    holder: SnapshotHolder
    clock: Clock
    started: float
    """Monotonic seconds."""
    drain_seconds: float
    """How long open streams may go on when this ends."""
    pipeline: Pipeline
    """For callbacks: the way of a request that has no client connection."""
    scopes: ScopeTable
    """What plugins may call back in; its address is set by whoever serves callbacks."""
    translation: Translation
    """For callbacks: what plugins translate."""
    pages: ManagementPlugins
    """Routes and pages of plugins."""
    command_lines: CommandLines
    """Their commands."""
    draining: bool = False
    complete: bool = False
    """Every executor of the snapshot was registered once."""

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Return what readiness looks at."""
        return {
            "snapshot": lambda: None if self.holder.current else "no configuration yet",
            "executors": self._executors,
            "callbacks": self._callbacks,
            "draining": lambda: "the process is ending" if self.draining else None,
        }

    def _executors(self) -> str | None:
        """
        Say what is missing for the models of the snapshot.

        At the start the edge waits for all their executors, but not for ever: one that never comes must
        not keep the others' models from clients.
        """
        states = self.registry.states()
        current = self.holder.current
        wanted = {p.plugin for p in current.providers} if current is not None else set(states)
        absent = sorted(plugin for plugin in wanted if states.get(plugin) != "ready")
        if not absent:
            self.complete = True
            return None
        late = self.clock.monotonic() - self.started > _PATIENCE
        if (self.complete or late) and len(absent) < len(wanted):
            return None
        reasons = [f"{plugin}: {states.get(plugin, 'not configured')}" for plugin in absent]
        return "executors are not registered; " + "; ".join(reasons)

    def _callbacks(self) -> str | None:
        """Say whether a plugin would be called without what it is granted to call back."""
        if self.scopes.address or not called_back(self.holder.current):
            return None
        return "plugins cannot call back yet"

    def instance(self) -> Instance:
        """Return what the heartbeat says."""
        current = self.holder.current
        return Instance(
            id=self.edge_id,
            kind="edge",
            snapshot=current.version if current is not None else 0,
            ready=not any(check() for check in self.checks().values()),
            plugins=self.registry.states(),
            host=socket.gethostname(),
            pid=os.getpid(),
            parent=os.getppid(),
        )

    async def drain(self) -> None:
        """Stop accepting, let answers end, hand over the last reports."""
        self.draining = True
        await self.server.drain(self.drain_seconds)
        await self.outbox.drain(_LAST_REPORTS)


@contextlib.asynccontextmanager
async def running_edge(
    settings: ProcessSettings,
    *,
    store: Store,
    holder: SnapshotHolder,
    scheduler: SchedulerCalls,
    local: Mapping[str, Channel],
    roots: Roots,
    clock: Clock,
    shutdown: Shutdown,
    outbox_dir: Path | None = None,
    reuse_port: bool = False,
    metrics: Metrics = _NO_METRICS,
) -> AsyncIterator[RunningEdge]:
    """
    Run an edge's parts; the client port is open when this yields.

    Args:
        settings: Of this process.
        store: Redis, for heartbeats; stays the caller's.
        holder: Snapshots; kept up to date by the caller.
        scheduler: Schedulers.
        local: Built-in plugin id → channel, for those that run in this process.
        roots: Of which the edge uses `cluster`.
        clock: Time.
        shutdown: Told when a part crashes.
        outbox_dir: Default `outbox` in the data directory; no two processes share one.
        reuse_port: Several processes share the client port.
        metrics: Where requests are counted.

    Raises:
        OSError: The port is taken.
    """
    edge_id = f"edge-{secrets.token_hex(6)}"
    sockets = [listen(settings.host, settings.port, reuse_port=reuse_port)]
    log = AppendLog(outbox_dir or settings.data_dir / "outbox")
    tasks = Tasks(shutdown)
    outbox = Outbox(log, scheduler, edge_id=edge_id, clock=clock)
    leases = Leases(
        scheduler,
        edge_id=edge_id,
        clock=clock,
        renew_interval=settings.renew_interval,
        orphaned=lambda lease: outbox.report(attempts.orphaned(lease)),
    )
    refreshes = Refreshes(scheduler)
    registry = PluginRegistry(
        host=Host(edge_id, version("patchbay-gateway")),
        keys=SchedulerKeys(scheduler).keys,
        resolver=EndpointsResolver(
            DnsResolver(named_settings(settings.name_servers)), store=store, clock=clock
        ),
        clock=clock,
        local=local,
        builtin_address=settings.executors_address or None,
        connect=partial(remote, tls=settings.tls),
    )
    authenticator = Authenticator(
        lambda key: tuple(client_key_digest(root, key) for root in roots.cluster),
        allow_open=settings.service == "up" and settings.loopback,
    )
    uids = UidSource(clock)

    def snapshot() -> Snapshot:
        if holder.current is None:
            raise errors.Unavailable(
                "the gateway has no configuration yet", reason="NOT_READY", retry_after=2
            )
        return holder.current

    known = dialects()
    scopes = ScopeTable()
    plugin_steps = PluginSteps(
        registry, PluginCalls(registry, scopes=scopes), native_registry(), known
    )
    pipeline = Pipeline(
        snapshots=holder,
        registry=registry,
        authenticator=authenticator,
        budget=ByteBudget(lambda: snapshot().settings.in_flight_limit),
        leases=leases,
        outbox=outbox,
        uids=uids,
        clock=clock,
        installation=settings.installation,
        decider=Decider(Judge(clock), refreshes),
        counts=EdgeCounts(metrics),
        plugins=plugin_steps,
    )
    pages = ManagementPlugins(
        registry, plugin_steps.hooks, plugin_steps.calls, lambda: holder.current
    )
    router = Router(
        pipeline,
        lists=ModelLists(snapshot, authenticator, plugin_steps),
        dialects=known,
        mint=uids.mint,
        on_bug=lambda error: server.report_foreign("edge", error),
        pages=PublicPages(pages),
    )
    edge_server = EdgeServer(
        router,
        sockets=sockets,
        write_stall=lambda: (
            holder.current.settings.streaming.write_stall if holder.current else 120.0
        ),
    )
    try:
        tasks.start("edge-outbox", outbox.run())
        tasks.start("edge-leases", leases.run())
        tasks.start("edge-registry", _follow(holder, registry))
        await edge_server.start()
        edge = RunningEdge(
            edge_id,
            registry,
            edge_server,
            outbox,
            holder,
            clock,
            clock.monotonic(),
            settings.drain,
            pipeline,
            scopes,
            plugin_steps.translation,
            pages,
            CommandLines(plugin_steps.hooks, plugin_steps.calls, lambda: holder.current),
        )
        PluginCounts(metrics, registry)
        waiting = metrics.gauge("edge_outbox_reports", "Reports that no scheduler has taken yet.")
        metrics.before_page(lambda: waiting.set(outbox.waiting))
        heartbeat = Heartbeat(store, clock=clock, describe=edge.instance)
        beating = tasks.start("edge-heartbeat", heartbeat.run())
        yield edge
        # First the beat ends: another one would bring back what is taken back here.
        beating.cancel()
        await asyncio.wait([beating])
        with contextlib.suppress(errors.PatchbayError):
            await heartbeat.beat(alive=False)
    finally:
        await edge_server.drain(0)
        await leases.aclose()
        await refreshes.aclose()
        await plugin_steps.aclose()
        await pages.aclose()
        await tasks.aclose()
        await registry.aclose()
        log.close()


async def _follow(holder: SnapshotHolder, registry: PluginRegistry) -> None:
    """Let the registry run on each new snapshot."""
    changed = asyncio.Event()
    changed.set()
    forget = holder.on_change(lambda _: changed.set())
    try:
        while True:
            await changed.wait()
            changed.clear()
            if holder.current is not None:
                await registry.apply(holder.current)
    finally:
        forget()


@contextlib.asynccontextmanager
async def running_management(
    config: Config,
    settings: ProcessSettings,
    *,
    checks: Mapping[str, Callable[[], str | None]],
    holder: SnapshotHolder,
    usage: Channel,
    scheduler: SchedulerCalls,
    plugins: Callable[[], Sequence[Mapping[str, Any]]],
    roots: Roots,
    clock: Clock,
    metrics: Metrics | None = None,
    pages: ManagementPlugins | None = None,
    command_lines: CommandLines | None = None,
) -> AsyncIterator[None]:
    """
    Serve the management API and the probes on the management port.

    Args:
        config: Its management keys.
        settings: Of this process.
        checks: Readiness: name → why it is not given, None when it is.
        holder: Snapshots.
        usage: To the usage service.
        scheduler: Any scheduler.
        plugins: What is registered.
        roots: Of which management uses `cluster`.
        clock: Time.
        metrics: What /metrics shows; default only the process itself.
        pages: Routes and pages of plugins.
        command_lines: Their commands.

    Raises:
        FailedPrecondition: The port is taken.
    """
    access = make_access(
        config,
        os.environ,
        roots=roots.cluster,
        token=ensure_token(settings.data_dir),
        local_only=settings.service == "up" and settings.loopback,
    )
    ports = ManagementPorts(
        health=HealthApp(checks, metrics or make_metrics(enabled=True)),
        snapshot=lambda: holder.current,
        usage=UsageReports(usage),
        plugins=plugins,
        pool=Pool(scheduler),
        logins=Logins(scheduler),
        plugin_pages=pages,
        command_lines=command_lines,
    )
    app = build_management_app(ports, access, clock=clock)
    async with serve_app(app, settings.host, settings.management_port):
        yield


def run(config: Config, settings: ProcessSettings) -> int:
    """Run the edge as this process and return its exit status."""
    logs.configure(settings.log_format, settings.log_level)
    return lifecycle.run(lambda shutdown: _serve(config, settings, shutdown))


async def _serve(config: Config, settings: ProcessSettings, shutdown: Shutdown) -> None:
    for name, value in (
        ("REDIS_URL", settings.redis_url),
        ("PATCHBAY_SCHEDULER_ADDRESS", settings.scheduler_address),
        ("PATCHBAY_USAGE_ADDRESS", settings.usage_address),
        ("PATCHBAY_EXECUTORS_ADDRESS", settings.executors_address),
    ):
        if not value:
            raise errors.FailedPrecondition(
                f"{name} is not set: an edge of its own finds the other services by it",
                reason="SETTING_MISSING",
            )
    clock = SystemClock()
    metrics = make_metrics(enabled=True)
    roots = load_roots(os.environ, ["cluster"], settings.data_dir)
    caller = f"edge-{secrets.token_hex(6)}"

    def channel(address: str, service: str) -> RemoteChannel:
        key = service_key(roots.cluster[0])
        return RemoteChannel(
            address, metadata=TokenSource(key, service, caller).metadata, tls=settings.tls
        )

    async with contextlib.AsyncExitStack() as stack:
        tasks = Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        store = Store(settings.redis_url or "", installation=settings.installation, clock=clock)
        stack.push_async_callback(store.aclose)
        holder = SnapshotHolder()
        watcher = SnapshotWatcher(store, holder, settings.data_dir / "snapshot.json", clock)
        await watcher.boot()
        tasks.start("edge-snapshot", watcher.run())
        usage = channel(settings.usage_address, USAGE)
        calls = PooledCalls(
            [address.strip() for address in settings.scheduler_address.split(",")],
            resolver=EndpointsResolver(
                DnsResolver(named_settings(settings.name_servers)), store=store, clock=clock
            ),
            connect=lambda address: channel(address, SCHEDULER),
            clock=clock,
        )
        stack.push_async_callback(calls.aclose)
        await calls.start()
        # Plugins' own tokens go along on these.
        auths = [
            RemoteChannel(a.strip(), tls=settings.tls)
            for a in settings.scheduler_address.split(",")
        ]
        for each in (usage, *auths):
            stack.push_async_callback(each.close)
        edge = await stack.enter_async_context(
            running_edge(
                settings,
                store=store,
                holder=holder,
                scheduler=calls,
                local={},
                roots=roots,
                clock=clock,
                shutdown=shutdown,
                metrics=metrics,
            )
        )
        await stack.enter_async_context(
            edge_callbacks(
                edge,
                settings,
                scheduler=calls,
                auths=auths,
                port=settings.grpc_port,
                always=True,
            )
        )
        await stack.enter_async_context(
            running_management(
                config,
                settings,
                checks=edge.checks(),
                holder=holder,
                usage=usage,
                scheduler=calls,
                plugins=edge.registry.status,
                roots=roots,
                clock=clock,
                metrics=metrics,
                pages=edge.pages,
                command_lines=edge.command_lines,
            )
        )
        memory.freeze()
        await shutdown.wait()
        await edge.drain()
