"""
Builds a scheduler and runs it: within another process (`running_scheduler`) or as one (`run`).

The only module of the scheduler that knows how its parts fit together. Not here: what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition, PatchbayError, Unavailable
from patchbay.server import Server
from patchbay.tokens import ServiceAuthenticator
from patchbay_gateway.kernel import lifecycle, logs
from patchbay_gateway.kernel.appendlog import AppendLog
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import load_for
from patchbay_gateway.kernel.health import serve_health
from patchbay_gateway.kernel.keys import ROOTS, load_roots, service_key
from patchbay_gateway.kernel.lifecycle import Shutdown, Tasks
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import NoMetrics, make_metrics
from patchbay_gateway.plugins.callbacks.serving import HOST_SERVICE, advertised
from patchbay_gateway.plugins.distribution import (
    SnapshotHolder,
    SnapshotPublisher,
    SnapshotWatcher,
)
from patchbay_gateway.plugins.instances import Heartbeat, Instance
from patchbay_gateway.plugins.reports import Reports
from patchbay_gateway.plugins.scheduler_plugin import SchedulerPlugins
from patchbay_gateway.scheduler.auth_plugins import AuthPlugins
from patchbay_gateway.scheduler.catalogue import Catalogue
from patchbay_gateway.scheduler.cluster_secrets import ClusterMaterial, kubernetes
from patchbay_gateway.scheduler.credentials import Credentials
from patchbay_gateway.scheduler.grown import add_entries
from patchbay_gateway.scheduler.host_service import build_host
from patchbay_gateway.scheduler.hosted import host_plugins
from patchbay_gateway.scheduler.journal import Journal
from patchbay_gateway.scheduler.keeping import Keeper
from patchbay_gateway.scheduler.leases import EpochChanged
from patchbay_gateway.scheduler.leasing import LeaseCore, build_leasing
from patchbay_gateway.scheduler.login import Logins
from patchbay_gateway.scheduler.parsed_files import ParsedFiles
from patchbay_gateway.scheduler.plugin_models import PluginModels
from patchbay_gateway.scheduler.redelivery import STREAM_BOUND, Redelivery
from patchbay_gateway.scheduler.refreshing import running_refresh
from patchbay_gateway.scheduler.reporting import Reporter
from patchbay_gateway.scheduler.service import SchedulerServicer
from patchbay_gateway.scheduler.watching import Configuration, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from patchbay.tokens import Metadata
    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config, ProcessSettings
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
    from patchbay_gateway.scheduler.refreshing import Refreshing
    from patchbay_gateway.scheduler.seeds import Seeds

_log = logs.get_logger("scheduler")

# Calls take milliseconds; what is not done by then hangs on Redis and is answered by its timeout.
_DRAIN: Final = 5.0
# For events that wait in the file when the process ends.
_LAST_WORDS: Final = 2.0
# Clients connect anew now and then, so that added schedulers get their share.
_CONNECTION_AGE: Final = 300.0

SERVICE: Final = "patchbay.scheduler.v1.SchedulerService"
"""Full name of the service, for channels and servers."""


@contextlib.asynccontextmanager
async def running_scheduler(  # noqa: PLR0915 - puts all parts together, decides nothing
    config: Config,
    settings: ProcessSettings,
    *,
    store: Store,
    holder: SnapshotHolder,
    roots: Roots,
    clock: Clock,
    shutdown: Shutdown | None = None,
    publish: bool = True,
    journal_dir: Path | None = None,
    stream_bound: int = STREAM_BOUND,
    reload: Callable[[], Config] | None = None,
    environ: Mapping[str, str] | None = None,
    metrics: Metrics | None = None,
    local: Mapping[str, Channel] | None = None,
) -> AsyncIterator[SchedulerServicer]:
    """
    Run a scheduler's parts around the servicer that it yields.

    Args:
        config: What to begin with.
        settings: Of this process.
        store: Redis; stays the caller's.
        holder: Filled and kept up to date, from the file and from Redis.
        roots: All three.
        clock: Time.
        shutdown: Told when a part crashes; None: only the log says so.
        publish: Whether this process publishes snapshots; otherwise it follows those of others.
        journal_dir: Directory of the write-ahead file; default `journal` in the data directory. No two
            processes share one.
        stream_bound: Entries of the journal in Redis above which events wait in the file.
        reload: Reads the configuration anew when the file changes; default by *settings*.
        environ: The environment; default the process's.
        metrics: Default none.
        local: Auth providers that run in this process, plugin id → channel.

    Raises:
        ConfigError: The configuration names what cannot be used.
        FailedPrecondition: The journal's directory is another process's, or the directory of credentials
            cannot be used.
    """
    environ = os.environ if environ is None else environ
    metrics = metrics or NoMetrics()
    log = AppendLog(journal_dir or settings.data_dir / "journal")
    tasks = Tasks(shutdown or Shutdown())
    parts = contextlib.AsyncExitStack()
    try:
        journal = Journal(log, clock=clock, installation=settings.installation)
        core = LeaseCore(store, journal, clock=clock, lease_ttl=settings.lease_ttl, metrics=metrics)
        redelivery = Redelivery(
            store,
            journal,
            core.leases,
            clock=clock,
            behind=core.behind,
            nudge=core.book.nudge,
            stream_bound=stream_bound,
            metrics=metrics,
        )
        with contextlib.suppress(Unavailable, EpochChanged):
            await redelivery.look()

        publisher = SnapshotPublisher(store, clock=clock)
        watcher = SnapshotWatcher(
            store, holder, settings.data_dir / "snapshot.json", clock, publisher=publisher
        )
        await watcher.boot()
        credentials = Credentials(roots.plugins, clock=clock)
        # Where an operator publishes, keys and records are in Secrets.
        secrets = kubernetes(environ) if settings.snapshot_from == "operator" else None
        if secrets is not None and config.auth_dir is not None:
            _log.warning("auth_dir has no effect: custom resources declare credentials here")
        name = f"scheduler-{journal.writer}"
        plugins = host_plugins(
            settings, name=name, store=store, roots=roots, clock=clock, local=local
        )
        parts.push_async_callback(plugins.registry.aclose)
        refreshing = await parts.enter_async_context(
            running_refresh(
                settings,
                name=name,
                store=store,
                holder=holder,
                roots=roots,
                clock=clock,
                tasks=tasks,
                credentials=credentials,
                metrics=metrics,
                plugins=plugins,
                secrets=secrets,
            )
        )
        records = refreshing.records
        auth_plugins = AuthPlugins(plugins, clock=clock)
        parsed = ParsedFiles(
            auth_plugins, plugins.calls, holder=holder, plugins_roots=roots.plugins, clock=clock
        )
        keeper = Keeper(records, holder=holder, plugins=auth_plugins, clock=clock)
        parts.push_async_callback(keeper.aclose)
        models = PluginModels(plugins, holder, credentials, clock=clock, auth_plugins=auth_plugins)
        configuration = Configuration(
            Source(
                load=reload or (lambda: load_for(settings, environ)),
                path=settings.config_path,
                environ=environ,
                roots=roots,
                open_access=lambda c: (
                    settings.service == "up" and settings.loopback and not c.client_keys
                ),
            ),
            credentials=credentials,
            sow=_sowing(secrets, credentials, refreshing, holder, tasks, clock),
            holder=holder,
            publisher=publisher if publish and secrets is None else None,
            store=store,
            clock=clock,
            extend=lambda draft, previous: models.add(
                add_entries(draft, keeper.entries(draft)), previous
            ),
            parsed=parsed.view,
            away=lambda: parsed.away,
            grown=keeper.on_change if publish and secrets is None else lambda _: None,
        )
        await configuration.start(config)

        def problems() -> list[str]:
            missing = [] if holder.current is not None else ["no snapshot yet"]
            return [*missing, *configuration.problems]

        heartbeat = Heartbeat(
            store,
            clock=clock,
            describe=lambda: Instance(
                id=f"scheduler-{journal.writer}",
                kind="scheduler",
                snapshot=holder.current.version if holder.current is not None else 0,
                ready=holder.current is not None,
            ),
        )
        leasing = build_leasing(
            core,
            store=store,
            holder=holder,
            journal=journal,
            credentials=credentials,
            records=records,
            clock=clock,
            installation=settings.installation,
            lease_ttl=settings.lease_ttl,
            metrics=metrics,
            plugins=SchedulerPlugins(plugins.hooks, plugins.calls),
        )
        servicer = SchedulerServicer(
            holder=holder,
            acquiring=leasing.acquiring,
            settling=leasing.settling,
            catalogue=Catalogue(credentials),
            inventory=leasing.inventory,
            pool=core.pool,
            records=records,
            refresher=refreshing.refresher,
            plugins_roots=roots.plugins,
            clock=clock,
            refresh=watcher.refresh,
            plugins=plugins,
            logins=Logins(
                store=store,
                holder=holder,
                calls=plugins.calls,
                keeper=keeper,
                plugins=auth_plugins,
                refresher=refreshing.refresher,
                roots=roots,
                clock=clock,
            ),
            host=build_host(
                plugins,
                holder=holder,
                inventory=leasing.inventory,
                credentials=credentials,
                refreshing=refreshing,
                files=configuration,
                roots=roots,
                clock=clock,
                keeper=keeper,
                parsed=parsed,
                write_files=secrets is None,
            ),
            keeper=keeper,
            files=configuration.told,
            problems=problems,
        )
        leasing.start(core, tasks)
        tasks.start("scheduler-journal", redelivery.run())
        tasks.start("scheduler-snapshot", watcher.run())
        tasks.start("scheduler-configuration", configuration.run())
        if publish and secrets is None:
            tasks.start("scheduler-models", models.run(configuration.extended))
            tasks.start(
                "scheduler-auth-files",
                parsed.run(lambda: configuration.offered, configuration.reparsed),
            )
        if secrets is not None:
            reporter = Reporter(
                Reports(store),
                holder=holder,
                models=models,
                credentials=credentials,
                refresher=refreshing.refresher,
                view=core.view,
                clock=clock,
            )
            tasks.start("scheduler-models", models.run(lambda: None))
            tasks.start("scheduler-reports", reporter.run())
        tasks.start("scheduler-heartbeat", heartbeat.run())
        # A publisher saw the files change: see what changed in them for credentials.
        forget = holder.on_change(lambda _: configuration.glance())
        try:
            with _on_hangup(configuration.look):
                yield servicer
        finally:
            forget()
            leasing.close()
        await tasks.aclose()
        if not journal.live:
            # The file may go with this process; the ledger would call what is only there lost.
            with contextlib.suppress(PatchbayError, EpochChanged, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await redelivery.look()
        await core.book.flush()
        with contextlib.suppress(PatchbayError, EpochChanged):
            await core.pool.sync()  # the last counters
        await leasing.affinity.flush()
        with contextlib.suppress(PatchbayError):
            await heartbeat.beat(alive=False)
    finally:
        await tasks.aclose()
        await parts.aclose()
        log.close()


def _sowing(
    secrets: SecretsApi | None,
    credentials: Credentials,
    refreshing: Refreshing,
    holder: SnapshotHolder,
    tasks: Tasks,
    clock: Clock,
) -> Callable[[Seeds], Awaitable[None]]:
    """Return who takes the seeds of the file; where there are Secrets, begin to follow them."""
    if secrets is None:
        return refreshing.sow
    material = ClusterMaterial(
        secrets, credentials=credentials, sow=refreshing.sow, holder=holder, clock=clock
    )
    tasks.start("scheduler-secrets", material.run())
    return material.sow


def run(config: Config, settings: ProcessSettings) -> int:
    """
    Run a scheduler as a process of its own, gRPC and health, until it has drained; return its exit status.

    Raises:
        FailedPrecondition: A root key or the URL of Redis is missing; the text has the remedy.
    """
    if settings.redis_url is None:
        raise FailedPrecondition(
            "a scheduler needs Redis or Valkey: set REDIS_URL, for example redis://127.0.0.1:6379",
            reason="REDIS_URL_MISSING",
        )
    logs.configure(settings.log_format, settings.log_level)
    url, roots = settings.redis_url, load_roots(os.environ, ROOTS, settings.data_dir)
    return lifecycle.run(lambda shutdown: _serve(config, settings, url, roots, shutdown))


async def _serve(
    config: Config, settings: ProcessSettings, url: str, roots: Roots, shutdown: Shutdown
) -> None:
    clock = SystemClock()
    holder = SnapshotHolder()
    store = Store(url, installation=settings.installation, clock=clock)
    metrics = make_metrics(enabled=True)
    try:
        try:
            await store.check_server()
        except Unavailable as error:
            _log.warning("starting without Redis", why=error.message)
        async with running_scheduler(
            config,
            settings,
            store=store,
            holder=holder,
            roots=roots,
            clock=clock,
            shutdown=shutdown,
            metrics=metrics,
        ) as servicer:
            services = ServiceAuthenticator([service_key(root) for root in roots.cluster])

            def authenticate(path: str, metadata: Metadata) -> None:
                if not path.startswith(f"/{HOST_SERVICE}/"):  # which sees for itself who calls
                    services(path, metadata)

            server = Server(
                {SERVICE: servicer, HOST_SERVICE: servicer.host},
                authenticate=authenticate,
                max_connection_age=_CONNECTION_AGE,
                tls=settings.tls,
            )
            checks = {"scheduler": lambda: "; ".join(servicer.problems()) or None}
            # Before all else: plugins are called already, and what they may ask for must be there.
            port = await server.start(settings.grpc_listen)
            servicer.host.scopes.address = advertised(settings, port)
            try:
                async with serve_health(
                    settings.host, settings.health_port, checks, metrics
                ) as health:
                    _log.info("scheduler listens", grpc=port, health=health)
                    await shutdown.wait()
                    await server.drain(_DRAIN)
            finally:
                await server.stop()
    finally:
        await store.aclose()


@contextlib.contextmanager
def _on_hangup(callback: Callable[[], None]) -> Iterator[None]:
    """Call *callback* at SIGHUP where the loop can do that (the main thread of a Unix process)."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, callback)
    except (NotImplementedError, RuntimeError, ValueError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
