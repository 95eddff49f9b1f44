"""
`patchbay up --workers N`: a supervisor, one control process and N data processes on one machine.

    supervisor ── Valkey
      ├─ control   scheduler timers and publishing, usage, management on 8081
      └─ data × N  edge, scheduler, executors; they share port 8080, the kernel spreads connections

The supervisor does no work of its own: it starts Valkey and the processes, starts a dead one again, and
passes the end on. They share Redis, the data directory's keys and the configuration file; journal and
outbox are each data process's own. Not here: one process for everything (embedded.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.adoption import JOURNAL, OUTBOX, Adoption, adopting, worker_directory
from patchbay_gateway.edge.callbacks.serving import edge_callbacks
from patchbay_gateway.edge.clients import LocalCalls
from patchbay_gateway.edge.main import running_edge, running_management
from patchbay_gateway.edge.management.hosted import management_plugins
from patchbay_gateway.executors.main import BUILT_IN, running_executors
from patchbay_gateway.kernel import keys, lifecycle, logs, memory
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import ProcessSettings, load_for
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import make_metrics
from patchbay_gateway.kernel.valkey import EmbeddedValkey
from patchbay_gateway.plugins.callbacks.serving import HOST_SERVICE, serving_callbacks
from patchbay_gateway.plugins.channel_keys import derived
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.instances import list_instances
from patchbay_gateway.scheduler.main import SERVICE as SCHEDULER
from patchbay_gateway.scheduler.main import running_scheduler
from patchbay_gateway.starting import await_redis
from patchbay_gateway.usage.main import SERVICE as USAGE
from patchbay_gateway.usage.main import running_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.instances import Instance

_SETTINGS: Final = "PATCHBAY_WORKER_SETTINGS"
"""Environment variable by which a process of ours gets its settings, as JSON."""
_PARENT: Final = "PATCHBAY_WORKER_PARENT"
"""Environment variable with the supervisor's process id."""
_READY: Final = "PATCHBAY_WORKER_READY"
"""Environment variable with the descriptor to which a process of ours writes once when it serves."""
# How often the supervisor looks whether a process still lives.
_LOOK: Final = 0.1
# Seconds between two looks at what metrics look up.
_REFRESH: Final = 5.0
_BACKOFF: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
# A process that lived this long has not failed at its start; the next restart is quick again.
_HEALTHY: Final = 10.0
# What a data process does after its drain: requests that were cut, last reports, last words to plugins.
_AFTER_DRAIN: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1

_log = logs.get_logger("workers")


def run(settings: ProcessSettings, greet: Callable[[], None]) -> int:
    """Supervise until stopped; return the exit status."""
    return lifecycle.run(lambda shutdown: _supervise(settings, shutdown, greet))


async def _supervise(
    settings: ProcessSettings, shutdown: lifecycle.Shutdown, greet: Callable[[], None]
) -> None:
    clock = SystemClock()
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.load_roots(os.environ, keys.ROOTS, settings.data_dir)
    # What an earlier run counted is not this one's.
    shutil.rmtree(_counted(settings), ignore_errors=True)
    async with contextlib.AsyncExitStack() as stack:
        tasks = lifecycle.Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        if settings.redis_url is None:
            valkey = EmbeddedValkey(settings.data_dir, clock)
            settings = settings.model_copy(update={"redis_url": await valkey.start()})
            stack.push_async_callback(valkey.stop)
            tasks.start("valkey", valkey.keep())
        else:
            store = Store(settings.redis_url, installation=settings.installation, clock=clock)
            try:
                await await_redis(store, settings.data_dir)
            finally:
                await store.aclose()
        names = ["control", *_data_names(settings)]
        # The control process ends last: it takes the usage of the others' last answers.
        last = asyncio.Event()
        ready = {name: asyncio.Event() for name in names}
        control, *data = [
            tasks.start(
                f"worker-{name}",
                _keep(
                    name,
                    settings,
                    last if name == "control" else shutdown.draining,
                    clock,
                    ready[name],
                ),
            )
            for name in names
        ]
        tasks.start("greeting", _greet(ready.values(), greet))
        await shutdown.wait()
        await asyncio.wait(data, timeout=_patience(settings))
        last.set()
        await asyncio.wait([control], timeout=_AFTER_DRAIN)


def _data_names(settings: ProcessSettings) -> list[str]:
    return [f"data-{n + 1}" for n in range(settings.workers)]


def _patience(settings: ProcessSettings) -> float:
    """Return the seconds that data processes get to end; what is left then is killed."""
    return settings.drain + _AFTER_DRAIN


async def _greet(ready: Iterable[asyncio.Event], greet: Callable[[], None]) -> None:
    """Greet when all processes have been ready once."""
    for each in ready:
        await each.wait()
    greet()


