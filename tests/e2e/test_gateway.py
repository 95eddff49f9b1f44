"""Install, plugin, scale, rotation, upgrade, uninstall, in this order, on a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.timeout(600)

PLUGIN = """
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {{name: pod-echo}}
spec:
  id: echo
  image: {image}
  imagePullPolicy: {pull}
  args: [executors, --plugins, echo]
  drain: 30s
  env: [{{name: MODE, valueFrom: {{secretKeyRef: {{name: mode, key: mode}}}}}}]
"""


async def _chat(cluster: Cluster, client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(
        f"{cluster.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {cluster.key}"},
        json={"model": "echo", "messages": [{"role": "user", "content": "hello"}], **body},
        timeout=60,
    )


class Load:
    """Requests one after the other from some clients, until told to stop."""

    def __init__(self, cluster: Cluster, clients: int = 4) -> None:
        self.cluster = cluster
        self.clients = clients
        self.answered = 0
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self) -> None:
        async with httpx.AsyncClient() as client:
            while not self._stop.is_set():
                try:
                    answer = await _chat(self.cluster, client)
                    if answer.status_code == 200:
                        self.answered += 1
                    else:
                        self.failed.append(f"{answer.status_code} {answer.text[:200]}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                await asyncio.sleep(0.05)


def _ready(cluster: Cluster, name: str) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", name, "--timeout=120s", within=150)


async def _off(cluster: Cluster, *argv: str) -> str:
    return await asyncio.to_thread(lambda: cluster.kubectl(*argv, within=200))


async def test_helm_test_does_a_chat_completion(cluster: Cluster) -> None:
    assert "hello" in await asyncio.to_thread(lambda: cluster.helm("test", "patchbay", "--logs"))


async def test_plugin_takes_the_traffic_and_scales_without_a_failure(cluster: Cluster) -> None:
    cluster.kubectl("create", "secret", "generic", "mode", "--from-literal=mode=one")
    image = os.environ.get("PATCHBAY_E2E_PLUGIN_IMAGE", "patchbay/executors:0.1.0")
    document = PLUGIN.format(image=image, pull=os.environ.get("PATCHBAY_E2E_PULL", "IfNotPresent"))
    async with Load(cluster) as load:
        await asyncio.to_thread(lambda: cluster.kubectl("apply", "-f", "-", given=document))
        await asyncio.to_thread(lambda: _ready(cluster, "plugin/pod-echo"))
        for count in (5, 2):
            await _off(cluster, "scale", "plugin/pod-echo", f"--replicas={count}")
            await _off(cluster, "rollout", "status", "deployment/plugin-pod-echo", "--timeout=150s")
        before = load.answered
        await asyncio.sleep(3)
        assert load.answered > before
    assert load.failed == []


async def test_rotated_secret_rolls_the_plugin_without_a_failure(cluster: Cluster) -> None:
    path = "jsonpath={.metadata.generation}"
    before = await _off(cluster, "get", "deployment", "plugin-pod-echo", "-o", path)
    async with Load(cluster) as load:
        patch = json.dumps({"stringData": {"mode": "two"}})
        await _off(cluster, "patch", "secret", "mode", "--type=merge", "-p", patch)
        deadline = time.monotonic() + 30
        while await _off(cluster, "get", "deployment", "plugin-pod-echo", "-o", path) == before:
            assert time.monotonic() < deadline, "the Deployment is not changed"
            await asyncio.sleep(0.5)
        await _off(cluster, "rollout", "status", "deployment/plugin-pod-echo", "--timeout=150s")
    assert load.failed == []


async def test_operator_that_is_off_is_not_noticed(cluster: Cluster) -> None:
    async with Load(cluster) as load:
        await _off(cluster, "scale", "deployment/patchbay-operator", "--replicas=0")
        await asyncio.sleep(10)
    assert load.answered > 0
    assert load.failed == []
    await _off(cluster, "scale", "deployment/patchbay-operator", "--replicas=1")
    await _off(cluster, "rollout", "status", "deployment/patchbay-operator", "--timeout=120s")


async def test_upgrade_truncates_no_open_stream(cluster: Cluster) -> None:
    async def stream(client: httpx.AsyncClient) -> str:
        body = {
            "model": "echo",
            "stream": True,
            "messages": [{"role": "user", "content": " ".join(["word"] * 40)}],
        }
        headers = {"authorization": f"Bearer {cluster.key}", "x-echo-delay-ms": "500"}
        url = f"{cluster.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
            return (await answer.aread()).decode()

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=60)) as client:
        streams = [asyncio.create_task(stream(client)) for _ in range(50)]
        await asyncio.sleep(3)
        await asyncio.to_thread(lambda: cluster.install("--set", "edge.podAnnotations.roll=now"))
        answers = await asyncio.gather(*streams)
    assert [a for a in answers if not a.rstrip().endswith("data: [DONE]")] == []


async def test_malformed_and_unready_resources_say_what_to_do(cluster: Cluster) -> None:
    broken = """
apiVersion: patchbay.dev/v1alpha1
kind: ProviderCredential
metadata: {name: nobody}
spec: {provider: nobody, plugin: claude, secretRef: {name: missing}}
---
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {name: unstartable}
spec: {image: "registry.invalid/none:1"}
"""
    cluster.kubectl("apply", "-f", "-", given=broken)
    cluster.kubectl("wait", "--for=condition=Ready=False", "pcred/nobody", "--timeout=60s")
    path = 'jsonpath={.status.conditions[?(@.type=="Ready")].message}'
    assert "kubectl create secret generic missing" in cluster.kubectl(
        "get", "pcred", "nobody", "-o", path
    )
    cluster.kubectl("wait", "--for=condition=Available=False", "plg/unstartable", "--timeout=60s")
    async with httpx.AsyncClient() as client:
        assert (await _chat(cluster, client)).status_code == 200
    cluster.kubectl("delete", "pcred/nobody", "plg/unstartable")


async def test_uninstall_leaves_the_secrets_made_once_and_the_definitions(cluster: Cluster) -> None:
    cluster.kubectl("delete", "patchbay", "--all", "--timeout=60s")
    cluster.helm("uninstall", "patchbay", "--wait")
    left = cluster.kubectl("get", "deployments,services,statefulsets,roles", "-o", "name").split()
    assert left in ([], ["role.rbac.authorization.k8s.io/patchbay-credentials"])
    names = cluster.kubectl("get", "secrets", "-o", "name").split()
    kept = {n.removeprefix("secret/") for n in names if n.startswith("secret/patchbay")}
    assert {"patchbay-roots", "patchbay-client-key", "patchbay-management-key"} <= kept
    assert "plugins.patchbay.dev" in cluster.run("kubectl", "get", "crds", "-o", "name")
