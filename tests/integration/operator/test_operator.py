"""The operator as a process, on a real API server and a real Valkey. No controllers run: tests play them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.operator_process import OperatorProcess, eventually

from patchbay.errors import Aborted
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.keys import client_key_digest
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.plugins.distribution import SnapshotPublisher
from patchbay_gateway.plugins.instances import Heartbeat, Instance
from patchbay_operator.objects.pod import SECRETS_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess
    from tests.harness.apiserver import ApiServer

    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_operator.cluster import LightkubeApi

pytestmark = [pytest.mark.requires("kube-apiserver"), pytest.mark.timeout(180)]

API = "patchbay.dev/v1alpha1"
FULL = os.environ.get("PATCHBAY_TEST_FULL_LENGTH") == "1"
"""Whether promises of seconds are held to; a machine that runs everything at once may be slower."""


class Scene:
    """A namespace, its Redis, and operators in it."""

    def __init__(
        self, kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, directory: Path
    ) -> None:
        self.kube = kube
        self.namespace = kube._namespace
        self._api_server = api_server
        self._valkey = valkey
        self._directory = directory
        self.store = Store(
            valkey.url, installation=self.namespace, clock=SystemClock(), timeout=20.0
        )
        self.publisher = SnapshotPublisher(self.store, clock=SystemClock())
        self.operators: list[OperatorProcess] = []
        self.edge_runs = 0
        self.edge_plugins: dict[str, str] = {}

    def operator(
        self, identity: str = "operator-a", kubeconfig: Path | None = None
    ) -> OperatorProcess:
        made = OperatorProcess(
            self._directory,
            kubeconfig=kubeconfig or self._api_server.kubeconfig,
            redis_url=self._valkey.url,
            namespace=self.namespace,
            identity=identity,
        )
        self.operators.append(made)
        made.start()
        return made

    async def apply(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        document = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        return await self.kube._call(
            "PATCH",
            self.kube._path(kind, name),
            query={"fieldManager": "person", "force": "true"},
            body=document,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    async def secret(self, name: str, **values: str) -> None:
        await self.kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "data": {k: base64.b64encode(v.encode()).decode() for k, v in values.items()},
            }
        )

    async def snapshot(self) -> Snapshot | None:
        while True:
            # Published anew while it was being read.
            with contextlib.suppress(Aborted):
                return await self.publisher.read()

    async def until(self, condition: Any, what: str, *, within: float = 90.0) -> Snapshot:
        async def ask() -> Snapshot | None:
            found = await self.snapshot()
            return found if found is not None and condition(found) else None

        try:
            found = await eventually(ask, what, within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None
        assert found is not None
        return found  # type: ignore[no-any-return]

    def logs(self) -> str:
        return "\n".join(o.log()[-3000:] for o in self.operators)

    async def condition(
        self, kind: str, name: str, type_: str, status: str, reason: str | None = None
    ) -> dict[str, Any]:
        """Wait until a condition is as given and return it."""
        last: list[Any] = []

        async def ask() -> dict[str, Any] | None:
            document = await self.kube.get(kind, name)
            conditions = ((document or {}).get("status") or {}).get("conditions") or []
            last[:] = conditions
            for found in conditions:
                said = (found["type"], found["status"], reason and found["reason"])
                if said == (type_, status, reason):
                    return dict(found)
            return None

        try:
            found = await eventually(ask, f"{kind} {name}: {type_}={status} {reason}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{last}\n{self.logs()}") from None
        return dict(found)

    @contextlib.asynccontextmanager
    async def edge(self, *, follow: bool = True) -> AsyncIterator[None]:
        """Play an edge that runs whatever is published."""

        async def beat() -> None:
            while True:
                if follow:
                    self.edge_runs = int(
                        await self.store.call("GET", self.store.key("snapshot", "version")) or 0
                    )
                heart = Heartbeat(
                    self.store,
                    clock=SystemClock(),
                    describe=lambda: Instance(
                        id="edge-1",
                        kind="edge",
                        snapshot=self.edge_runs,
                        ready=True,
                        plugins=self.edge_plugins,
                    ),
                )
                await heart.beat()
                await asyncio.sleep(0.2)

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def rolled_out(self, name: str, ready: int) -> None:
        """Play the Deployment's controller."""
        await self.kube.patch_status(
            "Deployment",
            name,
            {"replicas": ready, "readyReplicas": ready, "availableReplicas": ready},
        )

    async def aclose(self) -> None:
        for made in self.operators:
            made.kill()
        await self.store.aclose()


