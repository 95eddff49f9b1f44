"""`patchbay keys` in a cluster: a real API server, a real operator, and an edge that a test plays."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.harness.operator_process import eventually
from tests.harness.processes import PATCHBAY
from tests.integration.operator.test_operator import Scene, scene

from patchbay_gateway.kernel.keys import client_key_digest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.apiserver import ApiServer

pytestmark = [pytest.mark.requires("kube-apiserver"), pytest.mark.timeout(180)]
__all__ = ["scene"]


class Person:
    """Somebody at a terminal."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace

    async def keys(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run the verb in the namespace; return what it prints and what it says."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PATCHBAY_")}
        process = await asyncio.create_subprocess_exec(
            *(str(PATCHBAY), "keys", *arguments, "-n", self._namespace),
            env={**environ, "KUBECONFIG": str(self._kubeconfig)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, said = await process.communicate()
        assert process.returncode == status, said.decode()
        return printed.decode(), " ".join(said.decode().split())


@pytest.fixture
def person(scene: Scene, api_server: ApiServer) -> Person:
    return Person(api_server.kubeconfig, scene.namespace)


async def test_key_is_made_listed_and_revoked(scene: Scene, person: Person) -> None:
    await eventually(scene.operator().leads, "it leads")
    async with scene.edge():
        printed, said = await person.keys("create", "laptop", "--model", "gpt-*", "--tenant", "a")
        plain = printed.strip()
        assert "The gateway accepts it." in said
        snapshot = await scene.snapshot()
        assert snapshot is not None
        (entry,) = snapshot.client_keys
        assert entry.digest == client_key_digest(bytes.fromhex("22" * 32), plain)
        assert (entry.models, entry.tenant) == (("gpt-*",), "a")
        printed, _ = await person.keys("list", "--json")
        (listed,) = json.loads(printed)
        assert listed["name"] == "laptop"
        assert listed["state"] == "ready"
        assert listed["source"] == "Secret laptop-client-key"
        assert listed["created"]
        assert plain not in printed
        assert plain not in (await person.keys("list"))[0]
        _, said = await person.keys("create", "laptop", status=1)
        assert "already; choose another name" in said
        printed, _ = await person.keys("revoke", "laptop")
        assert printed.startswith("laptop stopped working at 20")
        after = await scene.snapshot()
        assert after is not None
        assert after.client_keys == ()
        assert await scene.kube.get("ClientKey", "laptop") is None
        _, said = await person.keys("revoke", "laptop", status=1)
        assert "there is no ClientKey 'laptop'" in said


async def test_key_of_a_secret_of_ones_own_is_not_shown_and_stays(
    scene: Scene,
    person: Person,
) -> None:
    await eventually(scene.operator().leads, "it leads")
    await scene.secret("mine", token="test-client-key-of-mine")
    async with scene.edge():
        printed, said = await person.keys("create", "tablet", "--secret", "mine/token")
        assert printed == ""
        assert "tablet: Secret mine." in said
        printed, _ = await person.keys("revoke", "tablet")
        assert "The Secret mine is yours and stays." in printed
    assert await scene.kube.get("Secret", "mine") is not None


async def test_person_without_rights_is_told_which(
    scene: Scene,
    api_server: ApiServer,
    tmp_path: Path,
) -> None:
    """One who may make keys but not read Secrets gets the command for somebody who may."""
    await eventually(scene.operator().leads, "it leads")
    kube = scene.kube
    await kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ann"}})
    answer = await kube._call(
        "POST",
        kube._path("ServiceAccount", "ann") + "/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    document: dict[str, Any] = api_server.configuration(api_server.url)
    document["users"][0]["user"]["token"] = answer["status"]["token"]
    path = tmp_path / "ann"
    path.write_text(yaml.safe_dump(document))
    ann = Person(path, scene.namespace)
    _, said = await ann.keys("list", status=1)
    assert "you may not get this" in said
    assert "kubectl auth can-i get clientkeys.patchbay.dev" in said
    group = "rbac.authorization.k8s.io"
    verbs = ["get", "list", "create", "patch", "delete"]
    rule = {"apiGroups": ["patchbay.dev"], "resources": ["clientkeys"], "verbs": verbs}
    await kube.create(
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": {"name": "keys"},
            "rules": [rule],
        }
    )
    await kube.create(
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "keys"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "keys"},
            "subjects": [{"kind": "ServiceAccount", "name": "ann", "namespace": scene.namespace}],
        }
    )
    async with scene.edge():
        printed, said = await ann.keys("create", "laptop")
        assert printed == ""
        assert "kubectl get secret laptop-client-key" in said
        secret = await kube.get("Secret", "laptop-client-key")
        assert secret is not None
        assert base64.b64decode(secret["data"]["key"]).decode() not in said
        printed, _ = await ann.keys("revoke", "laptop")
        assert "stopped working at" in printed


async def test_cluster_without_an_operator_is_told(scene: Scene, person: Person) -> None:
    _, said = await person.keys("create", "laptop", "--timeout", "1", status=1)
    assert "no operator has seen it" in said
    (listed,) = json.loads((await person.keys("list", "--json"))[0])
    assert listed["state"] == "new"
    printed, _ = await person.keys("revoke", "laptop", "--timeout", "1")
    assert "No edge has confirmed" in printed
    assert await scene.kube.get("ClientKey", "laptop") is None
