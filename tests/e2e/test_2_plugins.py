"""A Plugin from `kubectl apply` to an autoscaler: which pod answers, under load, without a failure."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
from tests.e2e.gateway import IMAGE, PULL, Load, answer, chat, eventually, hook, off, stream

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster

PLUGIN = f"""
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {{name: whoami}}
spec:
  image: {IMAGE}
  imagePullPolicy: {PULL}
  command: [/app/bin/python3, /program/main.py]
  drain: 60s
  resources: {{requests: {{cpu: 20m, memory: 64Mi}}}}
  env: [{{name: MODE, valueFrom: {{secretKeyRef: {{name: mode, key: mode}}}}}}]
  podTemplate:
    volumes: [{{name: program, configMap: {{name: whoami}}}}]
    volumeMounts: [{{name: program, mountPath: /program}}]
---
apiVersion: patchbay.dev/v1alpha1
kind: ProviderCredential
metadata: {{name: whoami}}
spec: {{provider: whoami, plugin: whoami, models: [{{name: whoami}}]}}
"""
PODS = "-lpatchbay.dev/plugin=whoami"
SECONDS_TO_TAKE_LOAD = 5.0


def _ready_since(cluster: Cluster) -> dict[str, float]:
    """Return pod → when it became ready, unix seconds, truncated; pods that go are left out."""
    found = {}
    for pod in cluster.items("pods", PODS):
        conditions = (pod.get("status") or {}).get("conditions") or ()
        ready = [c for c in conditions if c["type"] == "Ready" and c["status"] == "True"]
        if ready and not pod["metadata"].get("deletionTimestamp"):
            at = dt.datetime.fromisoformat(ready[0]["lastTransitionTime"])
            found[pod["metadata"]["name"]] = at.timestamp()
    return found


def _calls(load: Load) -> list[tuple[str, float]]:
    """Return (pod, when the call reached it) of each answer."""
    pairs = [said.text.split()[0].split("@") for said in load.answers]
    return [(pod, float(at)) for pod, at in pairs]


def _first_calls(load: Load) -> dict[str, float]:
    first: dict[str, float] = {}
    for pod, at in _calls(load):
        first[pod] = min(at, first.get(pod, at))
    return first


async def _scale(cluster: Cluster, count: int) -> None:
    await off(cluster.kubectl, "scale", "plugin/whoami", f"--replicas={count}")
    await eventually(
        lambda: cluster.document("deployment", "plugin-whoami")["spec"]["replicas"] == count,
        f"{count} replicas wanted",
    )
    await off(cluster.rolled_out, "plugin-whoami")


async def _scale_up(cluster: Cluster, load: Load, count: int) -> None:
    """Scale to *count* pods and wait until all have answered; new ones did soon after they were ready."""
    old = set(_ready_since(cluster))
    await _scale(cluster, count)
    ready = await eventually(
        lambda: found if len(found := _ready_since(cluster)) == count else None, f"{count} pods"
    )
    await eventually(lambda: ready.keys() <= _first_calls(load).keys(), "calls at each pod")
    first = _first_calls(load)
    waited = {pod: first[pod] - since for pod, since in ready.items() if pod not in old}
    # The API server's times are whole seconds, rounded down.
    assert max(waited.values()) < SECONDS_TO_TAKE_LOAD + 1, waited


async def test_applied_plugin_answers_from_its_pod(cluster: Cluster) -> None:
    cluster.secret("mode", mode="one")
    cluster.mount("whoami", "whoami_plugin.py")
    async with Load(cluster) as load:
        await off(cluster.apply, PLUGIN)
        await off(cluster.ready, "plugin/whoami", "pcred/whoami")
        pod = (await answer(cluster, model="whoami")).split("@")[0]
    assert load.failed == []
    assert [pod] == list(_ready_since(cluster))
    assert pod.startswith("plugin-whoami-")
    assert cluster.document("plugin", "whoami")["status"]["readyReplicas"] == 1


async def test_scaled_plugin_takes_load_and_gives_it_up_without_a_failure(
    cluster: Cluster,
) -> None:
    """1, 5, 2: new pods take load within seconds; those that go finish their streams."""
    limits = httpx.Limits(max_connections=40)
    async with Load(cluster, 6, model="whoami") as load, httpx.AsyncClient(limits=limits) as client:
        await load.more()
        await _scale_up(cluster, load, 5)
        before = set(_ready_since(cluster))
        body = chat(json.dumps({"words": 60, "delay": 0.5}), "whoami")
        begun: list[str] = []
        streams = [
            asyncio.create_task(stream(cluster, client, body, began=begun.append))
            for _ in range(20)
        ]
        await eventually(lambda: len(begun) == 20, "twenty open streams")
        scaled = time.time()
        await _scale(cluster, 2)
        ended = await asyncio.gather(*streams)
        await load.more()
        await eventually(lambda: len(cluster.items("pods", PODS)) == 2, "two pods")
    stayed = set(_ready_since(cluster))
    gone = before - stayed
    assert len(gone) == 3
    assert {word.split("@")[0] for word in begun} & gone, "no stream was on a pod that went"
    assert [s for s in ended if not s.whole or len(s.words) != 60] == []
    assert load.failed == []
    # The notice of a pod's end is the kubelet's signal, which a busy node gives late.
    late = [(pod, at - scaled) for pod, at in _calls(load) if pod in gone and at > scaled + 10]
    assert late == []


async def test_rotated_secret_rolls_the_plugin_without_a_failure(cluster: Cluster) -> None:
    before = set(_ready_since(cluster))
    async with Load(cluster, model="whoami") as load:
        await off(lambda: cluster.secret("mode", mode="two"))

        def rolled() -> bool:
            return len(now := set(_ready_since(cluster))) == 2 and not now & before

        await eventually(rolled, "two new pods")
        await load.more()
    assert load.failed == []


async def test_autoscaler_scales_the_plugin_up_without_a_failure(cluster: Cluster) -> None:
    await _scale(cluster, 1)
    wish = {"minReplicas": 1, "maxReplicas": 3, "targetCPUUtilization": 50}
    await off(_patch, cluster, {"autoscaling": wish})
    async with Load(cluster, 8, model="whoami", pause=0.01) as load:
        await eventually(
            lambda: cluster.document("plugin", "whoami")["spec"]["replicas"] > 1,
            "the autoscaler scales the Plugin",
            within=300,
        )
        await eventually(
            lambda: len(_ready_since(cluster).keys() & _first_calls(load).keys()) > 1,
            "calls at the new pod",
            within=180,
        )
    assert load.failed == []
    await off(_patch, cluster, {"autoscaling": None})
    await eventually(
        lambda: "plugin-whoami" not in cluster.kubectl("get", "hpa", "-o", "name"),
        "the autoscaler is gone",
    )
    await _scale(cluster, 2)


async def test_new_pod_takes_load_where_dns_caches_half_a_minute(cluster: Cluster) -> None:
    dns = hook("PATCHBAY_E2E_DNS", "cluster-dns")
    dns("slow")
    try:
        async with Load(cluster, 6, model="whoami") as load:
            await load.more()
            await _scale_up(cluster, load, 4)
            await _scale(cluster, 2)
            await load.more()
        assert load.failed == []
    finally:
        dns("restore")


def _patch(cluster: Cluster, spec: dict[str, Any]) -> None:
    patch = json.dumps({"spec": spec})
    cluster.kubectl("patch", "plugin", "whoami", "--type=merge", "-p", patch)
