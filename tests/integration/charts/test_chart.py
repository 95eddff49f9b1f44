"""The chart of the gateway, rendered by the real Helm over a matrix of values."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.harness.helm import CHARTS, Helm, find_helm

from patchbay_gateway.kernel import config
from patchbay_operator.access import role_name
from patchbay_operator.installation import Installation
from patchbay_operator.objects.naming import selector

pytestmark = pytest.mark.requires("helm")

PRODUCTION = str(CHARTS / "patchbay" / "values-production.yaml")
COMPONENTS = ("edge", "scheduler", "executors", "usage", "operator")
MATRIX: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "defaults": ((), {}, ()),
    "production": (("-f", PRODUCTION), {}, ("monitoring.coreos.com/v1",)),
    "own keys": (
        (),
        {
            "secrets": {
                "create": False,
                "existingRoots": "roots",
                "existingClientKey": "client",
                "existingManagementKey": "management",
            },
            "redis": {"enabled": False, "existingSecret": "redis"},
        },
        (),
    ),
    "without volumes and policies": (
        (),
        {
            "redis": {"persistence": {"enabled": False}},
            "usage": {"persistence": {"enabled": False}},
            "networkPolicy": {"enabled": False},
        },
        (),
    ),
    "exposed": (
        (),
        {
            "ingress": {
                "enabled": True,
                "className": "x",
                "hosts": [{"host": "llm.example", "paths": ["/"]}],
                "tls": [{"hosts": ["llm.example"], "secretName": "tls"}],
            },
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "gateway"}],
                "hostnames": ["llm.example"],
            },
            "edge": {"service": {"type": "NodePort", "nodePort": 30080}},
            "prices": [{"model": "*", "currency": "USD", "per_million": {"input_tokens": "1"}}],
        },
        ("gateway.networking.k8s.io/v1/HTTPRoute",),
    ),
}
MATRIX["certificates of ours"] = ((), {"tls": {"enabled": True, "existingSecret": "tls"}}, ())
MATRIX["certificates of cert-manager"] = (
    (),
    {
        "tls": {
            "enabled": True,
            "certManager": {"enabled": True, "issuerRef": {"name": "patchbay", "kind": "Issuer"}},
        }
    },
    ("cert-manager.io/v1",),
)
FOREIGN = {"ServiceMonitor", "PrometheusRule", "HTTPRoute", "Certificate"}


@pytest.fixture(scope="module")
def helm() -> Helm:
    return Helm(find_helm())


@pytest.fixture(scope="module", params=MATRIX)
def rendered(request: pytest.FixtureRequest, helm: Helm) -> list[dict[str, Any]]:
    options, values, apis = MATRIX[request.param]
    return helm.render(*options, values=values, apis=apis)


def _of(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def _pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for document in documents:
        if document["kind"] == "Pod":
            found[document["metadata"]["name"]] = document["spec"]
        elif document["kind"] in {"Deployment", "StatefulSet", "Job"}:
            found[document["metadata"]["name"]] = document["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("chart", ["patchbay", "patchbay-crds"])
def test_chart_satisfies_the_linter(helm: Helm, chart: str) -> None:
    done = helm.run("lint", "--strict", str(CHARTS / chart))
    assert done.returncode == 0, done.stdout + done.stderr


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
    pods = _pods(rendered)
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
    with_token = {n for n, p in _pods(rendered).items() if p["automountServiceAccountToken"]}
    assert with_token <= {"gw-patchbay-operator", "gw-patchbay-scheduler", "gw-patchbay-secrets"}
    assert {"gw-patchbay-operator", "gw-patchbay-scheduler"} <= with_token


def test_selectors_are_name_instance_and_component(rendered: list[dict[str, Any]]) -> None:
    """They are immutable: a fourth label could never be taken back."""
    for kind in ("Deployment", "StatefulSet"):
        for document in _of(rendered, kind).values():
            labels = document["spec"]["selector"]["matchLabels"]
            assert set(labels) == {
                f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")
            }
            assert labels.items() <= document["spec"]["template"]["metadata"]["labels"].items()


def test_grace_outlasts_the_drain(rendered: list[dict[str, Any]]) -> None:
    edge = _pods(rendered)["gw-patchbay-edge"]
    (container,) = edge["containers"]
    drain = next(e["value"] for e in container["env"] if e["name"] == "PATCHBAY_DRAIN")
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert edge["terminationGracePeriodSeconds"] >= sleep + int(drain) + 15


def test_executors_are_told_their_drain(helm: Helm) -> None:
    values = {"executors": {"drainSeconds": 1200, "terminationGracePeriodSeconds": 1230}}
    (container,) = _pods(helm.render(values=values))["gw-patchbay-executors"]["containers"]
    assert {"name": "PATCHBAY_DRAIN", "value": "1200"} in container["env"]


def test_old_executors_and_schedulers_stay_until_new_ones_are_known(
    rendered: list[dict[str, Any]],
) -> None:
    """Edges learn an address within seconds; with one replica the old one must serve so long."""
    for name, document in _of(rendered, "Deployment").items():
        waits = name in {"gw-patchbay-executors", "gw-patchbay-scheduler"}
        assert document["spec"].get("minReadySeconds", 0) == (10 if waits else 0), name


def test_replicas_are_left_to_the_autoscaler(rendered: list[dict[str, Any]]) -> None:
    scaled = {
        d["spec"]["scaleTargetRef"]["name"]
        for d in _of(rendered, "HorizontalPodAutoscaler").values()
    }
    for name, document in _of(rendered, "Deployment").items():
        assert ("replicas" in document["spec"]) == (name not in scaled), name


def test_autoscalers_may_count_open_streams(helm: Helm) -> None:
    """By the names that the processes show; without it only CPU counts."""
    wish = {"enabled": True, "targetOpenStreams": 40}
    found = _of(
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
    data = _of(rendered, "ConfigMap")["gw-patchbay-config"]["data"]
    found = config.parse(data["patchbay.yaml"], env={})
    assert [p.name for p in found.providers] == ["echo"]
    assert [k.name for k in found.client_keys] == ["first"]


def test_secrets_are_never_in_the_manifest(rendered: list[dict[str, Any]]) -> None:
    assert not _of(rendered, "Secret")


def test_each_component_gets_only_its_own_roots(rendered: list[dict[str, Any]]) -> None:
    wanted = {
        "edge": {"cluster"},
        "scheduler": {"store", "plugins", "cluster"},
        "usage": {"cluster"},
        "operator": {"plugins", "cluster"},
        "executors": set(),
    }
    for component, roots in wanted.items():
        volumes = _pods(rendered)[f"gw-patchbay-{component}"]["volumes"]
        items = [v["secret"].get("items", []) for v in volumes if v["name"] == "roots"]
        assert {item["key"] for entry in items for item in entry} == roots, component


def test_scheduler_may_read_only_what_the_operators_role_names(
    rendered: list[dict[str, Any]],
) -> None:
    (binding,) = [
        b
        for b in _of(rendered, "RoleBinding").values()
        if any(s["name"] == "gw-patchbay-scheduler" for s in b["subjects"])
    ]
    assert binding["roleRef"]["name"] == role_name(Installation(namespace="gateway", name="gw"))
    # The rules are the operator's; the Role itself goes with the release.
    assert "rules" not in _of(rendered, "Role")["gw-credentials"]
    assert "spec" not in _of(rendered, "Lease")["patchbay-operator"]


def test_operator_has_no_rights_beyond_its_namespace_and_no_wildcards(
    rendered: list[dict[str, Any]],
) -> None:
    assert not _of(rendered, "ClusterRole")
    assert not _of(rendered, "ClusterRoleBinding")
    for role in _of(rendered, "Role").values():
        for rule in role.get("rules", ()):
            for part in ("apiGroups", "resources", "verbs"):
                assert "*" not in rule[part], role["metadata"]["name"]
            if "escalate" in rule["verbs"]:
                assert rule["resourceNames"] == ["gw-credentials"]
            if "secrets" in rule["resources"]:
                assert "delete" not in rule["verbs"]


def test_network_is_closed_but_for_what_is_named(helm: Helm) -> None:
    policies = _of(helm.render(), "NetworkPolicy")
    assert policies["gw-patchbay-default-deny"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["gw-patchbay-default-deny"]["spec"]
    executors = policies["gw-patchbay-executors"]["spec"]
    (world,) = [
        rule for rule in executors["egress"] if any("ipBlock" in to for to in rule.get("to", ()))
    ]
    assert world["ports"] == [{"protocol": "TCP", "port": 443}]
    denied = world["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(denied)
    callers = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in executors["ingress"]
        for peer in rule["from"]
        if rule["ports"][0]["port"] == 7003
    ]
    assert sorted(callers) == ["edge", "scheduler", "usage"]
    # The edge reaches plugins by the labels that the operator gives them.
    edge = json.dumps(policies["gw-patchbay-edge"]["spec"]["egress"])
    labels = selector("any", "gw")
    assert f'"app.kubernetes.io/component": "{labels["app.kubernetes.io/component"]}"' in edge


def _egress(policies: dict[str, dict[str, Any]], component: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = policies[f"gw-patchbay-{component}"]["spec"]["egress"]
    return rules


def test_edges_and_schedulers_reach_what_they_call_for_plugins(helm: Helm) -> None:
    """The HTTP of hostAccess is theirs to make; metadata and private ranges stay closed."""
    policies = _of(helm.render(), "NetworkPolicy")
    executors = [r for r in _egress(policies, "executors") if "ipBlock" in json.dumps(r)]
    for component in ("edge", "scheduler"):
        assert [r for r in _egress(policies, component) if "ipBlock" in json.dumps(r)] == executors
    assert "ipBlock" not in json.dumps(_egress(policies, "usage"))


def test_api_server_is_reached_on_the_ports_that_clusters_use(helm: Helm) -> None:
    """Minikube listens on 8443, MicroK8s on 16443, and policies see that port, not the Service's."""
    policies = _of(helm.render(), "NetworkPolicy")
    wanted = [{"protocol": "TCP", "port": port} for port in (443, 6443, 8443, 16443)]
    for component in ("operator", "scheduler", "secrets"):
        assert {"ports": wanted} in _egress(policies, component), component
    assert {"ports": wanted} not in _egress(policies, "edge")


