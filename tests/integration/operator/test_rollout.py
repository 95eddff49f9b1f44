"""
Rollouts by real controllers on a node that only seems to be: what becomes of a Plugin, from first to last.

One control plane for all tests, a namespace for each.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.apiserver_fixtures import install_definitions, make_namespace, open_client
from tests.harness.operator_process import eventually
from tests.integration.operator.test_operator import Scene
from tests.requirements import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess
    from tests.harness.control_plane import ControlPlane

    from patchbay_operator.cluster import LightkubeApi

pytestmark = [pytest.mark.requires("kwok"), pytest.mark.timeout(600)]

IMAGE = {"image": "registry.example/filter:1"}
CHILDREN = (
    "Deployment",
    "Pod",
    "Service",
    "EndpointSlice",
    "ServiceAccount",
    "ConfigMap",
    "Secret",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
)
# Controllers share two cores with everybody else.
PATIENCE = 120.0


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One with our CRDs and a node."""
    need("kwok")
    from tests.harness.control_plane import running_control_plane  # noqa: PLC0415 - few machines can

    async def prepare(plane: ControlPlane) -> None:
        await install_definitions(plane)
        plane.start_controllers()
        api = open_client(plane, "default")
        try:
            await plane.node_is_ready(api)
        finally:
            await api.aclose()

    with running_control_plane(tmp_path_factory.mktemp("plane")) as plane:
        asyncio.run(prepare(plane))
        yield plane


@pytest.fixture
async def scene(
    control_plane: ControlPlane, valkey: ValkeyProcess, tmp_path: Path
) -> AsyncIterator[Scene]:
    """A namespace of it with an operator."""
    namespace = f"t-{secrets.token_hex(5)}"
    api = open_client(control_plane, namespace)
    await make_namespace(api, namespace)
    made = Scene(api, control_plane, valkey, tmp_path)
    made.operator()
    yield made
    await made.aclose()
    await api.aclose()


async def _pods(kube: LightkubeApi) -> set[str]:
    """Return the names of pods that are ready and stay."""
    return {
        pod["metadata"]["name"]
        for pod in await kube.list("Pod", labels="patchbay.dev/plugin=filter")
        if not pod["metadata"].get("deletionTimestamp")
        and any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in pod["status"].get("conditions", ())
        )
    }


async def _until_pods(scene: Scene, count: int) -> set[str]:
    async def look() -> set[str] | None:
        found = await _pods(scene.kube)
        return found if len(found) == count else None

    found: set[str] = await eventually(look, f"{count} pods are ready", within=PATIENCE)
    return found


async def _told(scene: Scene) -> int:
    """Return how many addresses the gateway was told."""
    host = f"plugin-filter.{scene.namespace}.svc.cluster.local."
    found = await scene.store.call("HGET", scene.store.key("endpoints"), host)
    return found.count(b"10.") if found else 0


async def _status_says(scene: Scene, replicas: int) -> None:
    async def look() -> bool:
        document = await scene.kube.get("Plugin", "filter")
        status = (document or {}).get("status") or {}
        return (status.get("replicas"), status.get("readyReplicas")) == (replicas, replicas)

    await eventually(look, f"the status says {replicas}", within=PATIENCE)


async def _scale(scene: Scene, replicas: int) -> None:
    await scene.kube._call(
        "PATCH",
        scene.kube._path("Plugin", "filter") + "/scale",
        body={"spec": {"replicas": replicas}},
        headers={"content-type": "application/merge-patch+json"},
    )


async def test_plugin_is_rolled_out_and_scaled_by_its_resource(scene: Scene) -> None:
    async with scene.edge():
        await scene.apply("Plugin", "filter", IMAGE)
        await _until_pods(scene, 1)
        ready = await scene.condition("Plugin", "filter", "Ready", "True", "Ready")
        assert ready["observedGeneration"] == 1
        for replicas in (4, 2):
            await _scale(scene, replicas)
            await _until_pods(scene, replicas)
            await _status_says(scene, replicas)

            async def told(wanted: int = replicas) -> bool:
                return await _told(scene) == wanted

            await eventually(told, f"{replicas} addresses are told", within=PATIENCE)