async def _keep(
    name: str,
    settings: ProcessSettings,
    end: asyncio.Event,
    clock: SystemClock,
    ready: asyncio.Event,
) -> None:
    """
    Run one process again and again until *end*; then end it and wait. Cancelled, it kills it.

    *ready* is set when one of its lives says that it serves.
    """
    failures = 0
    while not end.is_set():
        started = clock.monotonic()
        process, words = _spawn(name, settings)
        try:
            while process.poll() is None and not end.is_set():
                if not ready.is_set() and _says_ready(words):
                    ready.set()
                await clock.sleep(_LOOK)
            if process.returncode is None:
                process.terminate()
                while process.poll() is None:
                    await clock.sleep(_LOOK)
                return
        finally:
            os.close(words)
            if process.poll() is None:
                process.kill()
                process.wait()
        # Counters of the dead stay in the sum; what it had open is open no more.
        for path in _counted(settings).glob(f"gauge_live*_{process.pid}.db"):
            path.unlink(missing_ok=True)
        failures = 1 if clock.monotonic() - started > _HEALTHY else failures + 1
        _log.error("worker ended, it is started again", worker=name, status=process.returncode)
        again = clock.monotonic() + _BACKOFF[min(failures, len(_BACKOFF)) - 1]
        while clock.monotonic() < again and not end.is_set():
            await clock.sleep(_LOOK)


def _counted(settings: ProcessSettings) -> Path:
    """Return the directory in which all processes keep their metrics (kernel/telemetry.py)."""
    return settings.data_dir / "workers" / "metrics"


def _spawn(name: str, settings: ProcessSettings) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process *name*; return it, and the descriptor by which it says that it serves."""
    words, its_end = os.pipe()
    os.set_blocking(words, False)
    # Not the loop's own way: uvloop forks a process with threads and runs fork handlers in the child, where
    # gRPC's may wait for a thread that is not there. From the loop's thread, never from a pool: the kernel
    # sends its signal (`_end_with_parent`) when the *thread* ends that started the child.
    try:
        process = subprocess.Popen(  # noqa: S603 - our program, our arguments
            [sys.executable, "-m", "patchbay_gateway.workers", name],
            env={
                **os.environ,
                _SETTINGS: settings.model_dump_json(),
                _PARENT: str(os.getpid()),
                _READY: str(its_end),
            },
            # A terminal's Ctrl-C is the supervisor's to pass on.
            start_new_session=True,
            pass_fds=[its_end],
        )
    except BaseException:
        os.close(words)
        raise
    finally:
        os.close(its_end)
    return process, words


def _says_ready(words: int) -> bool:
    try:
        return bool(os.read(words, 1))
    except BlockingIOError:
        return False


def _say_ready() -> None:
    """Tell the supervisor that this process serves."""
    descriptor = int(os.environ[_READY])
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, b"1")
    os.close(descriptor)


def main(name: str) -> int:
    """Be the process *name*: `control` or `data-N`."""
    _end_with_parent()
    settings = ProcessSettings.model_validate_json(os.environ[_SETTINGS])
    config = load_for(settings, os.environ)
    logs.configure(settings.log_format, settings.log_level)
    role = _control if name == "control" else _data
    return lifecycle.run(lambda shutdown: role(name, config, settings, shutdown))


def _end_with_parent() -> None:
    """Have the kernel kill this process when the supervisor is killed; where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[_PARENT]):
            sys.exit("the supervisor is gone")  # killed before the kernel knew our wish


async def _data(
    name: str, config: Config, settings: ProcessSettings, shutdown: lifecycle.Shutdown
) -> None:
    clock = SystemClock()
    metrics = make_metrics(enabled=True, shared=_counted(settings))
    roots = keys.load_roots(os.environ, keys.ROOTS, settings.data_dir)
    own = worker_directory(settings.data_dir, name)
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.redis_url or "", installation=settings.installation, clock=clock)
        stack.push_async_callback(store.aclose)
        holder = SnapshotHolder()
        executors = await stack.enter_async_context(
            running_executors(settings.plugins, roots=roots.plugins)
        )
        built_in = InProcessChannel(executors.servicers)
        stack.push_async_callback(built_in.close)
        local = dict.fromkeys(BUILT_IN, built_in)
        scheduler = await stack.enter_async_context(
            running_scheduler(
                config,
                settings,
                store=store,
                holder=holder,
                roots=roots,
                clock=clock,
                shutdown=shutdown,
                publish=False,
                journal_dir=own / JOURNAL,
                local=local,
                metrics=metrics,
            )
        )
        # At once: it calls plugins already, and what they may ask for must be there.
        await stack.enter_async_context(
            serving_callbacks(
                scheduler.host, scheduler.host.scopes, settings=settings, holder=holder, port=0,
                always=False,
            )
        )  # fmt: skip
        channel = InProcessChannel({SCHEDULER: scheduler, HOST_SERVICE: scheduler.host})
        stack.push_async_callback(channel.close)
        calls = LocalCalls(channel)
        edge = await stack.enter_async_context(
            running_edge(
                settings,
                store=store,
                holder=holder,
                scheduler=calls,
                local=local,
                roots=roots,
                clock=clock,
                shutdown=shutdown,
                outbox_dir=own / OUTBOX,
                reuse_port=True,
                metrics=metrics,
            )
        )
        # One of the processes gets the configured port, the others free ones: each call names its own.
        await stack.enter_async_context(
            edge_callbacks(
                edge,
                settings,
                scheduler=calls,
                auths=[channel],
                port=settings.grpc_port,
                always=False,
            )
        )
        tasks = lifecycle.Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        tasks.start("metrics", _looking(metrics, clock))
        memory.freeze()
        _say_ready()
        await shutdown.wait()
        await edge.drain()