def test_resolvers_are_reached_where_openshift_has_them(helm: Helm) -> None:
    """Policies see the port that a resolver listens on, not the Service's."""
    policies = _of(helm.render(), "NetworkPolicy")
    wanted = [
        {"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")
    ]
    for component in (*COMPONENTS, "secrets", "test"):
        assert {"ports": wanted} in _egress(policies, component), component


def test_plugins_that_run_elsewhere_are_reached_and_may_call_back(helm: Helm) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "filters"}}}
    values = {"networkPolicy": {"plugins": [peer]}}
    policies = _of(helm.render(values=values), "NetworkPolicy")
    for component, port in (("edge", 7000), ("scheduler", 7001)):
        assert any(peer in rule.get("to", ()) for rule in _egress(policies, component))
        (callbacks,) = [
            rule
            for rule in policies[f"gw-patchbay-{component}"]["spec"]["ingress"]
            if rule["ports"][0]["port"] == port
        ]
        assert peer in callbacks["from"]
    for component in ("executors", "operator", "redis"):
        assert "filters" not in json.dumps(policies[f"gw-patchbay-{component}"]["spec"])


def test_usage_reaches_schedulers_and_the_plugins_that_it_tells(helm: Helm) -> None:
    """It asks a scheduler for plugins' keys; without either, usage plugins hear of nothing."""
    policies = _of(helm.render(), "NetworkPolicy")
    reached = json.dumps(_egress(policies, "usage"))
    for component in ("scheduler", "executors", "plugin"):
        assert f'"app.kubernetes.io/component": "{component}"' in reached
    for component in ("scheduler", "executors"):
        served = json.dumps(policies[f"gw-patchbay-{component}"]["spec"]["ingress"])
        assert '"app.kubernetes.io/component": "usage"' in served


