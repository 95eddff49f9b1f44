"""
The operator as a process: health and metrics at once, the work when it leads.

The only module that knows how its parts fit together. A replica that does not lead answers its probes and
waits. Not here: what they do.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lightkube import KubeConfig

from patchbay.errors import FailedPrecondition, PatchbayError
from patchbay_gateway.kernel import lifecycle, logs
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.health import HealthApp, serve_app
from patchbay_gateway.kernel.keys import load_roots
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import make_metrics
from patchbay_operator.cluster import LightkubeApi
from patchbay_operator.controller import Controller
from patchbay_operator.gathering import read_values
from patchbay_operator.installation import Installation
from patchbay_operator.leading import Leadership
from patchbay_operator.publishing import RedisGateway
from patchbay_operator.watching import Witness, build_registry, build_settings, watch
from patchbay_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_operator.controller import Key

GATEWAY_EVERY: Final = 1.0
OBJECTS_EVERY: Final = 5.0
DIFF_EVERY: Final = 5.0
RESYNC_EVERY: Final = 600.0
STUCK_AFTER: Final = 180.0
OLD_AFTER: Final = 300.0
_log = logs.get_logger("operator")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the process."""

    installation: Installation
    redis_url: str
    redis_installation: str
    config_path: Path | None
    identity: str
    host: str = "0.0.0.0"  # noqa: S104 - a container's
    port: int = 9104

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """
        Read the environment.

        Raises:
            FailedPrecondition: Something is missing; the text has the remedy.
        """
        try:
            installation = Installation.from_environment(environ)
        except ValueError as error:
            raise FailedPrecondition(str(error), reason="SETTINGS_INVALID") from error
        url = environ.get("REDIS_URL", "")
        if not url and (file := environ.get("REDIS_URL_FILE")):
            url = Path(file).read_text(encoding="utf-8").strip()
        if not url:
            raise FailedPrecondition(
                "the operator needs the gateway's Redis: set REDIS_URL", reason="REDIS_URL_MISSING"
            )
        config = environ.get("PATCHBAY_CONFIG")
        return cls(
            installation=installation,
            redis_url=url,
            redis_installation=environ.get("PATCHBAY_INSTALLATION") or "default",
            config_path=Path(config) if config else None,
            identity=environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            host=environ.get("PATCHBAY_HOST") or "0.0.0.0",  # noqa: S104 - a container's
            port=int(environ.get("PATCHBAY_OPERATOR_PORT") or 9104),
        )


