"""`patchbay doctor` against a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from patchbay_gateway.doctor import Subject, examine
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import ProcessSettings
from patchbay_gateway.kernel.redis import Store

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.checks import Check


def examine_with(tmp_path: Path, url: str) -> dict[str, Check]:
    flags = {"port": 0, "management_port": 0, "data_dir": tmp_path, "redis_url": url}
    settings = ProcessSettings.load("up", {}, flags)
    return {c.name: c for c in examine(Subject(settings, {}, "http://127.0.0.1:9"))}


def test_sound_server_is_fine_and_its_clock_is_ours(tmp_path: Path, own_valkey: Any):
    checks = examine_with(tmp_path, own_valkey.url)

    assert checks["redis"].status == "ok"
    assert checks["clock"].status == "ok"


async def test_server_that_evicts_is_a_failure_with_the_remedy(tmp_path: Path, own_valkey: Any):
    store = Store(own_valkey.url, installation="t", clock=SystemClock(), timeout=20.0)
    await store.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await store.aclose()

    check = (await asyncio.to_thread(examine_with, tmp_path, own_valkey.url))["redis"]

    assert check.status == "fail"
    assert "noeviction" in check.detail
