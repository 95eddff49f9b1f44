"""The rules of the custom resources, asked of a real API server: tests/golden/crds has the cases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from patchbay_operator.cluster import KINDS, Refused

if TYPE_CHECKING:
    from patchbay_operator.cluster import LightkubeApi

pytestmark = pytest.mark.requires("kube-apiserver")

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "crds"
CASES = [
    case for path in sorted(GOLDEN.glob("*.yaml")) for case in yaml.safe_load_all(path.read_text())
]


async def _apply(api: LightkubeApi, case: dict[str, Any], part: str) -> dict[str, Any]:
    kind = KINDS[case["kind"]]
    document = {"apiVersion": kind.api_version, "kind": kind.name, **case[part]}
    strict = {"fieldManager": "person", "fieldValidation": "Strict"}
    if part == "object" and "before" in case:
        return await api._call(
            "PATCH",
            api._path(kind.name, document["metadata"]["name"]),
            query=strict,
            body=document,
            headers={"content-type": "application/merge-patch+json"},
        )
    return await api._call("POST", api._path(kind.name), query=strict, body=document)


@pytest.mark.parametrize("case", CASES, ids=[f"{c['kind']}: {c['why']}" for c in CASES])
async def test_api_server_answers_as_the_golden_case_says(
    kube: LightkubeApi, case: dict[str, Any]
) -> None:
    if "before" in case:
        await _apply(kube, case, "before")
    if "message" not in case:
        await _apply(kube, case, "object")
        return
    with pytest.raises(Refused) as refused:
        await _apply(kube, case, "object")
    assert case["message"] in refused.value.message


async def test_defaults_are_in_the_stored_resource(kube: LightkubeApi) -> None:
    case = {
        "kind": "Plugin",
        "object": {"metadata": {"name": "p"}, "spec": {"image": "example/filter:1"}},
    }
    stored = await _apply(kube, case, "object")
    spec = stored["spec"]
    assert (spec["replicas"], spec["port"], spec["drain"]) == (1, 7003, "600s")
    assert spec["hostAccess"] == {"models": False, "http": {}, "auths": "none"}


async def test_scale_subresource_writes_the_number_of_replicas(kube: LightkubeApi) -> None:
    case = {"kind": "Plugin", "object": {"metadata": {"name": "p"}, "spec": {"image": "a"}}}
    await _apply(kube, case, "object")
    await kube._call(
        "PATCH",
        kube._path("Plugin", "p") + "/scale",
        body={"spec": {"replicas": 4}},
        headers={"content-type": "application/merge-patch+json"},
    )
    await kube.patch_status("Plugin", "p", {"replicas": 4, "selector": "a=b"})
    scale = await kube._call("GET", kube._path("Plugin", "p") + "/scale")
    assert scale["spec"]["replicas"] == 4
    assert scale["status"] == {"replicas": 4, "selector": "a=b"}


async def test_field_selectors_find_credentials_of_a_provider(kube: LightkubeApi) -> None:
    for name, provider in (("a", "one"), ("b", "two")):
        case = {
            "kind": "ProviderCredential",
            "object": {
                "metadata": {"name": name},
                "spec": {"provider": provider, "plugin": "echo"},
            },
        }
        await _apply(kube, case, "object")
    found: list[dict[str, Any]] = []
    for _ in range(1200):
        found = await kube.list("ProviderCredential", fields="spec.provider=two")
        if found:
            break
        await asyncio.sleep(0.05)  # the API server's cache
    assert [item["metadata"]["name"] for item in found] == ["b"]