@pytest.fixture
async def scene(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, tmp_path: Path
) -> AsyncIterator[Scene]:
    made = Scene(kube, api_server, valkey, tmp_path)
    yield made
    await made.aclose()


def _plugins(snapshot: Snapshot) -> dict[str, Any]:
    return {p.id: p for p in snapshot.plugins if not p.builtin}


async def test_plugin_becomes_objects_and_part_of_the_snapshot_and_ready(scene: Scene) -> None:
    scene.operator()
    async with scene.edge():
        await scene.apply("Plugin", "filter", {"image": "example/filter:1", "replicas": 2})
        snapshot = await scene.until(lambda s: "filter" in _plugins(s), "the plugin is published")
        (address,) = _plugins(snapshot)["filter"].addresses
        assert address.address == f"plugin-filter.{scene.namespace}.svc.cluster.local.:7003"

        async def deployed() -> dict[str, Any] | None:
            return await scene.kube.get("Deployment", "plugin-filter")

        deployment = await eventually(deployed, "the Deployment is made")
        assert deployment["spec"]["replicas"] == 2
        await scene.condition("Plugin", "filter", "Available", "False", "RollingOut")
        await scene.condition("Plugin", "filter", "Programmed", "True")
        await scene.rolled_out("plugin-filter", 2)
        ready = await scene.condition("Plugin", "filter", "Ready", "True")
        assert ready["observedGeneration"] == 1
        document = await scene.kube.get("Plugin", "filter")
        assert document is not None
        assert document["status"]["replicas"] == 2
        assert "patchbay.dev/plugin=filter" in document["status"]["selector"]
        assert "finalizers" not in document["metadata"]
        assert not document["metadata"].get("annotations")
        for kind in (
            "Service",
            "ServiceAccount",
            "ConfigMap",
            "PodDisruptionBudget",
            "NetworkPolicy",
        ):
            assert await scene.kube.get(kind, "plugin-filter"), kind
        events = await scene.kube.list("Event")
        assert "Ready" in {e["reason"] for e in events if e["involvedObject"]["name"] == "filter"}


async def test_plugin_that_the_gateway_refuses_says_why(scene: Scene) -> None:
    scene.edge_plugins = {"far": "it refuses its configuration: level is missing"}
    scene.operator()
    async with scene.edge():
        await scene.apply("Plugin", "far", {"address": "far.example:7003"})
        found = await scene.condition("Plugin", "far", "Ready", "False", "NotRegistered")
        assert "level is missing" in found["message"]


async def test_object_that_the_api_server_refuses_is_told_and_a_correction_ends_it(
    scene: Scene,
) -> None:
    """The definition cannot know every rule for a pod; a value of a label has 63 characters."""
    scene.operator()
    labels = {"team": "x" * 70}
    await scene.apply(
        "Plugin", "filter", {"image": "example/filter:1", "podTemplate": {"labels": labels}}
    )
    told = await scene.condition("Plugin", "filter", "Available", "False", "ObjectRefused")
    assert "Deployment" in told["message"]
    assert "must be no more than 63" in told["message"]
    await scene.apply("Plugin", "filter", {"image": "example/filter:1"})
    await scene.condition("Plugin", "filter", "Available", "False", "RollingOut")


async def test_scaling_the_plugin_scales_its_deployment(scene: Scene) -> None:
    scene.operator()
    await scene.apply("Plugin", "filter", {"image": "example/filter:1"})

    async def replicas(count: int) -> bool:
        found = await scene.kube.get("Deployment", "plugin-filter")
        return found is not None and found["spec"]["replicas"] == count

    await eventually(lambda: replicas(1), "one pod is wanted")
    await scene.kube._call(
        "PATCH",
        scene.kube._path("Plugin", "filter") + "/scale",
        body={"spec": {"replicas": 5}},
        headers={"content-type": "application/merge-patch+json"},
    )
    await eventually(lambda: replicas(5), "five pods are wanted")


