"""
Builds an edge and runs it: within another process (`running_edge`) or as one (`run`).

The only module of the edge that knows how its parts fit together. Not here: what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
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
from patchbay_gateway.edge.management.doorkeeper import Doorkeeper
from patchbay_gateway.edge.management.logins import Logins
from patchbay_gateway.edge.management.pool import Pool
from patchbay_gateway.edge.management.port import ManagementPorts
from patchbay_gateway.edge.models import ModelLists
from patchbay_gateway.edge.outbox import Outbox
from patchbay_gateway.edge.pipeline import Pipeline
from patchbay_gateway.edge.refreshes import Refreshes
from patchbay_gateway.edge.routes.pages import PublicPages
from patchbay_gateway.edge.routes.router import Router
from patchbay_gateway.edge.running import PATIENCE, RunningEdge
from patchbay_gateway.edge.schedulers import PooledCalls
from patchbay_gateway.edge.server import EdgeServer, listen
from patchbay_gateway.edge.steps import PluginSteps
from patchbay_gateway.kernel import lifecycle, logs, memory
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import load_for
from patchbay_gateway.kernel.health import HealthApp, serve_app
from patchbay_gateway.kernel.keys import client_key_digest, load_roots, service_key
from patchbay_gateway.kernel.lifecycle import Tasks
from patchbay_gateway.kernel.management_token import ensure_token
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import NoMetrics, make_metrics
from patchbay_gateway.kernel.uid import UidSource
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.command_line import CommandLines
from patchbay_gateway.plugins.counting import PluginCounts
from patchbay_gateway.plugins.distribution import SnapshotHolder, SnapshotWatcher
from patchbay_gateway.plugins.dns import DnsResolver, named_settings
from patchbay_gateway.plugins.endpoints import EndpointsResolver
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.instances import Heartbeat
from patchbay_gateway.plugins.management_api import ManagementPlugins
from patchbay_gateway.plugins.registry import PluginRegistry, remote
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.translate.native import native_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config, ProcessSettings
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.lifecycle import Shutdown
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.snapshot import Snapshot

SCHEDULER: Final = "patchbay.scheduler.v1.SchedulerService"
USAGE: Final = "patchbay.usage.v1.UsageService"

_NO_METRICS: Final = NoMetrics()


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
        reuse_port: Several processes share the client port, so it is opened when this one has executors for
            the models of its snapshot.
        metrics: Where requests are counted.

    Raises:
        OSError: The port is taken.
    """
    edge_id = f"edge-{secrets.token_hex(6)}"
    started = clock.monotonic()
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
    counts = EdgeCounts(metrics)
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
        counts=counts,
        plugins=plugin_steps,
    )
    pages = ManagementPlugins(
        registry, plugin_steps.hooks, plugin_steps.calls, lambda: holder.current
    )
    router = Router(
        pipeline,
        lists=ModelLists(snapshot, authenticator, plugin_steps, counts.refused),
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
        tasks.start("edge-registry", holder.follow(registry.apply))
        if reuse_port:
            # The kernel gives it its share of the connections from then on, whatever it can do with them.
            await able(holder, registry, shutdown)
        await edge_server.start()
        edge = RunningEdge(
            edge_id,
            registry,
            edge_server,
            outbox,
            holder,
            clock,
            started,
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
        await edge.leave(heartbeat, beating)
    finally:
        await edge_server.drain(0)
        await leases.aclose()
        await refreshes.aclose()
        await plugin_steps.aclose()
        await pages.aclose()
        await tasks.aclose()
        await registry.aclose()
        log.close()


async def able(holder: SnapshotHolder, registry: PluginRegistry, shutdown: Shutdown) -> None:
    """Return when all executors of the snapshot are registered, patience has run out, or the end has come."""

    async def registered() -> None:
        snapshot = await holder.first()
        await registry.wait_ready({p.plugin for p in snapshot.providers}, PATIENCE)

    waits = [asyncio.ensure_future(registered()), asyncio.ensure_future(shutdown.wait())]
    try:
        await asyncio.wait(waits, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


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
    shutdown: Shutdown,
    metrics: Metrics | None = None,
    pages: ManagementPlugins | None = None,
    command_lines: CommandLines | None = None,
) -> AsyncIterator[None]:
    """
    Serve the management API and the probes on the management port.

    Args:
        config: Its management keys are what to begin with; the file is followed.
        settings: Of this process.
        checks: Readiness: name → why it is not given, None when it is.
        holder: Snapshots.
        usage: To the usage service.
        scheduler: Any scheduler.
        plugins: What is registered.
        roots: Of which management uses `cluster`.
        clock: Time.
        shutdown: Told when a part crashes.
        metrics: What /metrics shows; default only the process itself.
        pages: Routes and pages of plugins.
        command_lines: Their commands.

    Raises:
        FailedPrecondition: The port is taken.
    """
    door = Doorkeeper(
        config,
        load=lambda: load_for(settings, os.environ),
        make=partial(
            make_access,
            environ=os.environ,
            roots=roots.cluster,
            token=ensure_token(settings.data_dir),
            local_only=settings.service == "up" and settings.loopback,
        ),
        path=settings.config_path,
        environ=os.environ,
        clock=clock,
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
    app = build_management_app(ports, door, clock=clock)
    tasks = Tasks(shutdown)
    try:
        async with serve_app(app, settings.host, settings.management_port):
            tasks.start("management-keys", door.run())
            yield
    finally:
        await tasks.aclose()


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
                shutdown=shutdown,
                metrics=metrics,
                pages=edge.pages,
                command_lines=edge.command_lines,
            )
        )
        memory.freeze()
        await shutdown.wait()
        await edge.drain()
