"""
`patchbay up`: every service on this machine.

With one worker all of them run in this process over in-process channels. With more, a supervisor runs a
control process and data processes (workers.py). Not here: what the services do.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from patchbay_gateway import workers
from patchbay_gateway.adoption import Adoption, adopting
from patchbay_gateway.edge.callbacks.serving import edge_callbacks
from patchbay_gateway.edge.clients import LocalCalls
from patchbay_gateway.edge.main import able, running_edge, running_management
from patchbay_gateway.executors.main import BUILT_IN, running_executors
from patchbay_gateway.kernel import keys, lifecycle, logs, memory
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.kernel.telemetry import make_metrics
from patchbay_gateway.kernel.valkey import EmbeddedValkey
from patchbay_gateway.plugins.callbacks.serving import HOST_SERVICE, serving_callbacks
from patchbay_gateway.plugins.channel_keys import derived
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.scheduler.main import SERVICE as SCHEDULER
from patchbay_gateway.scheduler.main import running_scheduler
from patchbay_gateway.starting import await_redis
from patchbay_gateway.usage.main import running_usage
from patchbay_gateway.usage.service import SERVICE as USAGE

if TYPE_CHECKING:
    from patchbay_gateway.kernel.config import Config, ProcessSettings


def run(config: Config, settings: ProcessSettings) -> int:
    """Run until stopped; return the exit status."""
    logs.configure(settings.log_format, settings.log_level)
    if settings.workers > 1:
        return workers.run(settings, lambda: greet(config, settings))
    return lifecycle.run(lambda shutdown: _serve(config, settings, shutdown))


async def _serve(config: Config, settings: ProcessSettings, shutdown: lifecycle.Shutdown) -> None:
    clock = SystemClock()
    metrics = make_metrics(enabled=True)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    roots = keys.load_roots(os.environ, keys.ROOTS, settings.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        tasks = lifecycle.Tasks(shutdown)
        stack.push_async_callback(tasks.aclose)
        url = settings.redis_url
        if url is None:
            valkey = EmbeddedValkey(settings.data_dir, clock)
            url = await valkey.start()
            stack.push_async_callback(valkey.stop)
            tasks.start("valkey", valkey.keep())
        store = Store(url, installation=settings.installation, clock=clock)
        stack.push_async_callback(store.aclose)
        await await_redis(store, settings.data_dir)
        holder = SnapshotHolder()
        executors = await stack.enter_async_context(
            running_executors(settings.plugins, roots=roots.plugins)
        )
        built_in = InProcessChannel(executors.servicers)
        stack.push_async_callback(built_in.close)
        local = dict.fromkeys(BUILT_IN, built_in)
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
                shutdown=shutdown, local=local, metrics=metrics,
            )
        )  # fmt: skip
        # At once: it calls plugins already, and what they may ask for must be there.
        await stack.enter_async_context(
            serving_callbacks(
                scheduler.host, scheduler.host.scopes, settings=settings, holder=holder, port=0,
                always=False,
            )
        )  # fmt: skip
        channel = InProcessChannel(
            {SCHEDULER: scheduler, USAGE: usage, HOST_SERVICE: scheduler.host}
        )
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
                metrics=metrics,
            )
        )
        # Its own journal and outbox are held by now.
        adoption = Adoption(settings.data_dir, own=(), store=store, scheduler=calls, clock=clock)
        await stack.enter_async_context(adopting(adoption, shutdown))
        await stack.enter_async_context(
            edge_callbacks(
                edge, settings, scheduler=calls, auths=[channel], port=settings.grpc_port,
                always=False,
            )
        )  # fmt: skip
        await stack.enter_async_context(
            running_management(
                config,
                settings,
                checks=edge.checks(),
                holder=holder,
                usage=channel,
                scheduler=calls,
                plugins=edge.registry.status,
                pages=edge.pages,
                command_lines=edge.command_lines,
                roots=roots,
                clock=clock,
                shutdown=shutdown,
                metrics=metrics,
            )
        )
        memory.freeze()
        # Whoever tries at once what the greeting proposes gets an answer.
        await able(holder, edge.registry, shutdown)
        greet(config, settings)
        await shutdown.wait()
        await edge.drain()


def greet(config: Config, settings: ProcessSettings) -> None:
    """Tell a person on a terminal what to do next."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    model = next((m.alias or m.name for p in config.providers for m in p.models), "echo")
    header = "" if not config.client_keys else " \\\n  -H 'authorization: Bearer YOUR-CLIENT-KEY'"
    sys.stderr.write(
        f"Patchbay listens on {url}, management on http://{host}:{settings.management_port}\n"
        "Try:\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json'{header} \\\n"
        f"""  -d '{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}'\n"""
        "Ctrl-C drains and stops.\n"
    )
    sys.stderr.flush()
