"""
Builds the usage service: within another process (`running_usage`) or as one (`run`).

The only module here that knows how its parts fit together. Not here: what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition, PatchbayError, Unavailable
from patchbay_gateway.kernel import lifecycle, logs
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.lifecycle import Shutdown, Tasks
from patchbay_gateway.plugins.channel_keys import listed
from patchbay_gateway.plugins.instances import Heartbeat, Instance
from patchbay_gateway.usage.consumer import LINGER, Consumer
from patchbay_gateway.usage.counting import UsageCounts
from patchbay_gateway.usage.hosted import running_fan_out
from patchbay_gateway.usage.ledger import Ledger
from patchbay_gateway.usage.price_feed import PriceFeed
from patchbay_gateway.usage.service import SERVICE, UsageServicer
from patchbay_gateway.usage.stream import RedisStream
from patchbay_gateway.usage.sweeper import Sweeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.config import Config, ProcessSettings
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.registry import ChannelKeys

__all__ = ["SERVICE", "database_url", "run", "running_usage"]

_GRACE: Final = 5.0
_LAST_WORDS: Final = 2.0
_RETRY_EVERY: Final = 1.0
_WAITS: Final = "waits for the database"
_SCHEDULER: Final = "patchbay.scheduler.v1.SchedulerService"

_log = logs.get_logger("usage")


def database_url(config: Config, settings: ProcessSettings) -> str:
    """Return where the ledger is: as configured, else `ledger.db` in the data directory."""
    return config.usage.database_url or f"sqlite:///{settings.data_dir / 'ledger.db'}"


@contextlib.asynccontextmanager
async def running_usage(
    config: Config,
    settings: ProcessSettings,
    *,
    store: Store,
    holder: SnapshotHolder,
    clock: Clock,
    shutdown: Shutdown | None = None,
    consumer: str | None = None,
    linger: float = LINGER,
    plugin_keys: ChannelKeys | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[UsageServicer]:
    """
    Run consumer and sweeper around the servicer that it yields.

    Args:
        config: Where the ledger is.
        settings: Of this process.
        store: Redis; stays the caller's.
        holder: Snapshots, for prices; somebody else fills it.
        clock: Time.
        shutdown: Told when a part crashes; None: only the log says so.
        consumer: Name in the journal's group; default the host's and the port's. No two running services
            share one.
        linger: Seconds between batches that are not full.
        plugin_keys: Channel keys of plugins; None: this service tells no plugins.
        metrics: Where it is counted; default nowhere.

    Raises:
        FailedPrecondition: The database's URL or schema is not for us; the text says what to do.
        Unavailable: The database is away.
    """
    ledger = await Ledger.open(database_url(config, settings))
    tasks = Tasks(shutdown or Shutdown())
    feed = PriceFeed(holder, ledger, clock=clock)
    parts = contextlib.AsyncExitStack()
    try:
        # Several may run on one machine; each takes its own name up again.
        own = f"-{settings.grpc_port}" if settings.service == "usage" else ""
        name = consumer or f"{socket.gethostname()}{own}"
        stream = RedisStream(store, consumer=name)
        reader = Consumer(stream, ledger, feed, clock=clock, linger=linger)
        sweeper = Sweeper(
            stream,
            ledger,
            reader,
            clock=clock,
            lease_ttl=settings.lease_ttl,
            lease_grace=settings.lease_grace,
        )
        heartbeat = Heartbeat(
            store,
            clock=clock,
            describe=lambda: Instance(
                id=f"usage-{name}",
                kind="usage",
                snapshot=holder.current.version if holder.current is not None else 0,
                ready=not reader.trouble,
            ),
        )
        if plugin_keys is not None:
            await parts.enter_async_context(
                running_fan_out(
                    ledger.deliveries,
                    name=f"usage-{name}",
                    store=store,
                    holder=holder,
                    keys=plugin_keys,
                    clock=clock,
                    tasks=tasks,
                    name_servers=settings.name_servers,
                    tls=settings.tls,
                )
            )
        tasks.start("usage-consumer", reader.run())
        tasks.start("usage-sweeper", sweeper.run())
        tasks.start("usage-heartbeat", heartbeat.run())
        if metrics is not None:
            UsageCounts(metrics, reader, sweeper, clock=clock)
        yield UsageServicer(ledger, stream, reader)
        await tasks.aclose()
        await reader.finish(_LAST_WORDS)
        with contextlib.suppress(PatchbayError):
            await heartbeat.beat(alive=False)
    finally:
        await tasks.aclose()
        await parts.aclose()
        feed.close()
        await ledger.aclose()


def run(config: Config, settings: ProcessSettings) -> int:
    """
    Run the usage service as this process and return its exit status.

    Raises:
        FailedPrecondition: No Redis is named.
    """
    if not settings.redis_url:
        raise FailedPrecondition(
            "the usage service reads the journal from Redis; set REDIS_URL", reason="NO_REDIS"
        )

    async def main(shutdown: Shutdown) -> None:
        await _serve(config, settings, shutdown)

    return lifecycle.run(main)


async def _serve(config: Config, settings: ProcessSettings, shutdown: Shutdown) -> None:
    # Only the process needs the network's side; `patchbay up` has it elsewhere.
    from patchbay.server import Server  # noqa: PLC0415 - see above
    from patchbay.tokens import ServiceAuthenticator, TokenSource  # noqa: PLC0415 - see above
    from patchbay_gateway.kernel.channels.remote import RemoteChannel  # noqa: PLC0415 - see above
    from patchbay_gateway.kernel.health import serve_health  # noqa: PLC0415 - see above
    from patchbay_gateway.kernel.keys import load_roots, service_key  # noqa: PLC0415 - see above
    from patchbay_gateway.kernel.redis import Store  # noqa: PLC0415 - see above
    from patchbay_gateway.kernel.telemetry import make_metrics  # noqa: PLC0415 - see above
    from patchbay_gateway.plugins.distribution import (  # noqa: PLC0415 - see above
        SnapshotHolder,
        SnapshotWatcher,
    )

    logs.configure(settings.log_format, settings.log_level)
    assert settings.redis_url
    clock = SystemClock()
    roots = load_roots(os.environ, ["cluster"], settings.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.redis_url, installation=settings.installation, clock=clock)
        stack.push_async_callback(store.aclose)
        tasks = Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        with contextlib.suppress(Unavailable):  # it may come later; the consumer waits for it
            await store.check_server()
        holder = SnapshotHolder()
        watcher = SnapshotWatcher(store, holder, settings.data_dir / "usage-snapshot.json", clock)
        await watcher.boot()
        tasks.start("usage-snapshot", watcher.run())
        keys = service_key(roots.cluster[0])
        source = TokenSource(keys, _SCHEDULER, f"usage-{socket.gethostname()}")
        schedulers = [
            RemoteChannel(address, metadata=source.metadata, tls=settings.tls)
            for address in settings.scheduler_address.split(",")
            if address
        ]
        for channel in schedulers:
            stack.push_async_callback(channel.close)

        def entering() -> contextlib.AbstractAsyncContextManager[UsageServicer]:
            return running_usage(
                config,
                settings,
                store=store,
                holder=holder,
                clock=clock,
                shutdown=shutdown,
                plugin_keys=listed(schedulers, clock=clock) if schedulers else None,
                metrics=metrics,
            )

        metrics = make_metrics(enabled=True)
        opened: list[UsageServicer] = []
        # Before the database is asked: a process that waits for it or upgrades its tables is alive, and
        # must not be killed for a migration that takes longer than a startup probe.
        port = await stack.enter_async_context(
            serve_health(
                settings.host,
                settings.health_port,
                {"journal": lambda: opened[0].health() if opened else _WAITS},
                metrics,
            )
        )
        servicer = await _entered(stack, entering, shutdown)
        if servicer is None:
            return
        server = Server(
            {SERVICE: servicer},
            authenticate=ServiceAuthenticator([service_key(root) for root in roots.cluster]),
            tls=settings.tls,
        )
        grpc_port = await server.start(settings.grpc_listen)
        opened.append(servicer)
        _log.info("usage service is up", grpc_port=grpc_port, health_port=port)
        try:
            await shutdown.wait()
        finally:
            await server.drain(_GRACE, notice=0.0)


async def _entered(
    stack: contextlib.AsyncExitStack,
    entering: Callable[[], contextlib.AbstractAsyncContextManager[UsageServicer]],
    shutdown: Shutdown,
) -> UsageServicer | None:
    """Start the service when its database answers; None when the process is to end before."""
    while not shutdown.draining.is_set():
        try:
            return await stack.enter_async_context(entering())
        except Unavailable as error:
            _log.warning("waits for the ledger's database", why=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_EVERY):
                    await shutdown.wait()
    return None