async def test_autoscaler_scales_the_plugin_and_the_operator_follows(scene: Scene) -> None:
    """There are no metrics, so it is its lower bound that has it act."""
    resources = {"requests": {"cpu": "100m"}}
    wish = {"minReplicas": 3, "maxReplicas": 5}
    await scene.apply("Plugin", "filter", {**IMAGE, "resources": resources, "autoscaling": wish})
    await _until_pods(scene, 3)
    document = await scene.kube.get("Plugin", "filter")
    assert document is not None
    assert document["spec"]["replicas"] == 3
    await _status_says(scene, 3)

    async def bound() -> dict[str, Any] | None:
        found = await scene.kube.get("HorizontalPodAutoscaler", "plugin-filter")
        status = (found or {}).get("status") or {}
        states = {c["type"]: c["status"] for c in status.get("conditions") or ()}
        counted = status.get("currentReplicas") == status.get("desiredReplicas") == 3
        return found if counted and states.get("AbleToScale") == "True" else None

    found = await eventually(bound, "the autoscaler is content", within=PATIENCE)
    assert found["spec"]["scaleTargetRef"]["kind"] == "Plugin"


async def test_rotated_secret_replaces_the_pods(scene: Scene) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "token"}}}]
    await scene.secret("mine", token="test-key-1")
    await scene.apply("Plugin", "filter", {**IMAGE, "replicas": 2, "env": env})
    before = await _until_pods(scene, 2)
    await scene.secret("mine", token="test-key-2")

    async def replaced() -> bool:
        now = await _pods(scene.kube)
        return len(now) == 2 and not now & before

    await eventually(replaced, "other pods are ready", within=PATIENCE)


async def test_deleted_resources_leave_nothing(scene: Scene) -> None:
    kube = scene.kube
    before = {kind: {d["metadata"]["name"] for d in await kube.list(kind)} for kind in CHILDREN}
    resources = {"requests": {"cpu": "100m"}}
    wish = {"minReplicas": 2, "maxReplicas": 5}
    await scene.apply("Plugin", "filter", {**IMAGE, "resources": resources, "autoscaling": wish})
    await scene.apply("ClientKey", "laptop", {})
    await scene.secret("seed", **{"api-key": "test-key"})
    spec = {"provider": "echo2", "plugin": "echo", "secretRef": {"name": "seed"}}
    await scene.apply("ProviderCredential", "main", spec)
    await _until_pods(scene, 2)

    async def has(kind: str, name: str) -> object:
        return await kube.get(kind, name)

    expected = [("Secret", "laptop-client-key"), ("Secret", "main-state")]
    expected += [
        (k, "plugin-filter") for k in CHILDREN if k not in {"Pod", "EndpointSlice", "Secret"}
    ]
    for kind, name in (*expected, ("Role", "patchbay-credentials")):
        await eventually(functools.partial(has, kind, name), f"{kind} {name}", within=PATIENCE)
    # As people uninstall: the resources, and then the operator, which need not have seen it.
    for kind, name in (
        ("Plugin", "filter"),
        ("ClientKey", "laptop"),
        ("ProviderCredential", "main"),
    ):
        await kube.delete(kind, name)

    async def left() -> dict[str, set[str]]:
        found = {k: {d["metadata"]["name"] for d in await kube.list(k)} for k in CHILDREN}
        surplus = {
            k: names - before[k] - {"seed", "kube-root-ca.crt"} for k, names in found.items()
        }
        surplus["ServiceAccount"] -= {"default"}
        role = await kube.get("Role", "patchbay-credentials")
        surplus["Rules"] = {str(rule) for rule in (role or {}).get("rules") or ()}
        return {k: names for k, names in surplus.items() if names}

    async def nothing() -> bool:
        return not await left()

    try:
        await eventually(nothing, "nothing is left", within=PATIENCE)
    except AssertionError as error:
        raise AssertionError(f"{error}: {await left()}") from None
    document = await kube.get("Plugin", "filter")
    assert document is None


async def test_second_operator_takes_over_in_a_rollout_and_loses_nothing(scene: Scene) -> None:
    (first,) = scene.operators
    await eventually(first.leads, "the first leads", within=PATIENCE)
    second = scene.operator("operator-b")
    await scene.apply("Plugin", "filter", IMAGE)
    await _until_pods(scene, 1)
    await _scale(scene, 3)
    first.kill()
    await eventually(second.leads, "the second leads", within=PATIENCE)
    await _until_pods(scene, 3)
    deployments = await scene.kube.list("Deployment")
    assert [d["metadata"]["name"] for d in deployments] == ["plugin-filter"]
    await _status_says(scene, 3)
