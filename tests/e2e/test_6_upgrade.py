"""Every component replaced under load with streams open, and back again."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
from tests.e2e.gateway import Load, chat, eventually, off, stream

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster

COMPONENTS = ("edge", "scheduler", "executors", "usage", "operator")
MADE_ONCE = ("patchbay-roots", "patchbay-client-key", "patchbay-management-key")
STREAMS = 50


def _templates(cluster: Cluster) -> dict[str, Any]:
    """Return component → its pod template."""
    return {
        component: cluster.document("deployment", f"patchbay-{component}")["spec"]["template"]
        for component in COMPONENTS
    }


def _kept(cluster: Cluster) -> dict[str, Any]:
    return {name: cluster.document("secret", name)["data"] for name in MADE_ONCE}


def _requests(cluster: Cluster) -> int:
    """Return how many requests the ledger knows."""
    told = cluster.kubectl(
        *("exec", "deployment/patchbay-edge", "--"),
        *("/app/bin/patchbay", "usage", "report", "--by", "model", "--json"),
    )
    return sum(row["requests"] for row in json.loads(told))


async def _through(cluster: Cluster, change: Any) -> None:
    """Do *change* with streams open and load on; nothing is cut and nothing fails."""
    body = chat(" ".join(["word"] * 60))
    limits = httpx.Limits(max_connections=STREAMS + 10)
    begun: list[str] = []
    async with Load(cluster) as load, httpx.AsyncClient(limits=limits) as client:
        pending = [
            asyncio.create_task(
                stream(cluster, client, body, began=begun.append, **{"x-echo-delay-ms": "500"})
            )
            for _ in range(STREAMS)
        ]
        await eventually(lambda: len(begun) == STREAMS, f"{STREAMS} open streams")
        await off(change)
        ended = await asyncio.gather(*pending)
        await load.more()
    assert [s for s in ended if not s.whole or len(s.words) != 60] == []
    assert load.failed == []


async def test_upgrade_of_everything_truncates_no_stream_and_fails_no_request(
    cluster: Cluster,
) -> None:
    before, kept = await off(_templates, cluster), await off(_kept, cluster)
    counted = await off(_requests, cluster)
    options = [f"--set={component}.podAnnotations.roll=now" for component in COMPONENTS]
    await _through(cluster, lambda: cluster.install(*options))
    after = await off(_templates, cluster)
    assert all(after[c]["metadata"]["annotations"]["roll"] == "now" for c in COMPONENTS)
    assert all("roll" not in before[c]["metadata"]["annotations"] for c in COMPONENTS)
    assert await off(_kept, cluster) == kept
    assert await off(_requests, cluster) > counted


async def test_rollback_brings_the_earlier_revision_back_in_the_same_way(cluster: Cluster) -> None:
    kept = await off(_kept, cluster)
    counted = await off(_requests, cluster)
    history = json.loads(await off(cluster.helm, "history", "patchbay", "-o", "json"))
    earlier = str(history[-2]["revision"])
    await _through(
        cluster,
        lambda: cluster.helm(
            "rollback", "patchbay", earlier, "--wait", "--timeout", "400s", within=450
        ),
    )
    after = await off(_templates, cluster)
    assert all("roll" not in after[c]["metadata"]["annotations"] for c in COMPONENTS)
    assert await off(_kept, cluster) == kept
    # The ledger of the later revision serves the earlier one, and goes on counting.
    assert await off(_requests, cluster) > counted
    await off(cluster.ready, "plugin/whoami")
