"""The operator's work on a namespace in memory: what it makes, what it puts right, what failures cost."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.fakes.kube_api import FakeGateway, FakeKube

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.keys import Roots, client_key_digest
from patchbay_gateway.plugins.reports import Standing
from patchbay_gateway.plugins.told_models import PluginTold, Told
from patchbay_operator.cluster import Conflicted, Gone, Refused
from patchbay_operator.controller import ENDPOINTS, SNAPSHOT, STATUS, Controller, Key
from patchbay_operator.gathering import Values
from patchbay_operator.installation import Installation

BASE = config.parse("providers: [{name: echo, plugin: echo, models: [echo]}]", env={})
ROOT = b"\x22" * 32
CREDENTIAL = {
    "provider": "openai",
    "plugin": "openai-compatible",
    "baseUrl": "https://api.example/v1",
    "models": [{"name": "gpt"}],
    "secretRef": {"name": "openai"},
}


class Queue:
    """Keys in order; `settle` works on them until nothing is left."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.later: list[Key] = []

    def add(self, key: Key) -> None:
        if key not in self.keys:
            self.keys.append(key)

    def add_later(self, key: Key, delay: float) -> None:
        self.later.append(key)


class Scene:
    def __init__(self) -> None:
        self.kube = FakeKube()
        self.gateway = FakeGateway()
        self.queue = Queue()
        self.controller = self.operator()

    def operator(self) -> Controller:
        """Return one that has just begun to lead."""
        made = Controller(
            self.kube,
            self.gateway,
            Installation(namespace="gateway"),
            Roots(plugins=(b"\x11" * 32,), cluster=(ROOT,)),
            values=lambda: Values(BASE),
            clock=ManualClock(),
        )
        made.queue = self.queue  # type: ignore[assignment] # a queue that tests empty
        made.resync()
        return made

    async def settle(self) -> None:
        """Work until there is nothing to do; what fails comes again, as in the queue."""
        for _ in range(100):
            if not self.queue.keys:
                return
            key = self.queue.keys.pop(0)
            try:
                await self.controller.work(key)
            except PatchbayError:
                self.queue.add(key)
        raise AssertionError(f"it never settles: {self.queue.keys}")

    async def look(self) -> None:
        """Have it look at everything, as it does now and then."""
        await self.controller.diff()
        await self.controller.look_at_objects()
        await self.controller.look_at_gateway()
        await self.settle()

    @property
    def snapshot(self) -> Any:
        assert self.gateway.published is not None
        return self.gateway.published


@pytest.fixture
async def scene() -> Scene:
    made = Scene()
    await made.settle()
    return made


async def test_plugin_becomes_objects_and_part_of_the_snapshot(scene: Scene) -> None:
    scene.kube.put("Plugin", "filter", {"image": "example/filter:1", "replicas": 2})
    await scene.look()
    for kind in (
        *("ServiceAccount", "ConfigMap", "Deployment", "Service"),
        *("PodDisruptionBudget", "NetworkPolicy"),
    ):
        assert (kind, "plugin-filter") in scene.kube.objects
    assert "filter" in scene.snapshot.plugin_by_id
    await scene.look()
    assert scene.kube.condition("Plugin", "filter", "Programmed") == ("True", "Programmed")
    assert scene.kube.condition("Plugin", "filter", "Available")[0] == "False"


async def test_second_look_writes_nothing(scene: Scene) -> None:
    scene.kube.put("Plugin", "filter", {"image": "example/filter:1"})
    scene.kube.put("ClientKey", "laptop", {})
    scene.kube.secret("openai", **{"api-key": "test-key-one"})
    scene.kube.put("ProviderCredential", "main", CREDENTIAL)
    for _ in range(3):
        await scene.look()
    scene.kube.writes.clear()
    version = scene.snapshot.version
    await scene.look()
    assert scene.kube.writes == []
    assert scene.snapshot.version == version


async def test_deletion_that_no_watch_told_is_found(scene: Scene) -> None:
    scene.kube.put("Plugin", "filter", {"image": "example/filter:1"})
    await scene.look()
    scene.kube.remove("Plugin", "filter")
    await scene.look()
    assert "filter" not in scene.snapshot.plugin_by_id
    assert not [key for key in scene.kube.objects if key[1] == "plugin-filter"]


async def test_client_key_is_made_once_also_by_two_operators(scene: Scene) -> None:
    scene.kube.put("ClientKey", "laptop", {"models": ["gpt-*"]})
    await scene.look()
    data = scene.kube.objects["Secret", "laptop-client-key"]["data"]
    plain = base64.b64decode(data["key"]).decode()
    (entry,) = scene.snapshot.client_keys
    assert entry.digest == client_key_digest(ROOT, plain)
    scene.controller = scene.operator()
    await scene.controller.work(("ClientKey", "laptop"))
    await scene.settle()
    assert scene.kube.objects["Secret", "laptop-client-key"]["data"] == data