async def test_autoscaler_comes_and_goes_with_the_wish(scene: Scene) -> None:
    scene.operator()
    spec: dict[str, Any] = {"image": "a", "resources": {"requests": {"cpu": "100m"}}}
    await scene.apply("Plugin", "filter", {**spec, "autoscaling": {"maxReplicas": 4}})

    async def autoscaler() -> dict[str, Any] | None:
        return await scene.kube.get("HorizontalPodAutoscaler", "plugin-filter")

    assert (await eventually(autoscaler, "it is made"))["spec"]["maxReplicas"] == 4
    await scene.apply("Plugin", "filter", spec)

    async def gone() -> bool:
        return await autoscaler() is None

    await eventually(gone, "it is deleted")


async def test_deployment_that_somebody_changed_is_put_right(scene: Scene) -> None:
    scene.operator()
    await scene.apply("Plugin", "filter", {"image": "example/filter:1"})

    async def image() -> str:
        found = await scene.kube.get("Deployment", "plugin-filter")
        return found["spec"]["template"]["spec"]["containers"][0]["image"] if found else ""

    await eventually(image, "the Deployment is made")
    document = await scene.kube.get("Deployment", "plugin-filter")
    assert document is not None
    document["spec"]["template"]["spec"]["containers"][0]["image"] = "mine:2"
    await scene.kube.replace(document)

    async def restored() -> bool:
        return await image() == "example/filter:1"

    await eventually(restored, "the image is the Plugin's again")


async def test_rotated_secret_rolls_the_pods_that_read_it(scene: Scene) -> None:
    scene.operator()
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "filter", "key": "token"}}}]
    await scene.apply("Plugin", "filter", {"image": "a", "env": env})
    missing = await scene.condition("Plugin", "filter", "ResolvedRefs", "False", "SecretNotFound")
    assert "Secret filter" in missing["message"]
    await scene.secret("filter", token="test-key-1")
    await scene.condition("Plugin", "filter", "ResolvedRefs", "True")

    async def annotation() -> str:
        found = await scene.kube.get("Deployment", "plugin-filter")
        assert found is not None
        return str(found["spec"]["template"]["metadata"]["annotations"][SECRETS_ANNOTATION])

    before = await annotation()
    await scene.secret("filter", token="test-key-2")

    async def changed() -> bool:
        return await annotation() != before

    await eventually(changed, "the pods roll")


async def test_credential_follows_its_secret_and_is_never_shown(scene: Scene) -> None:
    scene.operator()
    spec = {
        "provider": "openai",
        "plugin": "openai-compatible",
        "baseUrl": "https://api.example/v1",
        "models": [{"name": "gpt"}],
        "secretRef": {"name": "openai"},
    }
    async with scene.edge():
        await scene.apply("ProviderCredential", "main", spec)
        told = await scene.condition(
            "ProviderCredential", "main", "Ready", "False", "SecretNotFound"
        )
        assert "kubectl create secret generic openai" in told["message"]
        await scene.secret("openai", **{"api-key": "test-key-secret-one"})
        await scene.condition("ProviderCredential", "main", "Ready", "True")
        first = await scene.snapshot()
        assert first is not None
        (entry,) = first.provider_by_name["openai"].credentials
        assert (entry.disabled, entry.secrets) == (False, {"api_key": "openai/api-key"})
        await scene.secret("openai", **{"api-key": "test-key-secret-two"})
        await scene.until(
            lambda s: s.provider_by_name["openai"].credentials[0].version > entry.version,
            "the credential's version grows",
        )
    role = await scene.kube.get("Role", "patchbay-credentials")
    assert role is not None
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["openai"],
            "verbs": ["get"],
        },
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["main-state"],
            "verbs": ["get", "update"],
        },
    ]
    assert await scene.kube.get("Secret", "main-state")
    await scene.kube.delete("ProviderCredential", "main")

    async def no_rights() -> bool:
        role = await scene.kube.get("Role", "patchbay-credentials")
        return role is not None and not role.get("rules")

    await eventually(no_rights, "the rights go with the last credential")
    for key in await scene.store.call("KEYS", scene.store.key("snapshot", "section", "*")):
        assert b"test-key-secret" not in await scene.store.call("GET", key)
    assert "test-key-secret" not in scene.logs()


