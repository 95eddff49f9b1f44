"""When a status is written: at once where a condition changed, seldom where little did."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.instances import Instance
from patchbay_gateway.plugins.reports import Standing
from patchbay_operator.draft import Gathered, draft
from patchbay_operator.installation import Installation
from patchbay_operator.resources import understand
from patchbay_operator.statuses import QUIET, Known, Statuses

INSTALLATION = Installation(namespace="gateway")
BASE = config.parse("providers: [{name: echo, plugin: echo, models: [echo]}]", env={})
CREDENTIAL: dict[str, Any] = {
    "apiVersion": "patchbay.dev/v1alpha1",
    "kind": "ProviderCredential",
    "metadata": {"name": "main", "uid": "u1", "generation": 1, "resourceVersion": "1"},
    "spec": {
        "provider": "openai",
        "plugin": "openai-compatible",
        "baseUrl": "https://api.example/v1",
        "secretRef": {"name": "s"},
    },
}


class Kube:
    """Resources in memory, and the statuses that were written."""

    def __init__(self, *documents: dict[str, Any]) -> None:
        self.documents = [copy.deepcopy(d) for d in documents]
        self.written: list[dict[str, Any]] = []
        self.events: list[str] = []

    async def list(self, kind: str, **_: Any) -> list[dict[str, Any]]:
        return [copy.deepcopy(d) for d in self.documents if d["kind"] == kind]

    async def patch_status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        self.written.append(status)
        (document,) = [
            d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name)
        ]
        merged = {**document.get("status", {}), **status}
        document["status"] = {k: v for k, v in merged.items() if v is not None}

    async def create(self, document: dict[str, Any]) -> None:
        self.events.append(document["reason"])


class Scene:
    def __init__(self, *documents: dict[str, Any]) -> None:
        self.kube = Kube(*documents)
        self.clock = ManualClock()
        self.later: list[float] = []
        self.statuses = Statuses(
            cast("Any", self.kube),
            INSTALLATION,
            clock=self.clock,
            serves=lambda: None,
            again=self.later.append,
        )
        found = [understand(d) for d in documents]
        self.draft = draft(
            Gathered(
                base=BASE,
                credentials=[r for r in found if r.kind == "ProviderCredential"],
                client_keys=[r for r in found if r.kind == "ClientKey"],
                secrets={"s": "1"},
                digests={"laptop": "d"},
            ),
            INSTALLATION,
        )

    async def write(self, standing: Standing | None = None, runs: int = 7) -> None:
        marks = {(d["metadata"]["uid"], d["metadata"]["generation"]) for d in self.kube.documents}
        known = Known(
            self.draft,
            dict.fromkeys(marks, 7),
            [Instance("edge-1", "edge", runs, ready=True)],
            {"main": standing} if standing is not None else {},
        )
        await self.statuses.write(known)

    def condition(self, kind: str) -> tuple[str, str]:
        (found,) = [c for c in self.kube.documents[0]["status"]["conditions"] if c["type"] == kind]
        return found["status"], found["reason"]


@pytest.fixture
def scene() -> Scene:
    return Scene(CREDENTIAL)


async def test_nothing_new_writes_nothing(scene: Scene) -> None:
    for _ in range(3):
        await scene.write(Standing())
    assert len(scene.kube.written) == 1
    assert scene.kube.events == ["Ready"]
    assert not scene.later


async def test_what_changes_often_is_written_seldom_and_not_lost(scene: Scene) -> None:
    await scene.write(Standing())
    for number in range(20):
        await scene.write(Standing(cooling_until=float(number + 1), last_error=f"429 {number}"))
    assert len(scene.kube.written) == 1
    assert scene.later
    assert max(scene.later) <= QUIET
    await scene.clock.advance(QUIET)
    await scene.write(Standing(cooling_until=20.0, last_error="429 19"))
    assert len(scene.kube.written) == 2
    assert scene.kube.documents[0]["status"]["lastError"] == "429 19"
    await scene.clock.advance(QUIET)
    await scene.write(Standing())
    assert "coolingUntil" not in scene.kube.documents[0]["status"]
    assert scene.kube.events == ["Ready"]


async def test_change_of_a_condition_is_written_at_once(scene: Scene) -> None:
    await scene.write(Standing())
    await scene.write(Standing("no_material"))
    assert scene.condition("Ready") == ("False", "NoMaterial")
    await scene.write(Standing())
    assert scene.condition("Ready") == ("True", "Ready")
    assert len(scene.kube.written) == 3


async def test_disabled_client_key_is_revoked_when_every_edge_leaves_it_out() -> None:
    document = {
        "apiVersion": "patchbay.dev/v1alpha1",
        "kind": "ClientKey",
        "metadata": {"name": "laptop", "uid": "u2", "generation": 2, "resourceVersion": "1"},
        "spec": {"disabled": True},
    }
    scene = Scene(document)
    assert not scene.draft.config.client_keys
    await scene.write(runs=6)
    assert scene.condition("Programmed") == ("False", "NotYetProgrammed")
    await scene.write(runs=7)
    assert scene.condition("Programmed") == ("True", "Disabled")
    assert scene.condition("Ready") == ("False", "Disabled")
    assert scene.condition("Reconciling")[0] == "False"