async def test_scheduler_may_read_what_credentials_name(scene: Scene) -> None:
    scene.kube.put("ProviderCredential", "main", CREDENTIAL)
    await scene.look()
    rules = scene.kube.objects["Role", "patchbay-credentials"]["rules"]
    assert [(r["resourceNames"], r["verbs"]) for r in rules] == [
        (["openai"], ["get"]),
        (["main-state"], ["get", "update"]),
    ]
    assert ("Secret", "main-state") in scene.kube.objects
    scene.kube.remove("ProviderCredential", "main")
    await scene.look()
    assert scene.kube.objects["Role", "patchbay-credentials"]["rules"] == []
    assert ("Secret", "main-state") not in scene.kube.objects


async def test_what_schedulers_report_is_status_and_snapshot(scene: Scene) -> None:
    scene.kube.secret("openai", **{"api-key": "test-key-one"})
    scene.kube.put("ProviderCredential", "main", CREDENTIAL)
    scene.kube.put("Plugin", "teller", {"address": "teller.example:7003"})
    await scene.look()
    await scene.look()
    assert scene.kube.condition("ProviderCredential", "main", "Ready") == ("True", "Ready")
    scene.gateway.told["teller"] = PluginTold(Told("openai", ("new",)))
    scene.gateway.report(main=Standing("no_material", last_error="401 no"))
    await scene.look()
    assert scene.kube.condition("ProviderCredential", "main", "Ready") == ("False", "NoMaterial")
    assert scene.kube.objects["ProviderCredential", "main"]["status"]["lastError"] == "401 no"
    assert [m.name for m in scene.snapshot.provider_by_name["openai"].models] == ["gpt", "new"]


async def test_flushed_redis_gets_the_snapshot_back_with_the_models_of_plugins(
    scene: Scene,
) -> None:
    scene.kube.put(
        "ProviderCredential", "main", {k: v for k, v in CREDENTIAL.items() if k != "secretRef"}
    )
    scene.kube.put("Plugin", "teller", {"address": "teller.example:7003"})
    scene.gateway.told["teller"] = PluginTold(Told("openai", ("new",)))
    scene.gateway.report()
    await scene.look()
    assert "new" in scene.snapshot.targets
    scene.gateway.lose_everything()
    await scene.look()
    assert "new" in scene.snapshot.targets
    scene.kube.remove("Plugin", "teller")
    await scene.look()
    assert "new" not in scene.snapshot.targets


@pytest.mark.parametrize("failure", [Unavailable("429"), Unavailable("500"), Conflicted("409")])
async def test_calls_that_fail_are_made_again(scene: Scene, failure: PatchbayError) -> None:
    scene.kube.put("Plugin", "filter", {"image": "example/filter:1"})
    scene.kube.put("ClientKey", "laptop", {})
    scene.queue.add(SNAPSHOT)
    for _ in range(12):
        scene.kube.failures = [failure]
        key = scene.queue.keys.pop(0)
        try:
            await scene.controller.work(key)
        except PatchbayError:
            scene.queue.add(key)
    scene.kube.failures.clear()
    await scene.settle()
    await scene.look()
    assert ("Deployment", "plugin-filter") in scene.kube.objects
    assert ("Secret", "laptop-client-key") in scene.kube.objects
    assert scene.snapshot.client_keys


async def test_object_that_the_api_server_refuses_is_told_on_the_plugin(scene: Scene) -> None:
    """It would be "about to be made" for ever; others go on, and a correction ends it."""
    reason = 'PATCH deployments: 422 Deployment "plugin-filter" is invalid: metadata.labels'
    scene.kube.put("Plugin", "filter", {"image": "example/filter:1"})
    await scene.controller.work(SNAPSHOT)
    scene.kube.failures = [None] * 7 + [Refused(reason)]  # its Plugin is read, six objects are made
    with pytest.raises(Refused):
        await scene.controller.work(("Plugin", "filter"))
    assert ("Deployment", "plugin-filter") not in scene.kube.objects
    scene.queue.keys = [STATUS]
    await scene.controller.look_at_gateway()
    await scene.controller.work(STATUS)
    assert scene.kube.condition("Plugin", "filter", "Available") == ("False", "ObjectRefused")
    assert scene.kube.condition("Plugin", "filter", "Stalled") == ("True", "ObjectRefused")
    told = json.dumps(scene.kube.objects["Plugin", "filter"]["status"])
    assert "metadata.labels" in told
    assert "correct the spec" in told
    scene.kube.put("Plugin", "filter", {"image": "example/filter:2"})
    await scene.look()
    assert scene.kube.condition("Plugin", "filter", "Available") == ("False", "RollingOut")


async def test_definitions_that_are_not_installed_are_told_and_waited_for() -> None:
    """Without a long backoff: whoever installs them then wants to see it work."""
    scene = Scene()
    scene.queue.keys.clear()
    scene.kube.failures = [Gone("GET /apis/patchbay.dev/v1alpha1/plugins: 404 page not found")]
    with pytest.raises(Gone, match="install the chart patchbay-crds"):
        await scene.controller.work(SNAPSHOT)
    await scene.controller.diff()
    assert SNAPSHOT in scene.queue.keys
    await scene.look()
    assert scene.snapshot.provider_by_name["echo"]