async def test_client_key_is_made_once_and_opens(scene: Scene) -> None:
    scene.operator()
    await scene.apply("ClientKey", "laptop", {"models": ["echo"]})
    snapshot = await scene.until(lambda s: s.client_keys, "the key is published")
    secret = await scene.kube.get("Secret", "laptop-client-key")
    assert secret is not None
    plain = base64.b64decode(secret["data"]["key"]).decode()
    assert snapshot.client_keys[0].digest == client_key_digest(bytes.fromhex("22" * 32), plain)
    document = await scene.kube.get("ClientKey", "laptop")
    assert document is not None
    assert plain not in str(document)
    await scene.kube.delete("ClientKey", "laptop")
    await scene.until(lambda s: not s.client_keys, "the key is revoked")


async def test_deleted_resources_leave_the_snapshot(scene: Scene) -> None:
    scene.operator()
    await scene.apply("Plugin", "far", {"address": "far.example:7003"})
    await scene.apply("ModelRoute", "big", {"targets": [{"provider": "echo", "model": "echo"}]})
    await scene.until(lambda s: s.routes and _plugins(s), "both are published")
    await scene.kube.delete("Plugin", "far")
    await scene.kube.delete("ModelRoute", "big")
    await scene.until(lambda s: not s.routes and not _plugins(s), "both are gone")


async def test_snapshot_that_redis_lost_is_put_back(scene: Scene) -> None:
    scene.operator()
    await scene.apply("Plugin", "far", {"address": "far.example:7003"})
    before = await scene.until(_plugins, "it is published")
    for key in await scene.store.call("KEYS", scene.store.key("snapshot*")):
        await scene.store.call("DEL", key)
    after = await scene.until(_plugins, "it is published again")
    assert after.version >= before.version


@pytest.mark.parametrize(
    ("service", "component"),
    [
        ("plugin-filter", "plugin"),
        ("patchbay-executors", "executors"),
        ("patchbay-scheduler", "scheduler"),
    ],
)
async def test_ready_addresses_are_told_to_the_gateway(
    scene: Scene, service: str, component: str
) -> None:
    scene.operator()
    await scene.apply("Plugin", "filter", {"image": "a"})
    labels = {
        "kubernetes.io/service-name": service,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": "patchbay",
    }
    endpoints = [
        {"addresses": ["10.1.0.1"], "conditions": {"ready": True}},
        {"addresses": ["10.1.0.2"], "conditions": {"ready": False}},
    ]
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-x", "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "grpc", "port": 7003}],
    }
    await scene.kube.create(slice_)
    host = f"{service}.{scene.namespace}.svc.cluster.local."

    async def told() -> Any:
        return await scene.store.call("HGET", scene.store.key("endpoints"), host)

    assert await eventually(told, "the address is told") == b'["10.1.0.1"]'


async def test_follower_takes_over_from_a_killed_leader_within_twenty_seconds(scene: Scene) -> None:
    first = scene.operator("operator-a")
    await eventually(first.leads, "the first leads")
    second = scene.operator("operator-b")
    await scene.apply("Plugin", "far", {"address": "far.example:7003"})
    await scene.until(_plugins, "it is published")

    async def ready() -> bool:
        answer = await second.get("/readyz")
        return answer is not None and answer.status_code == 200

    await eventually(ready, "the second is ready, too")
    assert not await second.leads()
    first.kill()
    await eventually(second.leads, "the second leads", within=20 if FULL else 90)
    await scene.apply("Plugin", "near", {"address": "near.example:7003"})
    await scene.until(lambda s: len(_plugins(s)) == 2, "the second publishes")


async def test_leader_that_is_told_to_end_lets_the_other_lead_at_once(scene: Scene) -> None:
    first = scene.operator("operator-a")
    await eventually(first.leads, "the first leads")
    second = scene.operator("operator-b")
    await eventually(lambda: second.get("/livez"), "the second runs")
    assert first.stop() == 0, first.log()[-3000:]
    await eventually(second.leads, "the second leads", within=8 if FULL else 90)
