"""The configuration file, followed by one scheduler and by two, over a real Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.integration.scheduler.conftest import FILE, acquire, eventually

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.config import load
from patchbay_gateway.plugins.distribution import (
    SnapshotHolder,
    SnapshotPublisher,
    SnapshotWatcher,
)
from patchbay_gateway.plugins.snapshot import PriceEntry, ProviderEntry, Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.scheduler.conftest import Gateway


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "patchbay.yaml"
    path.write_text(FILE)
    return path


def running(gateway: Gateway, name: str, file: Path):
    """Run a scheduler that follows *file*."""
    return gateway.scheduler(
        name,
        load(file, {}),
        settings={"config_path": file},
        reload=lambda: load(file, {}),
    )


def rewrite(file: Path, text: str) -> None:
    """Change the file, whole as editors do, and tell."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)
    os.kill(os.getpid(), signal.SIGHUP)


def models(holder: SnapshotHolder) -> set[str]:
    assert holder.current is not None
    return set(holder.current.targets)


async def test_changed_file_reaches_both_schedulers_as_one_version(gateway: Gateway, file: Path):
    async with (
        running(gateway, "a", file) as (first, one),
        running(gateway, "b", file) as (_, two),
    ):
        assert one.current is not None
        assert two.current is not None
        before = one.current.version
        assert two.current.version == before
        replacement = file.with_suffix(".new")
        replacement.write_text(FILE.replace("[m]", "[m, n]"))
        replacement.replace(file)

        async def changed() -> bool:
            return all("n" in models(h) for h in (one, two))

        await eventually(changed)
        assert one.current.version == two.current.version > before
        # Requests that began before keep what they began with.
        response = await first.Acquire(acquire(before, "R-1"))
        assert response.results[0].HasField("lease")


async def test_broken_file_keeps_what_is_served_and_says_so(gateway: Gateway, file: Path):
    async with running(gateway, "a", file) as (scheduler, holder):
        before = holder.current
        rewrite(file, "providers: [{nonsense: 1}]")

        async def noticed() -> bool:
            return bool(scheduler.problems())

        await eventually(noticed)
        assert holder.current is before
        rewrite(file, FILE.replace("[m]", "[k]"))

        async def healed() -> bool:
            return not scheduler.problems() and models(holder) == {"k"}

        await eventually(healed)


async def test_rotated_key_file_changes_version_and_secret(gateway: Gateway, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("test-key-before")
    file = tmp_path / "patchbay.yaml"
    file.write_text(FILE.replace("api_key: test-key-one", f"api_key_file: {key}"))
    async with running(gateway, "a", file) as (scheduler, holder):

        async def sealed() -> tuple[int, int]:
            assert holder.current is not None
            request = acquire(holder.current.version, "R-1")
            request.items[0].pinned_credential_id = "one"
            request.items[0].attempt.attempt_uid = os.urandom(4).hex()
            (result,) = (await scheduler.Acquire(request)).results
            return holder.current.version, result.lease.secret.version

        snapshot, version = await sealed()
        draft = tmp_path / "draft"
        draft.write_text("test-key-after!")
        draft.replace(key)

        async def rotated() -> bool:
            now = await sealed()
            return now[0] > snapshot and now[1] > version

        await eventually(rotated)


async def test_models_without_usable_credential_are_not_listed(gateway: Gateway):
    config = FILE.replace("{id: one,", "{id: one, disabled: true,")
    config = config.replace("{id: two,", "{id: two, disabled: true,")
    config = config.replace("api_key: test-key-three", "api_key_env: NOWHERE")
    async with gateway.scheduler(config=config) as (scheduler, holder):
        listed = await scheduler.ListModels(scheduler_pb2.ListModelsRequest())
        assert list(listed.models) == []
        assert holder.current is not None
        response = await scheduler.Acquire(acquire(holder.current.version, "R-1"))
        assert response.results[0].refusal.reason == "CREDENTIAL_MATERIAL_MISSING"


PRICE = PriceEntry("*", "*", {"output_tokens": 1})


def draft(name: str) -> Snapshot:
    return Snapshot(version=0, providers=(ProviderEntry(name, "p"),))


async def test_equal_snapshot_is_not_published_again(gateway: Gateway):
    publisher = SnapshotPublisher(gateway.store(), clock=SystemClock())
    first = await publisher.publish(draft("a"))
    assert (await publisher.publish(draft("a"))).version == first.version
    second = await publisher.publish(draft("b"))
    assert second.version > first.version
    store = gateway.store()
    sections = await store.call("KEYS", store.key("snapshot", "section", "*"))
    assert (
        len(sections) == 3
    )  # those of b alone: providers, settings, and all the empty lists as one


async def test_publishers_at_the_same_time_all_end_with_growing_versions(gateway: Gateway):
    publishers = [SnapshotPublisher(gateway.store(), clock=SystemClock()) for _ in range(4)]
    published = await asyncio.gather(*[p.publish(draft(str(i))) for i, p in enumerate(publishers)])
    assert len({s.version for s in published}) == 4


async def test_watcher_fetches_changed_sections_only(gateway: Gateway):
    store = gateway.store()
    publisher = SnapshotPublisher(store, clock=SystemClock())
    holder = SnapshotHolder()
    watcher = SnapshotWatcher(gateway.store(), holder, None, SystemClock())
    task = asyncio.create_task(watcher.run())
    try:
        await publisher.publish(draft("a"))
        assert (await holder.first()).providers[0].name == "a"
        second = await publisher.publish(draft("b"))

        async def followed() -> bool:
            return holder.current is not None and holder.current.version == second.version

        await eventually(followed)
        assert holder.current is not None
        assert holder.current.providers[0].name == "b"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_scheduler_asked_for_a_version_of_just_now_fetches_it(gateway: Gateway):
    async with gateway.scheduler() as (scheduler, holder):
        assert holder.current is not None
        publisher = SnapshotPublisher(gateway.store(), clock=SystemClock())
        newer = await publisher.publish(msgspec.structs.replace(holder.current, prices=(PRICE,)))
        response = await scheduler.Acquire(acquire(newer.version, "R-1"))
        assert response.results[0].HasField("lease")
