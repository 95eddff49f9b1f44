"""A scheduler that only follows what others publish, and its auth files."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.config import Config
from patchbay_gateway.kernel.keys import Roots
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import OAuth2Entry
from patchbay_gateway.scheduler.watching import Configuration, Source

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.scheduler.seeds import Seeds

OAUTH2 = OAuth2Entry("", "", plugin="oauth2")


async def test_follower_sows_files_that_the_snapshot_says_are_read_here(tmp_path: Path) -> None:
    """What plugins made of a file is the publisher's to sow; a second reading of it would take its place."""
    for name in ("plain", "read"):
        document = {"type": "fake", "access_token": f"test-{name}"}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    config = Config.model_validate(
        {"auth_dir": str(tmp_path), "providers": [{"name": "fake", "plugin": "echo"}]}
    )
    sown: asyncio.Queue[Seeds] = asyncio.Queue()
    holder = SnapshotHolder()
    following = Configuration(
        Source(lambda: config, None, {}, Roots((b"s" * 32,), (), (b"c" * 32,)), lambda _: False),
        credentials=cast("Any", SimpleNamespace(replace=lambda _: None)),
        sow=sown.put,
        holder=holder,
        publisher=None,
        store=cast("Any", None),
        clock=ManualClock(),
    )
    await following.start(config)
    assert sown.get_nowait().of == {}

    plain = make_credential("plain", kind="oauth2", oauth2=OAUTH2)
    read = make_credential(
        "read", kind="oauth2", oauth2=OAUTH2, brought_by="reader", file="read.json"
    )
    holder.set(make_snapshot(make_provider("fake", plain, read)))
    running = asyncio.create_task(following.run())
    following.glance()
    async with asyncio.timeout(60):
        seeds = await sown.get()
    assert set(seeds.of) == {"plain"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