def test_ranges_of_both_families_may_be_denied(helm: Helm) -> None:
    values = {"networkPolicy": {"denyRanges": ["203.0.113.0/24", "2001:db8::/32"]}}
    policies = _of(helm.render(values=values), "NetworkPolicy")
    blocks = {
        to["ipBlock"]["cidr"]: to["ipBlock"]["except"]
        for rule in _egress(policies, "executors")
        for to in rule.get("to", ())
        if "ipBlock" in to
    }
    assert "203.0.113.0/24" in blocks["0.0.0.0/0"]
    assert "2001:db8::/32" in blocks["::/0"]
    assert not [r for r in blocks["0.0.0.0/0"] if ":" in r]


def test_named_clients_do_not_shut_the_charts_own_test_out(helm: Helm) -> None:
    values: dict[str, Any] = {"networkPolicy": {"clients": [{"namespaceSelector": {}}]}}
    edge = _of(helm.render(values=values), "NetworkPolicy")["gw-patchbay-edge"]["spec"]
    (requests,) = [r for r in edge["ingress"] if r["ports"][0]["port"] == 8080]
    test = _of(helm.render(), "Pod")["gw-patchbay-test"]["metadata"]["labels"]
    (allowed,) = [p["podSelector"]["matchLabels"] for p in requests["from"] if "podSelector" in p]
    assert allowed.items() <= test.items()


def test_rules_of_ones_own_reach_every_component(helm: Helm) -> None:
    rule = {"ports": [{"protocol": "TCP", "port": 25061}]}
    policies = _of(helm.render(values={"networkPolicy": {"extraEgress": [rule]}}), "NetworkPolicy")
    for component in COMPONENTS:
        assert rule in _egress(policies, component), component


