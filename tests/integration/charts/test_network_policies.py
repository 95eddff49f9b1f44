"""Who may reach whom where the chart's network policies hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.charts.rendering import COMPONENTS, of_kind

from patchbay_operator.objects.naming import selector

if TYPE_CHECKING:
    from tests.harness.helm import Helm

pytestmark = pytest.mark.requires("helm")


def test_network_is_closed_but_for_what_is_named(helm: Helm) -> None:
    policies = of_kind(helm.render(), "NetworkPolicy")
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
    policies = of_kind(helm.render(), "NetworkPolicy")
    executors = [r for r in _egress(policies, "executors") if "ipBlock" in json.dumps(r)]
    for component in ("edge", "scheduler"):
        assert [r for r in _egress(policies, component) if "ipBlock" in json.dumps(r)] == executors
    assert "ipBlock" not in json.dumps(_egress(policies, "usage"))


def test_api_server_is_reached_on_the_ports_that_clusters_use(helm: Helm) -> None:
    """Minikube listens on 8443, MicroK8s on 16443, and policies see that port, not the Service's."""
    policies = of_kind(helm.render(), "NetworkPolicy")
    wanted = [{"protocol": "TCP", "port": port} for port in (443, 6443, 8443, 16443)]
    for component in ("operator", "scheduler", "secrets"):
        assert {"ports": wanted} in _egress(policies, component), component
    assert {"ports": wanted} not in _egress(policies, "edge")


def test_resolvers_are_reached_where_openshift_has_them(helm: Helm) -> None:
    """Policies see the port that a resolver listens on, not the Service's."""
    policies = of_kind(helm.render(), "NetworkPolicy")
    wanted = [
        {"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")
    ]
    for component in (*COMPONENTS, "secrets", "test"):
        assert {"ports": wanted} in _egress(policies, component), component


def test_plugins_that_run_elsewhere_are_reached_and_may_call_back(helm: Helm) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "filters"}}}
    values = {"networkPolicy": {"plugins": [peer]}}
    policies = of_kind(helm.render(values=values), "NetworkPolicy")
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
    policies = of_kind(helm.render(), "NetworkPolicy")
    reached = json.dumps(_egress(policies, "usage"))
    for component in ("scheduler", "executors", "plugin"):
        assert f'"app.kubernetes.io/component": "{component}"' in reached
    for component in ("scheduler", "executors"):
        served = json.dumps(policies[f"gw-patchbay-{component}"]["spec"]["ingress"])
        assert '"app.kubernetes.io/component": "usage"' in served


def test_ranges_of_both_families_may_be_denied(helm: Helm) -> None:
    values = {"networkPolicy": {"denyRanges": ["203.0.113.0/24", "2001:db8::/32"]}}
    policies = of_kind(helm.render(values=values), "NetworkPolicy")
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
    edge = of_kind(helm.render(values=values), "NetworkPolicy")["gw-patchbay-edge"]["spec"]
    (requests,) = [r for r in edge["ingress"] if r["ports"][0]["port"] == 8080]
    test = of_kind(helm.render(), "Pod")["gw-patchbay-test"]["metadata"]["labels"]
    (allowed,) = [p["podSelector"]["matchLabels"] for p in requests["from"] if "podSelector" in p]
    assert allowed.items() <= test.items()


def test_rules_of_ones_own_reach_every_component(helm: Helm) -> None:
    rule = {"ports": [{"protocol": "TCP", "port": 25061}]}
    policies = of_kind(
        helm.render(values={"networkPolicy": {"extraEgress": [rule]}}), "NetworkPolicy"
    )
    for component in COMPONENTS:
        assert rule in _egress(policies, component), component