async def _looking(metrics: Metrics, clock: SystemClock) -> None:
    """Keep what is looked up no older than some seconds: another process renders the page."""
    while True:
        metrics.refresh()
        await clock.sleep(_REFRESH)


async def _control(
    _: str, config: Config, settings: ProcessSettings, shutdown: lifecycle.Shutdown
) -> None:
    clock = SystemClock()
    metrics = make_metrics(enabled=True, shared=_counted(settings))
    roots = keys.load_roots(os.environ, keys.ROOTS, settings.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.redis_url or "", installation=settings.installation, clock=clock)
        stack.push_async_callback(store.aclose)
        await await_redis(store, settings.data_dir)
        holder = SnapshotHolder()
        usage = await stack.enter_async_context(
            running_usage(
                config,
                settings,
                store=store,
                holder=holder,
                clock=clock,
                shutdown=shutdown,
                plugin_keys=derived(roots.plugins),
                metrics=metrics,
            )
        )
        scheduler = await stack.enter_async_context(
            running_scheduler(
                config, settings, store=store, holder=holder, roots=roots, clock=clock,
                shutdown=shutdown, metrics=metrics,
            )
        )  # fmt: skip
        channel = InProcessChannel({SCHEDULER: scheduler, USAGE: usage})
        stack.push_async_callback(channel.close)
        calls = LocalCalls(channel)
        own = [worker_directory(settings.data_dir, name) for name in _data_names(settings)]
        adoption = Adoption(
            settings.data_dir,
            own=[path / kind for path in own for kind in (JOURNAL, OUTBOX)],
            store=store,
            scheduler=calls,
            clock=clock,
        )
        await stack.enter_async_context(adopting(adoption, shutdown))
        await stack.enter_async_context(
            serving_callbacks(
                scheduler.host, scheduler.host.scopes, settings=settings, holder=holder, port=0,
                always=False,
            )
        )  # fmt: skip

        edges = 0

        async def count() -> None:
            nonlocal edges
            while True:
                with contextlib.suppress(PatchbayError):
                    found = await list_instances(store)
                    edges = sum(i.kind == "edge" and i.ready and _is_sibling(i) for i in found)
                await clock.sleep(0.5)

        tasks = lifecycle.Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        tasks.start("count-edges", count())
        checks: dict[str, Callable[[], str | None]] = {
            "snapshot": lambda: None if holder.current else "no configuration yet",
            "workers": lambda: (
                None
                if edges >= settings.workers
                else f"{edges} of {settings.workers} data processes are ready"
            ),
        }
        plugins = await stack.enter_async_context(
            management_plugins(
                store=store,
                holder=holder,
                keys=derived(roots.plugins),
                clock=clock,
                tasks=tasks,
                name_servers=settings.name_servers,
                tls=settings.tls,
            )
        )
        await stack.enter_async_context(
            running_management(
                config,
                settings,
                checks=checks,
                holder=holder,
                usage=channel,
                scheduler=calls,
                plugins=plugins.registry.status,
                pages=plugins.pages,
                command_lines=plugins.command_lines,
                roots=roots,
                clock=clock,
                shutdown=shutdown,
                metrics=metrics,
            )
        )
        _say_ready()
        await shutdown.wait()


def _is_sibling(instance: Instance) -> bool:
    """
    Whether *instance* is a live process of the same supervisor.

    What a killed process said of itself stands in Redis for a while, and others may share that Redis.
    """
    if (instance.host, instance.parent) != (socket.gethostname(), os.getppid()):
        return False
    try:
        os.kill(instance.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
