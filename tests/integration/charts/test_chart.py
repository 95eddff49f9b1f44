"""The chart of the gateway, rendered by the real Helm over a matrix of values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
from tests.integration.charts.rendering import COMPONENTS, MATRIX, PRODUCTION, of_kind, pods_of

from patchbay_gateway.kernel import config
from patchbay_operator.access import role_name
from patchbay_operator.installation import Installation

if TYPE_CHECKING:
    from tests.harness.helm import Helm

pytestmark = pytest.mark.requires("helm")
FOREIGN = {"ServiceMonitor", "PrometheusRule", "HTTPRoute", "Certificate"}


def test_objects_satisfy_the_schemas_of_kubernetes(rendered: list[dict[str, Any]]) -> None:
    for version in ("1.30", "1.37"):
        for document in rendered:
            if document["kind"] not in FOREIGN:
                kubernetes_validate.validate(document, version, strict=True)


def test_no_two_objects_share_a_name(rendered: list[dict[str, Any]]) -> None:
    marks = [(d["kind"], d["metadata"]["name"]) for d in rendered]
    assert len(marks) == len(set(marks))
    assert all(d["metadata"]["namespace"] == "gateway" for d in rendered)


def test_pods_satisfy_the_restricted_standard(rendered: list[dict[str, Any]]) -> None:
    pods = pods_of(rendered)
    assert pods
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod.get("volumes", ()):
            assert "hostPath" not in volume
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]


def test_only_those_that_ask_the_api_server_have_a_token(rendered: list[dict[str, Any]]) -> None:
    with_token = {n for n, p in pods_of(rendered).items() if p["automountServiceAccountToken"]}
    assert with_token <= {"gw-patchbay-operator", "gw-patchbay-scheduler", "gw-patchbay-secrets"}
    assert {"gw-patchbay-operator", "gw-patchbay-scheduler"} <= with_token


def test_selectors_are_name_instance_and_component(rendered: list[dict[str, Any]]) -> None:
    """They are immutable: a fourth label could never be taken back."""
    for kind in ("Deployment", "StatefulSet"):
        for document in of_kind(rendered, kind).values():
            labels = document["spec"]["selector"]["matchLabels"]
            assert set(labels) == {
                f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")
            }
            assert labels.items() <= document["spec"]["template"]["metadata"]["labels"].items()


def test_grace_outlasts_the_drain(rendered: list[dict[str, Any]]) -> None:
    edge = pods_of(rendered)["gw-patchbay-edge"]
    (container,) = edge["containers"]
    drain = next(e["value"] for e in container["env"] if e["name"] == "PATCHBAY_DRAIN")
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert edge["terminationGracePeriodSeconds"] >= sleep + int(drain) + 15


def test_executors_are_told_their_drain(helm: Helm) -> None:
    values = {"executors": {"drainSeconds": 1200, "terminationGracePeriodSeconds": 1230}}
    (container,) = pods_of(helm.render(values=values))["gw-patchbay-executors"]["containers"]
    assert {"name": "PATCHBAY_DRAIN", "value": "1200"} in container["env"]


def test_old_executors_and_schedulers_stay_until_new_ones_are_known(
    rendered: list[dict[str, Any]],
) -> None:
    """Edges learn an address within seconds; with one replica the old one must serve so long."""
    for name, document in of_kind(rendered, "Deployment").items():
        waits = name in {"gw-patchbay-executors", "gw-patchbay-scheduler"}
        assert document["spec"].get("minReadySeconds", 0) == (10 if waits else 0), name


def test_replicas_are_left_to_the_autoscaler(rendered: list[dict[str, Any]]) -> None:
    scaled = {
        d["spec"]["scaleTargetRef"]["name"]
        for d in of_kind(rendered, "HorizontalPodAutoscaler").values()
    }
    for name, document in of_kind(rendered, "Deployment").items():
        assert ("replicas" in document["spec"]) == (name not in scaled), name


def test_autoscalers_may_count_open_streams(helm: Helm) -> None:
    """By the names that the processes show; without it only CPU counts."""
    wish = {"enabled": True, "targetOpenStreams": 40}
    found = of_kind(
        helm.render(values={"edge": {"autoscaling": wish}, "executors": {"autoscaling": wish}}),
        "HorizontalPodAutoscaler",
    )
    counted = {
        name: [m["pods"]["metric"]["name"] for m in d["spec"]["metrics"] if m["type"] == "Pods"]
        for name, d in found.items()
    }
    assert counted == {
        "gw-patchbay-edge": ["patchbay_edge_open_streams"],
        "gw-patchbay-executors": ["patchbay_plugin_open_streams"],
    }


def test_configuration_is_one_that_services_take(rendered: list[dict[str, Any]]) -> None:
    data = of_kind(rendered, "ConfigMap")["gw-patchbay-config"]["data"]
    found = config.parse(data["patchbay.yaml"], env={})
    assert [p.name for p in found.providers] == ["echo"]
    assert [k.name for k in found.client_keys] == ["first"]


def test_secrets_are_never_in_the_manifest(rendered: list[dict[str, Any]]) -> None:
    assert not of_kind(rendered, "Secret")


def test_each_component_gets_only_its_own_roots(rendered: list[dict[str, Any]]) -> None:
    wanted = {
        "edge": {"cluster"},
        "scheduler": {"store", "plugins", "cluster"},
        "usage": {"cluster"},
        "operator": {"plugins", "cluster"},
        "executors": set(),
    }
    for component, roots in wanted.items():
        volumes = pods_of(rendered)[f"gw-patchbay-{component}"]["volumes"]
        items = [v["secret"].get("items", []) for v in volumes if v["name"] == "roots"]
        assert {item["key"] for entry in items for item in entry} == roots, component


def test_scheduler_may_read_only_what_the_operators_role_names(
    rendered: list[dict[str, Any]],
) -> None:
    (binding,) = [
        b
        for b in of_kind(rendered, "RoleBinding").values()
        if any(s["name"] == "gw-patchbay-scheduler" for s in b["subjects"])
    ]
    assert binding["roleRef"]["name"] == role_name(Installation(namespace="gateway", name="gw"))
    # The rules are the operator's; the Role itself goes with the release.
    assert "rules" not in of_kind(rendered, "Role")["gw-credentials"]
    assert "spec" not in of_kind(rendered, "Lease")["patchbay-operator"]


def test_operator_has_no_rights_beyond_its_namespace_and_no_wildcards(
    rendered: list[dict[str, Any]],
) -> None:
    assert not of_kind(rendered, "ClusterRole")
    assert not of_kind(rendered, "ClusterRoleBinding")
    for role in of_kind(rendered, "Role").values():
        for rule in role.get("rules", ()):
            for part in ("apiGroups", "resources", "verbs"):
                assert "*" not in rule[part], role["metadata"]["name"]
            if "escalate" in rule["verbs"]:
                assert rule["resourceNames"] == ["gw-credentials"]
            if "secrets" in rule["resources"]:
                assert "delete" not in rule["verbs"]


def test_replicas_have_a_disruption_budget(helm: Helm) -> None:
    assert not of_kind(helm.render(), "PodDisruptionBudget")
    many = helm.render("-f", PRODUCTION)
    assert set(of_kind(many, "PodDisruptionBudget")) == {f"gw-patchbay-{c}" for c in COMPONENTS}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"edge": {"replicaCoun": 2}}, "additional properties 'replicaCoun' not allowed"),
        (
            {"config": {"routing": {"strategyy": "x"}}},
            "additional properties 'strategyy' not allowed",
        ),
        (
            {"config": {"providers": [{"name": "a", "plugin": "echo", "credentials": []}]}},
            "credentials",
        ),
        ({"edge": {"drainSeconds": 700}}, "must be at least preStopSeconds + drainSeconds + 15"),
        ({"usage": {"replicaCount": 2}}, "usage.replicaCount above 1 needs PostgreSQL"),
        ({"redis": {"enabled": False}}, "redis.existingSecret names a Secret"),
        ({"httpRoute": {"enabled": True}}, "needs the Gateway API"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"tls": {"enabled": True}}, "tls.enabled needs tls.existingSecret"),
        (
            {"tls": {"enabled": True, "certManager": {"enabled": True}}},
            "needs cert-manager (cert-manager.io/v1)",
        ),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(
    helm: Helm, values: dict[str, Any], sentence: str
) -> None:
    done = helm.template(values=values)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_certificates_reach_all_that_speak_grpc(helm: Helm) -> None:
    for case, secret, of_plugins in (
        ("certificates of ours", "tls", "tls"),
        ("certificates of cert-manager", "gw-patchbay-tls", "gw-patchbay-plugin-tls"),
    ):
        _, values, apis = MATRIX[case]
        documents = helm.render(values=values, apis=apis)
        pods = pods_of(documents)
        for component in ("edge", "scheduler", "executors", "usage"):
            pod = pods[f"gw-patchbay-{component}"]
            (volume,) = [v for v in pod["volumes"] if v["name"] == "tls"]
            assert volume["secret"]["secretName"] == secret
            (container,) = pod["containers"]
            env = {e["name"]: e.get("value") for e in container["env"]}
            (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
            assert env["PATCHBAY_TLS_DIR"] == mount["mountPath"]
            assert env["PATCHBAY_TLS_NAME"] == "patchbay"
            # A kubelet has no certificate.
            assert not any("grpc" in container[p] for p in container if p.endswith("Probe"))
        (operator,) = pods["gw-patchbay-operator"]["containers"]
        told = {e["name"]: e.get("value") for e in operator["env"]}
        assert told["PATCHBAY_OPERATOR_TLS_SECRET"] == of_plugins
        made = of_kind(documents, "Certificate")
        assert set(made) == ({secret, of_plugins} if apis else set())
        for certificate in made.values():
            assert certificate["spec"]["dnsNames"] == ["patchbay"]
            assert {"server auth", "client auth"} <= set(certificate["spec"]["usages"])
    assert "tls" not in json.dumps(pods_of(helm.render())["gw-patchbay-edge"])


def test_monitoring_waits_for_its_definitions(helm: Helm) -> None:
    on = {
        "monitoring": {
            "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {}},
            "prometheusRule": {"enabled": True, "labels": {}},
        }
    }
    assert not of_kind(helm.render(values=on), "ServiceMonitor")
    there = helm.render(values=on, apis=("monitoring.coreos.com/v1",))
    assert of_kind(there, "ServiceMonitor")
    assert of_kind(there, "PrometheusRule")


def test_notes_say_that_a_prometheus_elsewhere_is_kept_out(helm: Helm) -> None:
    asked = "monitoring.serviceMonitor.enabled=true"
    named = ("--set", "monitoring.namespace=monitoring")
    for more, warned in (((), True), (named, False)):
        options = ("--dry-run=client", "--set", asked, *more)
        done = helm.run("install", "gw", str(helm.chart), *options)
        assert done.returncode == 0, done.stderr
        assert ("WARNING: monitoring.namespace is empty" in done.stdout) == warned


def test_keys_are_made_before_anything_needs_them_and_stay(helm: Helm) -> None:
    job = of_kind(helm.render(), "Job")["gw-patchbay-secrets"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    role = of_kind(helm.render(), "Role")["gw-patchbay-secrets"]
    rights = {(verb, *r.get("resourceNames", ())) for r in role["rules"] for verb in r["verbs"]}
    once = [f"gw-patchbay-{name}" for name in ("roots", "client-key", "management-key")]
    assert rights == {("create",), ("get", *once), ("patch", "gw-patchbay-executor-keys")}


def test_every_pod_can_be_sent_to_nodes_of_ones_choice(helm: Helm) -> None:
    """Where all nodes are tainted, a first step or a Redis without tolerations would wait for ever."""
    place = {
        "nodeSelector": {"pool": "gateway"},
        "tolerations": [{"key": "gateway", "operator": "Exists"}],
    }
    values = dict.fromkeys((*COMPONENTS, "redis"), place)
    pods = pods_of(helm.render(values=values))
    assert {"gw-patchbay-redis", "gw-patchbay-secrets", "gw-patchbay-test"} <= pods.keys()
    for name, pod in pods.items():
        assert {key: pod.get(key) for key in place} == place, name


@pytest.mark.parametrize(
    ("redis", "wanted"),
    [
        ({}, 402653184),
        ({"resources": {"limits": {"memory": "2Gi"}}, "maxMemoryPercent": 50}, 1 << 30),
        ({"resources": {"limits": {"memory": "1.5Gi"}}}, 1207959552),
        ({"resources": {"limits": {"memory": "400M"}}}, 300_000_000),
        ({"resources": {"limits": {"memory": 1 << 30}}}, 805306368),
        ({"resources": {"limits": {"memory": None}}}, 0),
        ({"maxMemoryPercent": 0}, 0),
    ],
)
def test_valkey_refuses_writes_before_it_reaches_its_limit(
    helm: Helm, redis: dict[str, Any], wanted: int
) -> None:
    """A pod that is killed for its memory comes back with the same file and is killed again."""
    (container,) = pods_of(helm.render(values={"redis": redis}))["gw-patchbay-redis"]["containers"]
    args = container["args"]
    assert args[args.index("--maxmemory") + 1] == str(wanted)
    assert args[args.index("--maxmemory-policy") + 1] == "noeviction"


def test_secrets_of_ones_own_are_named_to_the_job_as_such(helm: Helm) -> None:
    """A misspelt name is an error then, and no new roots; keys of executors are made of yours."""
    for values, wanted in (
        ({}, set()),
        ({"secrets": {"existingRoots": "mine"}}, {"mine"}),
        (MATRIX["own keys"][1], {"roots", "client", "management"}),
    ):
        job = of_kind(helm.render(values=values), "Job")["gw-patchbay-secrets"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        args = container["args"]
        assert {a.removeprefix("--yours=") for a in args if a.startswith("--yours=")} == wanted
        assert "--executor-keys=gw-patchbay-executor-keys" in args