def test_replicas_have_a_disruption_budget(helm: Helm) -> None:
    assert not _of(helm.render(), "PodDisruptionBudget")
    many = helm.render("-f", PRODUCTION)
    assert set(_of(many, "PodDisruptionBudget")) == {f"gw-patchbay-{c}" for c in COMPONENTS}


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
        pods = _pods(documents)
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
        made = _of(documents, "Certificate")
        assert set(made) == ({secret, of_plugins} if apis else set())
        for certificate in made.values():
            assert certificate["spec"]["dnsNames"] == ["patchbay"]
            assert {"server auth", "client auth"} <= set(certificate["spec"]["usages"])
    assert "tls" not in json.dumps(_pods(helm.render())["gw-patchbay-edge"])


def test_monitoring_waits_for_its_definitions(helm: Helm) -> None:
    on = {
        "monitoring": {
            "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {}},
            "prometheusRule": {"enabled": True, "labels": {}},
        }
    }
    assert not _of(helm.render(values=on), "ServiceMonitor")
    there = helm.render(values=on, apis=("monitoring.coreos.com/v1",))
    assert _of(there, "ServiceMonitor")
    assert _of(there, "PrometheusRule")


def test_notes_say_that_a_prometheus_elsewhere_is_kept_out(helm: Helm) -> None:
    asked = "monitoring.serviceMonitor.enabled=true"
    named = ("--set", "monitoring.namespace=monitoring")
    for more, warned in (((), True), (named, False)):
        options = ("--dry-run=client", "--set", asked, *more)
        done = helm.run("install", "gw", str(helm.chart), *options)
        assert done.returncode == 0, done.stderr
        assert ("WARNING: monitoring.namespace is empty" in done.stdout) == warned


def test_keys_are_made_before_anything_needs_them_and_stay(helm: Helm) -> None:
    job = _of(helm.render(), "Job")["gw-patchbay-secrets"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    role = _of(helm.render(), "Role")["gw-patchbay-secrets"]
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
    pods = _pods(helm.render(values=values))
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
    (container,) = _pods(helm.render(values={"redis": redis}))["gw-patchbay-redis"]["containers"]
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
        job = _of(helm.render(values=values), "Job")["gw-patchbay-secrets"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        args = container["args"]
        assert {a.removeprefix("--yours=") for a in args if a.startswith("--yours=")} == wanted
        assert "--executor-keys=gw-patchbay-executor-keys" in args


def test_templates_are_pure() -> None:
    for path in (CHARTS / "patchbay" / "templates").rglob("*"):
        if path.is_file():
            text = path.read_text()
            for word in ("lookup ", "randAlpha", "genCA", "genSelfSigned", "now "):
                assert f"{{{{ {word}" not in text, path
                assert f"({word}" not in text, path


def test_release_stays_far_below_the_bound_of_a_secret(helm: Helm) -> None:
    """Helm keeps chart and manifest in one Secret of at most 1 MiB, compressed, in base64 twice."""
    for chart in ("patchbay", "patchbay-crds"):
        files = [p for p in (CHARTS / chart).rglob("*") if p.is_file()]
        stored = b"".join(base64.b64encode(Path(p).read_bytes()) for p in files)
        stored += Helm(helm._program, chart).template().stdout.encode()
        assert len(base64.b64encode(gzip.compress(stored))) < 300_000


def test_definitions_stay_when_their_chart_goes(helm: Helm) -> None:
    crds = Helm(helm._program, "patchbay-crds")
    for document in crds.render():
        assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert (
            document["spec"]["versions"][0].get("selectableFields")
            or document["spec"]["names"]["kind"] == "ModelRoute"
        )
    assert "annotations" not in crds.render(values={"keep": False})[0]["metadata"]


def test_readme_and_schema_are_current() -> None:
    import subprocess  # noqa: PLC0415 - of this test alone
    import sys  # noqa: PLC0415 - the same

    root = CHARTS.parent
    done = subprocess.run(
        [sys.executable, root / "scripts" / "chart", "--check"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_used() -> None:
    values = yaml.safe_load((CHARTS / "patchbay" / "values.yaml").read_text())
    text = "\n".join(
        p.read_text() for p in (CHARTS / "patchbay" / "templates").rglob("*") if p.is_file()
    )

    def names(part: Any) -> list[str]:
        if not isinstance(part, dict):
            return []
        return [n for k, v in part.items() for n in (k, *names(v))]

    free = {"config", "resources", "labels", "annotations"}
    leaves = {
        name for key, part in values.items() if key not in free for name in (key, *names(part))
    }
    unused = {n for n in leaves if f".{n}" not in text and f'"{n}"' not in text}
    assert unused <= {"requests", "limits", "cpu", "memory", "app", "grafana_dashboard"}
