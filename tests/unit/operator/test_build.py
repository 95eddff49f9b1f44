"""From a spec to objects: golden files, the schemas of Kubernetes, and what no spec can change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from patchbay_operator.api.crds import dump
from patchbay_operator.api.plugin import PluginSpec
from patchbay_operator.installation import Installation
from patchbay_operator.objects.pod import SECRETS_ANNOTATION, grace_seconds
from patchbay_operator.objects.workload import Given, build_children, references

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "operator"
CASES = sorted(p.stem for p in GOLDEN.glob("*.yaml") if not p.stem.endswith(".objects"))
NEWEST = 37
VERSIONS = [f"1.{minor}" for minor in range(30, NEWEST + 1)]
INSTALLATION = Installation(
    namespace="gateway",
    name="patchbay",
    cilium=True,
    deny_ranges=("198.51.100.0/24", "2001:db8::/32"),
    allow_ranges=("10.9.0.0/16",),
    monitoring_namespace="monitoring",
    image_pull_secrets=("shared",),
)
GIVEN = Given(
    uid="0000-uid",
    config="level: 3\n",
    key="00" * 32 + "\n",
    versions={"Secret/filter": "uid:7", "ConfigMap/settings": "uid:8"},
)


def _spec(case: str) -> PluginSpec:
    return PluginSpec.model_validate(yaml.safe_load((GOLDEN / f"{case}.yaml").read_text()))


def _objects(case: str) -> list[dict[str, Any]]:
    return build_children("filter", _spec(case), INSTALLATION, GIVEN)


def _by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{o['kind']}": o for o in objects}


@pytest.mark.parametrize("case", CASES)
def test_spec_becomes_the_golden_objects(case: str) -> None:
    path = GOLDEN / f"{case}.objects.yaml"
    text = "---\n".join(dump(o) for o in _objects(case)) or "# none\n"
    if os.environ.get("PATCHBAY_WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_satisfy_the_schemas_of_kubernetes(version: str) -> None:
    for case in CASES:
        for document in _objects(case):
            if document["kind"] != "CiliumNetworkPolicy":
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("case", ["small", "everything"])
def test_pod_satisfies_the_restricted_standard(case: str) -> None:
    pod = _by_kind(_objects(case))["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_labels_of_an_author_do_not_touch_the_selector() -> None:
    deployment = _by_kind(_objects("everything"))["Deployment"]
    chosen = deployment["spec"]["selector"]["matchLabels"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert chosen.items() <= labels.items()
    assert labels["team"] == "edge"


def test_volumes_of_an_author_do_not_replace_the_operators() -> None:
    pod = _by_kind(_objects("everything"))["Deployment"]["spec"]["template"]["spec"]
    (key,) = [v for v in pod["volumes"] if v["name"] == "patchbay-key"]
    assert key["secret"]["secretName"] == "plugin-filter-key"


def test_what_an_author_adds_meets_nothing_of_the_operators() -> None:
    """The API server refuses a list with a name or a path twice; an annotation lifts no confinement."""
    unconfined = "container.apparmor.security.beta.kubernetes.io/plugin"
    spec = PluginSpec.model_validate(
        {
            "image": "example/filter:1",
            "metricsPort": 9103,
            "drain": "90s",
            "env": [
                {"name": "PATCHBAY_HEALTH_PORT", "value": "1"},
                {"name": "PATCHBAY_TLS_DIR", "value": "/x"},
                {"name": "LEVEL", "value": "3"},
            ],
            "podTemplate": {
                "annotations": {unconfined: "unconfined", "team": "edge"},
                "volumes": [{"name": "big", "emptyDir": {}}],
                "volumeMounts": [
                    {"name": "big", "mountPath": "/tmp"},
                    {"name": "big", "mountPath": "/etc/patchbay"},
                ],
            },
        }
    )
    with_tls = replace(INSTALLATION, tls_secret="plugin-tls")
    found = _by_kind(build_children("filter", spec, with_tls, GIVEN))["Deployment"]
    template = found["spec"]["template"]
    assert unconfined not in template["metadata"]["annotations"]
    assert template["metadata"]["annotations"]["team"] == "edge"
    (container,) = template["spec"]["containers"]
    names = [e["name"] for e in container["env"]]
    assert len(names) == len(set(names))
    values = {e["name"]: e.get("value") for e in container["env"]}
    assert (values["PATCHBAY_HEALTH_PORT"], values["LEVEL"]) == ("9103", "3")
    assert values["PATCHBAY_DRAIN"] == "90"
    paths = [m["mountPath"] for m in container["volumeMounts"]]
    assert len(paths) == len(set(paths))
    mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert (mounted["/tmp"], mounted["/etc/patchbay"]) == ("big", "patchbay-config")


def test_every_object_belongs_to_its_plugin() -> None:
    for document in _objects("everything"):
        (owner,) = document["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Plugin", "filter", "0000-uid")
        assert owner["controller"] is True
        assert document["metadata"]["namespace"] == "gateway"


def test_autoscaler_scales_the_plugin_and_not_the_deployment() -> None:
    wish = _by_kind(_objects("everything"))["HorizontalPodAutoscaler"]["spec"]
    assert wish["scaleTargetRef"]["kind"] == "Plugin"
    assert "HorizontalPodAutoscaler" not in _by_kind(_objects("small"))


def _rolled_by(**changes: Any) -> bool:
    def annotation(given: Given) -> str:
        objects = build_children("filter", _spec("everything"), INSTALLATION, given)
        template = _by_kind(objects)["Deployment"]["spec"]["template"]
        found: str = template["metadata"]["annotations"][SECRETS_ANNOTATION]
        return found

    values = {"uid": "u", "config": "a: 1\n", "key": "aa\n", "versions": {"Secret/s": "1"}}
    return annotation(Given(**values)) != annotation(Given(**{**values, **changes}))  # type: ignore[arg-type]


def test_pods_roll_when_a_secret_they_read_changes() -> None:
    assert _rolled_by(versions={"Secret/s": "2"})
    assert _rolled_by(key="bb\n")


def test_pods_stay_when_only_the_configuration_changes() -> None:
    """The plugin is told over gRPC; a restart would cut its streams."""
    assert not _rolled_by(config="a: 2\n")


def test_references_name_what_pods_cannot_start_without() -> None:
    assert references(_spec("everything")) == {"Secret/filter": True, "ConfigMap/settings": False}


def test_grace_is_longer_than_the_drain() -> None:
    assert grace_seconds(_spec("everything")) == 60


def test_metadata_service_and_private_ranges_are_closed() -> None:
    policy = _by_kind(_objects("small"))["NetworkPolicy"]["spec"]
    blocks = [
        peer["ipBlock"]
        for rule in policy["egress"]
        for peer in rule.get("to", ())
        if "ipBlock" in peer
    ]
    (world,) = [b for b in blocks if b["cidr"] == "0.0.0.0/0"]
    assert {"169.254.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12"} <= set(
        world["except"]
    )
    assert "198.51.100.0/24" in world["except"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_resolvers_are_reached_where_openshift_has_them() -> None:
    policy = _by_kind(_objects("small"))["NetworkPolicy"]["spec"]
    asked = {(p["protocol"], p["port"]) for p in policy["egress"][0]["ports"]}
    assert asked == {("UDP", 53), ("TCP", 53), ("UDP", 5353), ("TCP", 5353)}


def test_all_that_call_a_plugin_reach_it() -> None:
    policy = _by_kind(_objects("small"))["NetworkPolicy"]["spec"]
    callers = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for peer in policy["ingress"][0]["from"]
    }
    assert callers == {"edge", "scheduler", "usage"}


def test_pods_get_certificates_where_the_installation_has_them() -> None:
    spec = PluginSpec.model_validate({"image": "a"})
    with_tls = replace(INSTALLATION, tls_secret="plugin-tls", tls_name="gateway.internal")
    plain = _by_kind(build_children("filter", spec, INSTALLATION, GIVEN))["Deployment"]
    found = _by_kind(build_children("filter", spec, with_tls, GIVEN))["Deployment"]
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {e["name"]: e.get("value") for e in container["env"]}
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "patchbay-tls"]
    assert env["PATCHBAY_TLS_DIR"] == mount["mountPath"]
    assert env["PATCHBAY_TLS_NAME"] == "gateway.internal"
    (volume,) = [v for v in pod["volumes"] if v["name"] == "patchbay-tls"]
    assert volume["secret"]["secretName"] == "plugin-tls"
    # A kubelet has no certificate.
    assert container["readinessProbe"]["tcpSocket"] == {"port": 7003}
    kubernetes_validate.validate(found, VERSIONS[0], strict=True)
    assert "tls" not in str(plain)
