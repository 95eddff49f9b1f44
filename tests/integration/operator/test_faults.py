"""The operator before an API server that fails: watches that lie, refused writes, outages."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.harness.fault_proxy import FaultProxy, running_proxy
from tests.harness.operator_process import eventually
from tests.integration.operator.test_operator import Scene, _plugins

from patchbay_gateway.plugins.reports import CREDENTIALS, Reports, Standing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import ValkeyProcess
    from tests.harness.apiserver import ApiServer

    from patchbay_operator.cluster import LightkubeApi

pytestmark = [pytest.mark.requires("kube-apiserver"), pytest.mark.timeout(180)]
FAR = {"address": "far.example:7003"}


@contextlib.asynccontextmanager
async def _scene(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, directory: Path
) -> AsyncIterator[tuple[Scene, FaultProxy]]:
    scene = Scene(kube, api_server, valkey, directory)
    async with running_proxy(api_server) as proxy:
        kubeconfig = directory / "proxied"
        kubeconfig.write_text(yaml.safe_dump(api_server.configuration(proxy.url)))
        try:
            scene.operator(kubeconfig=kubeconfig)
            yield scene, proxy
        finally:
            await scene.aclose()


@pytest.mark.parametrize("fault", ["silent", "410", "cut"])
async def test_deletion_in_a_gap_of_the_watch_leaves_the_snapshot(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, tmp_path: Path, fault: str
) -> None:
    """A watch never tells of what was deleted while it had lost its place."""
    async with _scene(kube, api_server, valkey, tmp_path) as (scene, proxy):
        await scene.apply("Plugin", "far", FAR)
        await scene.until(_plugins, "it is published")
        proxy.watches = fault
        proxy.break_watches()
        await scene.kube.delete("Plugin", "far")
        await scene.until(lambda s: not _plugins(s), "it is gone")
        await scene.apply("Plugin", "near", FAR)
        await scene.until(_plugins, "another is published")


async def test_refused_writes_are_tried_again(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with _scene(kube, api_server, valkey, tmp_path) as (scene, proxy):
        await scene.until(bool, "something is published")
        proxy.writes = [429, 500, 409]
        await scene.apply("Plugin", "filter", {"image": "example/filter:1"})

        async def deployed() -> object:
            return await scene.kube.get("Deployment", "plugin-filter")

        await eventually(deployed, "the Deployment is made all the same")
        assert proxy.writes == []


async def test_outage_of_the_api_server_ends_and_nothing_is_lost(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with _scene(kube, api_server, valkey, tmp_path) as (scene, proxy):
        await scene.apply("Plugin", "far", FAR)
        before = await scene.until(_plugins, "it is published")
        proxy.away = True
        proxy.break_watches()
        await scene.apply("Plugin", "near", FAR)  # a person's way does not lead through the proxy
        await eventually(lambda: scene.operators[0].get("/livez"), "it lives")
        now = await scene.snapshot()
        assert now is not None
        assert now.version == before.version
        proxy.away = False
        await scene.until(lambda s: len(_plugins(s)) == 2, "what was missed is published")


async def test_status_of_a_credential_comes_through_refused_writes_and_an_outage(
    kube: LightkubeApi, api_server: ApiServer, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """What schedulers report meanwhile is told when the API server takes it; only the newest counts."""
    spec = {
        "provider": "openai",
        "plugin": "openai-compatible",
        "baseUrl": "https://api.example/v1",
        "secretRef": {"name": "openai"},
    }
    async with _scene(kube, api_server, valkey, tmp_path) as (scene, proxy), scene.edge():
        await scene.secret("openai", **{"api-key": "test-key-one"})
        await scene.apply("ProviderCredential", "main", spec)
        await scene.condition("ProviderCredential", "main", "Ready", "True")
        reports = Reports(scene.store)
        proxy.writes = [409, 500, 429]
        await reports.write(CREDENTIALS, {"main": Standing("no_material")})
        told = await scene.condition("ProviderCredential", "main", "Ready", "False", "NoMaterial")
        assert "has the Secret openai the key 'api-key'?" in told["message"]
        assert proxy.writes == []
        proxy.away = True
        await reports.write(CREDENTIALS, {"main": Standing("disabled")})
        resting = Standing(cooling_until=4e9, cooling_models=("gpt",), last_error="429 slow down")
        await reports.write(CREDENTIALS, {"main": resting})
        proxy.away = False
        await scene.condition("ProviderCredential", "main", "Ready", "True")
        document = await scene.kube.get("ProviderCredential", "main")
        assert document is not None
        status = document["status"]
        assert (status["coolingUntil"], status["coolingModels"], status["lastError"]) == (
            "2096-10-02T07:06:40Z",
            ["gpt"],
            "429 slow down",
        )