async def test_key_of_a_deleted_resource_does_not_open_for_one_of_the_same_name(
    scene: Scene,
) -> None:
    """Its Secret is still there until the garbage collector comes by; then another key is made."""
    owner = {"kind": "ClientKey", "name": "laptop", "uid": "uid-of-the-deleted"}
    data = {"key": base64.b64encode(b"test-key-revoked").decode()}
    metadata = {"name": "laptop-client-key", "ownerReferences": [owner]}
    scene.kube.put("Secret", "laptop-client-key", metadata=metadata, data=data)
    scene.kube.put("ClientKey", "laptop", {})
    await scene.look()
    assert not scene.snapshot.client_keys
    scene.kube.remove("Secret", "laptop-client-key")
    await scene.look()
    (entry,) = scene.snapshot.client_keys
    assert entry.digest != client_key_digest(ROOT, "test-key-revoked")


async def test_redis_away_is_told_and_made_good(scene: Scene) -> None:
    scene.gateway.away = Unavailable("Redis is away")
    scene.kube.put("ModelRoute", "big", {"targets": [{"provider": "echo", "model": "echo"}]})
    await scene.controller.diff()
    with pytest.raises(Unavailable):
        await scene.controller.work(SNAPSHOT)
    assert "Redis is away" in scene.controller.problem
    scene.gateway.away = None
    await scene.look()
    assert scene.controller.problem == ""
    assert [route.name for route in scene.snapshot.routes] == ["big"]


async def test_reports_that_could_not_be_read_are_read_at_the_next_look(scene: Scene) -> None:
    """Nothing may change in them for days: their version must not count as seen."""
    scene.kube.secret("openai", **{"api-key": "test-key-one"})
    scene.kube.put("ProviderCredential", "main", CREDENTIAL)
    await scene.look()
    await scene.look()
    scene.gateway.report(main=Standing("no_material", last_error="401 no"))
    scene.gateway.reports_away = Unavailable("Redis is away")
    with pytest.raises(Unavailable):
        await scene.controller.look_at_gateway()
    scene.gateway.reports_away = None
    await scene.look()
    assert scene.kube.condition("ProviderCredential", "main", "Ready") == ("False", "NoMaterial")


async def test_version_that_is_published_while_redis_is_asked_is_not_lost(scene: Scene) -> None:
    async def published_meanwhile() -> None:
        scene.gateway.after_version = None
        scene.kube.put("ModelRoute", "big", {"targets": [{"provider": "echo", "model": "echo"}]})
        await scene.controller.work(SNAPSHOT)

    scene.gateway.after_version = published_meanwhile
    await scene.controller.look_at_gateway()
    assert [route.name for route in scene.snapshot.routes] == ["big"]
    assert SNAPSHOT not in scene.queue.keys


async def test_status_speaks_of_no_generation_that_was_not_drafted(scene: Scene) -> None:
    """Statuses may be written between an edit and the draft that reads it."""
    spec = {"targets": [{"provider": "echo", "model": "echo"}]}
    scene.kube.put("ModelRoute", "big", spec)
    await scene.look()
    scene.kube.put("ModelRoute", "big", {"targets": [{"provider": "nobody", "model": "m"}]})
    await scene.controller.work(STATUS)
    status = scene.kube.objects["ModelRoute", "big"]["status"]
    assert status["observedGeneration"] == 1
    await scene.look()
    status = scene.kube.objects["ModelRoute", "big"]["status"]
    assert status["observedGeneration"] == 2
    assert scene.kube.condition("ModelRoute", "big", "ResolvedRefs")[0] == "False"


async def test_redis_that_is_back_gets_what_waits_for_it_at_once(scene: Scene) -> None:
    """In the queue it may wait for minutes by then."""
    scene.gateway.away = Unavailable("Redis is away")
    scene.kube.put("ModelRoute", "big", {"targets": [{"provider": "echo", "model": "echo"}]})
    with pytest.raises(Unavailable):
        await scene.controller.work(SNAPSHOT)
    with pytest.raises(Unavailable):
        await scene.controller.look_at_gateway()
    scene.queue.keys.clear()
    scene.gateway.away = None
    await scene.controller.look_at_gateway()
    assert {SNAPSHOT, ENDPOINTS} <= set(scene.queue.keys)
    await scene.settle()
    assert [route.name for route in scene.snapshot.routes] == ["big"]
    await scene.controller.look_at_gateway()
    assert SNAPSHOT not in scene.queue.keys


async def test_api_server_that_is_back_is_read_anew_at_once(scene: Scene) -> None:
    scene.kube.failures = [Unavailable("500")]
    with pytest.raises(Unavailable):
        await scene.controller.look_at_objects()
    scene.queue.keys.clear()
    await scene.controller.look_at_objects()
    assert SNAPSHOT in scene.queue.keys
    await scene.settle()
    await scene.controller.look_at_objects()
    assert SNAPSHOT not in scene.queue.keys
