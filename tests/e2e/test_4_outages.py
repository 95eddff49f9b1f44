"""Operator and API server away, under load: requests do not notice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.e2e.gateway import Load, answer, eventually, hook, off

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster

OPERATOR = "patchbay-operator"
TAKEOVER_SECONDS = 20.0
AWAY_SECONDS = 20.0
KEY = """
apiVersion: patchbay.dev/v1alpha1
kind: ClientKey
metadata: {{name: {name}}}
spec: {{models: [echo]}}
"""
KINDS = ("deployments", "services", "configmaps", "secrets", "serviceaccounts", "networkpolicies")


def _leader(cluster: Cluster) -> str:
    holder: str = cluster.document("lease", OPERATOR)["spec"].get("holderIdentity") or ""
    return holder


def _objects(cluster: Cluster) -> dict[str, str]:
    """Return kind/name → uid of all that belongs to plugins and keys."""
    return {
        f"{kind}/{item['metadata']['name']}": item["metadata"]["uid"]
        for kind in KINDS
        for item in cluster.items(kind)
        if any(
            owner["apiVersion"].startswith("patchbay.dev/")
            for owner in item["metadata"].get("ownerReferences") or ()
        )
    }


async def test_operator_that_is_off_is_not_noticed(cluster: Cluster) -> None:
    before = await off(_objects, cluster)
    async with Load(cluster) as load, Load(cluster, 2, model="whoami") as plugin:
        await off(cluster.kubectl, "scale", f"deployment/{OPERATOR}", "--replicas=0")
        await eventually(
            lambda: not cluster.items("pods", "-lapp.kubernetes.io/component=operator"),
            "no operator",
        )
        # Pods of plugins come and go without it, too.
        pod = cluster.items("pods", "-lpatchbay.dev/plugin=whoami")[0]["metadata"]["name"]
        await off(cluster.kubectl, "delete", "pod", pod, "--wait=false")
        await off(cluster.rolled_out, "plugin-whoami")
        await load.more(100)
        await off(cluster.kubectl, "scale", f"deployment/{OPERATOR}", "--replicas=2")
        await off(cluster.rolled_out, OPERATOR)
        await load.more(100)
    assert load.failed + plugin.failed == []
    assert await off(_objects, cluster) == before


async def test_killed_leader_is_replaced_with_nothing_lost_or_double(cluster: Cluster) -> None:
    kill = hook("PATCHBAY_E2E_KILL", "cluster-kill")
    await eventually(lambda: _leader(cluster), "a leader")
    before = await off(_objects, cluster)
    async with Load(cluster) as load:
        leader = await off(_leader, cluster)
        await off(cluster.apply, KEY.format(name="before"))
        status = (await off(cluster.document, "pod", leader))["status"]["containerStatuses"][0]
        await off(kill, status["containerID"].partition("://")[2])
        killed = time.monotonic()
        # Its pod goes, too: another replica has to take over.
        await off(
            cluster.kubectl, "delete", "pod", leader, "--force", "--grace-period=0", "--wait=false"
        )
        await off(cluster.apply, KEY.format(name="meanwhile"))
        await eventually(lambda: _leader(cluster) not in {"", leader}, "another leader", within=60)
        took = time.monotonic() - killed
        await off(cluster.ready, "clientkey/before", "clientkey/meanwhile", "plugin/whoami")
    assert load.failed == []
    assert took < TAKEOVER_SECONDS
    after = await off(_objects, cluster)
    made = {"secrets/before-client-key", "secrets/meanwhile-client-key"}
    assert {k: v for k, v in after.items() if k not in made} == before
    assert made <= after.keys()
    await off(cluster.kubectl, "delete", "clientkey", "before", "meanwhile")
    await off(cluster.rolled_out, OPERATOR)


async def test_api_server_that_is_off_is_not_noticed(cluster: Cluster) -> None:
    api_server = hook("PATCHBAY_E2E_API_SERVER", "cluster-api-server")
    async with Load(cluster) as load, Load(cluster, 2, model="whoami") as plugin:
        await load.more()
        await off(api_server, "stop")
        try:
            since = time.monotonic()
            await eventually(
                lambda: time.monotonic() - since > AWAY_SECONDS, "the outage", within=60
            )
            answered = load.answered
            await load.more(50)
        finally:
            await off(api_server, "start")
        await load.more(50)
        assert load.answered > answered
        # And what was asked for afterwards is done.
        await off(cluster.apply, KEY.format(name="afterwards"))
        await off(cluster.ready, "clientkey/afterwards")
        await off(cluster.rolled_out, OPERATOR)
    assert load.failed + plugin.failed == []
    await off(cluster.kubectl, "delete", "clientkey", "afterwards")
    assert await answer(cluster) == "hello"
