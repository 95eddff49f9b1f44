"""Changes of the configuration reach every edge at once, and no answer under way is harmed by them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import redis
import yaml
from tests.harness.load import Load, Verdict
from tests.harness.observing import NOWHERE, until_meanwhile
from tests.harness.topology import make_config

if TYPE_CHECKING:
    from tests.harness.scaled import Replica, Scaled

CHANGES = 5
# The promise is one second; asserted of the quickest of all changes, for the machine may be busy.
PROMISE = 1.0
SLACK = 4.0


def with_models(*names: str) -> dict[str, Any]:
    """Return the configuration with more names for the model of echo."""
    config = copy.deepcopy(make_config(NOWHERE))
    config["providers"][0]["models"] += [{"name": "echo", "alias": name} for name in names]
    return config


def write(gateway: Scaled, config: dict[str, Any]) -> None:
    """Replace the file and have it looked at."""
    fresh = gateway.config_path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(config))
    fresh.replace(gateway.config_path)
    for scheduler in gateway.running("scheduler"):
        scheduler.signal(signal.SIGHUP)


def versions(gateway: Scaled, edges: list[Replica]) -> list[int]:
    """Return the version that each edge serves from."""
    return [gateway.managed(edge, "snapshot")["version"] for edge in edges]


async def test_changes_reach_every_edge_and_no_stream_is_dropped(gateway: Scaled) -> None:
    """More changes than versions are remembered, while streams run that began before the first."""
    edges = gateway.running("edge")
    assert len(edges) > 1
    headers = {**gateway.headers(), "x-echo-chunks": "10", "x-echo-delay-ms": "20"}
    long_headers = {**gateway.headers(), "x-echo-chunks": "60", "x-echo-delay-ms": "100"}
    loads = [Load(e.base_url, headers, model="echo", clients=3) for e in edges]
    # Six seconds each, longer than what follows.
    long = [Load(e.base_url, long_headers, model="echo") for e in edges]
    lags: list[float] = []
    try:
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            store = stack.enter_context(redis.Redis.from_url(gateway.redis_url))
            for load in loads:
                await stack.enter_async_context(load.running())
            opened = [
                asyncio.create_task(each.one(session, stream=True)) for each in long for _ in "123"
            ]
            await until_meanwhile(lambda: all(load.verdicts for load in loads), "the load begins")

            def published() -> int:
                return int(store.get(gateway.key("snapshot", "version")) or 0)

            for number in range(CHANGES):
                before = await asyncio.to_thread(published)
                name = f"parrot-{number}"
                write(gateway, with_models(name))
                await until_meanwhile(
                    lambda before=before: published() > before,  # type: ignore[misc]
                    "it is published",
                    every=0.01,
                )
                seen = time.monotonic()
                version = await asyncio.to_thread(published)
                await until_meanwhile(
                    lambda version=version: min(versions(gateway, edges)) >= version,  # type: ignore[misc]
                    f"every edge serves from {version}",
                    every=0.01,
                )
                lags.append(time.monotonic() - seen)
                for edge in edges:
                    one = Load(edge.base_url, gateway.headers(), model=name)
                    assert await one.one(session, stream=False) is Verdict.COMPLETE, one.lies
            assert set(await asyncio.gather(*opened)) == {Verdict.COMPLETE}
    finally:
        write(gateway, make_config(NOWHERE))
    for load in loads:
        assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.lies)
    assert min(lags) < PROMISE + SLACK, lags
