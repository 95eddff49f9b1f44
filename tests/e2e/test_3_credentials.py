"""A provider's key from a Secret to the provider, and its rotation; the provider runs in the cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.e2e.gateway import IMAGE, PULL, Load, answer, chat, eventually, off, post

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.gateway import Cluster

PROVIDER = f"""
apiVersion: v1
kind: Service
metadata: {{name: provider}}
spec:
  selector: {{app: provider}}
  ports: [{{port: 8000}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: provider}}
spec:
  selector: {{matchLabels: {{app: provider}}}}
  template:
    metadata: {{labels: {{app: provider}}}}
    spec:
      automountServiceAccountToken: false
      securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
        - name: provider
          image: {IMAGE}
          imagePullPolicy: {PULL}
          command: [/app/bin/python3, /program/main.py]
          ports: [{{containerPort: 8000}}]
          readinessProbe: {{httpGet: {{path: /, port: 8000}}, periodSeconds: 1}}
          securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
          volumeMounts: [{{name: program, mountPath: /program}}]
      volumes: [{{name: program, configMap: {{name: provider}}}}]
"""
CREDENTIAL = """
apiVersion: patchbay.dev/v1alpha1
kind: ProviderCredential
metadata: {name: told}
spec:
  provider: told
  plugin: openai-compatible
  baseUrl: http://provider:8000/v1
  models: [{name: told}]
  secretRef: {name: told}
"""


@pytest.fixture(scope="module", autouse=True)
def _provider(cluster: Cluster) -> Iterator[None]:
    cluster.mount("provider", "key_telling_provider.py")
    cluster.apply(PROVIDER)
    cluster.rolled_out("provider")
    yield
    cluster.kubectl("delete", "deployment,service,configmap", "provider")
    cluster.kubectl("delete", "secret", "told")


def _key(text: str) -> str:
    return text.split()[1]


def _edit(cluster: Cluster, spec: dict[str, Any]) -> None:
    patch = json.dumps({"spec": spec})
    cluster.kubectl("patch", "pcred", "told", "--type=merge", "-p", patch)


async def test_key_of_a_secret_reaches_the_provider(cluster: Cluster) -> None:
    cluster.secret("told", **{"api-key": "test-key-one"})
    cluster.apply(CREDENTIAL)
    cluster.ready("pcred/told")
    assert _key(await answer(cluster, model="told")) == "test-key-one"


async def test_rotated_key_reaches_the_provider_without_a_failure(cluster: Cluster) -> None:
    async with Load(cluster, model="told") as load:
        await load.more()
        await off(lambda: cluster.secret("told", **{"api-key": "test-key-two"}))
        await eventually(
            lambda: _key(load.answers[-1].text) == "test-key-two", "the new key at the provider"
        )
        await load.more()
    assert load.failed == []
    assert {_key(said.text) for said in load.answers} == {"test-key-one", "test-key-two"}
    keys = [_key(said.text) for said in load.answers]
    # Calls that were on their way when the new key came may end after the first with it.
    last_old = len(keys) - 1 - keys[::-1].index("test-key-one")
    assert last_old - keys.index("test-key-two") <= 2 * load.clients * 20


async def test_disabled_credential_is_not_used_and_comes_back(cluster: Cluster) -> None:
    async with httpx.AsyncClient() as client:
        await off(_edit, cluster, {"disabled": True})
        refused: list[httpx.Response] = []
        for _ in range(120):
            got = await post(cluster, client, chat("hello", "told"))
            if got.status_code != 200:
                refused.append(got)
                break
        assert refused, "it is still used"
        assert refused[0].status_code in {404, 429, 503}, refused[0].text
        assert "test-key" not in refused[0].text
    await off(_edit, cluster, {"disabled": False})
    await off(cluster.ready, "pcred/told")

    async def back() -> int:
        async with httpx.AsyncClient() as client:
            return (await post(cluster, client, chat("hello", "told"))).status_code

    for _ in range(120):
        if await back() == 200:
            break
    assert _key(await answer(cluster, model="told")) == "test-key-two"


async def test_status_tells_nothing_of_the_key(cluster: Cluster) -> None:
    told = json.dumps(cluster.document("pcred", "told"))
    assert "test-key" not in told
