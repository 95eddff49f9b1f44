"""What is wrong with a resource is said on it, with a remedy, and touches nothing else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.e2e.gateway import IMAGE, PULL, Load, eventually, off

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster

WRONG = {
    "missing Secret": (
        """
apiVersion: patchbay.dev/v1alpha1
kind: ProviderCredential
metadata: {name: wrong}
spec: {provider: nobody, plugin: claude, secretRef: {name: missing}}
""",
        "pcred",
        "ResolvedRefs",
        "kubectl create secret generic missing",
    ),
    "unknown provider": (
        """
apiVersion: patchbay.dev/v1alpha1
kind: ModelRoute
metadata: {name: wrong}
spec: {targets: [{provider: nowhere, model: nothing}]}
""",
        "mroute",
        "Ready",
        "nowhere",
    ),
    "refused configuration": (
        f"""
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {{name: wrong}}
spec:
  id: whoami-too
  image: {IMAGE}
  imagePullPolicy: {PULL}
  command: [/app/bin/python3, -c, "import runpy; m = runpy.run_path('/program/main.py');
    m['WhoAmI'].id = 'whoami-too'; m['serve'](m['WhoAmI']())"]
  config: {{refuse: true}}
  podTemplate:
    volumes: [{{name: program, configMap: {{name: whoami}}}}]
    volumeMounts: [{{name: program, mountPath: /program}}]
""",
        "plg",
        "Programmed",
        "the configuration says refuse; remove that key",
    ),
    "image that is not there": (
        """
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {name: wrong}
spec: {image: "registry.invalid/none:1"}
""",
        "plg",
        "Available",
        "kubectl",
    ),
    "image that cannot start": (
        f"""
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {{name: wrong}}
spec: {{image: "{IMAGE}", imagePullPolicy: {PULL}, command: [/no/such/program]}}
""",
        "plg",
        "Available",
        "kubectl",
    ),
    "variable from a Secret that is missing": (
        f"""
apiVersion: patchbay.dev/v1alpha1
kind: Plugin
metadata: {{name: wrong}}
spec:
  image: {IMAGE}
  imagePullPolicy: {PULL}
  env: [{{name: X, valueFrom: {{secretKeyRef: {{name: missing, key: x}}}}}}]
""",
        "plg",
        "ResolvedRefs",
        "missing",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_a_condition_with_a_remedy(cluster: Cluster, case: str) -> None:
    document, kind, type_, words = WRONG[case]
    async with Load(cluster, 2) as load, Load(cluster, 2, model="whoami") as plugin:
        await off(cluster.apply, document)

        def said() -> dict[str, str]:
            found = cluster.condition(kind, "wrong", type_)
            return found if found.get("status") == "False" and words in found["message"] else {}

        try:
            found = await eventually(said, f"{type_}=False with {words!r}", within=90)
        except AssertionError:
            raise AssertionError(cluster.kubectl("get", kind, "wrong", "-o", "yaml")) from None
        assert found["reason"]
        assert cluster.condition(kind, "wrong", "Ready")["status"] == "False"
        await off(cluster.kubectl, "delete", kind, "wrong")
        await load.more()
        await plugin.more()
    assert load.failed + plugin.failed == []
    assert cluster.condition("plugin", "whoami", "Ready")["status"] == "True"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{image: x, address: 'y:1'}", "one of the two"),
        ("{image: x, replicas: -1}", "should be greater than or equal to 0"),
        ("{image: x, imagee: y}", "unknown field"),
        ("{image: x, timeouts: {telepathy: 1s}}", "unknown capability"),
    ],
)
def test_malformed_resource_is_refused_with_a_sentence(
    cluster: Cluster, spec: str, words: str
) -> None:
    head = "apiVersion: patchbay.dev/v1alpha1\nkind: Plugin\nmetadata: {name: malformed}\n"
    with pytest.raises(AssertionError, match=words):
        cluster.apply(f"{head}spec: {spec}\n")
    with pytest.raises((AssertionError, subprocess.SubprocessError)):
        cluster.document("plugin", "malformed")