class _Health(HealthApp):
    """Liveness that knows of a watch gone silent and a queue that does not move."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], str | None]],
        metrics: Metrics,
        stuck: Callable[[], str],
    ) -> None:
        super().__init__(checks, metrics)
        self._stuck = stuck

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        if path == "/livez" and (why := self._stuck()):
            return 503, "text/plain; charset=utf-8", f"{why}\n".encode()
        return super().answer(method, path)


def run(environ: Mapping[str, str]) -> int:
    """Run the operator until it is told to end; return its exit status."""
    logs.configure(
        "json" if environ.get("LOG_FORMAT", "json") == "json" else "text", _level(environ)
    )
    settings = Settings.load(environ)
    return lifecycle.run(lambda shutdown: serve(settings, environ, shutdown))


def _level(environ: Mapping[str, str]) -> str:
    return environ.get("LOG_LEVEL", "info").lower()


async def serve(
    settings: Settings, environ: Mapping[str, str], shutdown: lifecycle.Shutdown
) -> None:
    """Serve probes, wait for the lease, lead, release it."""
    clock = SystemClock()
    metrics = make_metrics(enabled=True)
    latency = metrics.histogram(
        "operator_api_seconds", "Calls of the API server.", ("verb", "status")
    )
    config = KubeConfig.from_env()
    api = LightkubeApi(
        settings.installation.namespace,
        config=config,
        observe=lambda verb, status, seconds: latency.labels(verb, str(status)).observe(seconds),
    )
    store = Store(
        settings.redis_url, installation=settings.redis_installation, clock=clock, timeout=2.0
    )
    parts = _build(settings, environ, api, store, metrics, clock)
    leader = metrics.gauge("operator_leader", "1 in the replica that leads.")
    leadership = Leadership(api, settings.identity, clock=clock)
    checks = {"lease": lambda: leadership.problem or None}
    tasks = lifecycle.Tasks(shutdown)
    try:
        app = _Health(checks, metrics, parts.stuck)
        async with serve_app(app, settings.host, settings.port) as port:
            _log.info("operator", identity=settings.identity, health=port)
            if await _until(leadership.acquire(), shutdown):
                leader.set(1)
                tasks.start("lease", _keep(leadership, shutdown))
                parts.start(tasks, config, settings)
                await shutdown.wait()
    finally:
        await tasks.aclose()
        await leadership.release()
        leader.set(0)
        await api.aclose()
        await store.aclose()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What works in the replica that leads."""

    controller: Controller
    queue: WorkQueue[Key]
    witness: Witness
    clock: Clock

    def stuck(self) -> str:
        """Return why this process should be started anew; empty when it should not."""
        if self.witness.silent > STUCK_AFTER:
            return f"the watch has been silent about a change for {self.witness.silent:.0f} s"
        if self.queue.oldest > OLD_AFTER:
            return f"the queue has not moved for {self.queue.oldest:.0f} s"
        return ""

    def start(self, tasks: lifecycle.Tasks, config: KubeConfig, settings: Settings) -> None:
        """Start to watch and to work."""
        controller, clock = self.controller, self.clock
        installation = settings.installation
        post = asyncio.get_running_loop().call_soon_threadsafe
        registry = build_registry(controller, self.queue, self.witness, config, post)

        async def compare() -> None:
            before = self.witness.told()
            self.witness.compare(await controller.diff(), before)

        async def resync() -> None:
            controller.resync()

        tasks.start("queue", self.queue.run())
        tasks.start(
            "watch", watch(registry, build_settings(installation.name), installation.namespace)
        )
        tasks.start("gateway", _every(GATEWAY_EVERY, controller.look_at_gateway, clock))
        tasks.start("objects", _every(OBJECTS_EVERY, controller.look_at_objects, clock))
        tasks.start("diff", _every(DIFF_EVERY, compare, clock))
        tasks.start("resync", _every(RESYNC_EVERY, resync, clock))
        path = settings.config_path
        if path is not None:
            # Its mark is taken before it is read: what changes in between is read again.
            tasks.start("values", _follow_values(path, _mark(path), controller, clock))
        controller.resync()


def _build(
    settings: Settings,
    environ: Mapping[str, str],
    api: LightkubeApi,
    store: Store,
    metrics: Metrics,
    clock: Clock,
) -> _Parts:
    roots = load_roots(environ, ("plugins", "cluster"))
    controller = Controller(
        api,
        RedisGateway(store, clock=clock),
        settings.installation,
        roots,
        values=lambda: read_values(settings.config_path, roots.cluster[0]),
        clock=clock,
    )
    results = metrics.histogram("operator_work_seconds", "Work on a key.", ("kind", "result"))
    depth = metrics.gauge("operator_queue_depth", "Keys that wait.")

    def note(key: Key, error: Exception | None, seconds: float) -> None:
        results.labels(key[0], "failed" if error else "done").observe(seconds)
        depth.set(len(queue))

    queue: WorkQueue[Key] = WorkQueue(controller.work, clock=clock, on_result=note)
    controller.queue = queue
    return _Parts(controller, queue, Witness(clock), clock)


async def _until(work: Awaitable[object], shutdown: lifecycle.Shutdown) -> bool:
    """Wait for *work*; False when the process is to end first."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(shutdown.wait())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return working.done() and not shutdown.draining.is_set()
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


async def _keep(leadership: Leadership, shutdown: lifecycle.Shutdown) -> None:
    await leadership.keep()
    shutdown.fail("the lease is lost; another replica leads")


async def _every(seconds: float, look: Callable[[], Awaitable[None]], clock: Clock) -> None:
    complaint = ""
    while True:
        await clock.sleep(seconds)
        try:
            await look()
            complaint = ""
        except PatchbayError as error:
            if error.message != complaint:
                complaint = error.message
                _log.warning("a look failed", why=error.message)


async def _follow_values(
    path: Path, seen: tuple[str, int], controller: Controller, clock: Clock
) -> None:
    """Have the snapshot made anew when the mounted configuration is no longer the one marked *seen*."""
    while True:
        await clock.sleep(OBJECTS_EVERY)
        mark = await asyncio.to_thread(_mark, path)
        if mark != seen:
            seen = mark
            controller.resync()


def _mark(path: Path) -> tuple[str, int]:
    """Return what tells a changed file; a mounted ConfigMap is a link that is swapped."""
    try:
        return os.path.realpath(path), path.stat().st_mtime_ns
    except OSError as error:
        return str(error.errno), 0
