"""
What may talk to a plugin's pods, and what they may talk to.

In: edge, scheduler and usage on the plugin's port, and whoever scrapes metrics. Out: DNS, the callbacks of
edge and scheduler, and HTTPS to the world without private ranges and the metadata service. Names of hosts are
no part of NetworkPolicy; where Cilium runs, its own kind holds a plugin to its `egressHosts`. Not here: the
policies of the chart's own pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay_operator.installation import PRIVATE_RANGES, PRIVATE_RANGES_6
from patchbay_operator.objects.naming import child_name, labels, selector

if TYPE_CHECKING:
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.installation import Installation

# 5353: where OpenShift's resolvers listen, behind the Service's 53, which policies do not see.
_DNS: Final = [
    {"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")
]
_CALLERS: Final = ("edge", "scheduler", "usage")
_CALLBACKS: Final = (("edge", 7000), ("scheduler", 7001))


def network_policy(
    plugin: str, spec: PluginSpec, installation: Installation, owner: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the NetworkPolicy of a Plugin's pods."""
    ingress: list[dict[str, Any]] = [
        {
            "from": [_component(installation, component) for component in _CALLERS],
            "ports": [{"protocol": "TCP", "port": spec.port}],
        }
    ]
    if spec.metrics_port and installation.monitoring_namespace:
        namespace = {"kubernetes.io/metadata.name": installation.monitoring_namespace}
        ingress.append(
            {
                "from": [{"namespaceSelector": {"matchLabels": namespace}}],
                "ports": [{"protocol": "TCP", "port": spec.metrics_port}],
            }
        )
    egress: list[dict[str, Any]] = [{"ports": [dict(port) for port in _DNS]}]
    egress += [
        {
            "to": [_component(installation, component)],
            "ports": [{"protocol": "TCP", "port": port}],
        }
        for component, port in _CALLBACKS
    ]
    if not (installation.cilium and spec.egress_hosts):
        egress.append(_world(installation))
    if installation.allow_ranges:
        egress.append({"to": [{"ipBlock": {"cidr": cidr}} for cidr in installation.allow_ranges]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(plugin, installation, owner),
        "spec": {
            "podSelector": {"matchLabels": selector(plugin, installation.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def cilium_policy(
    plugin: str, spec: PluginSpec, installation: Installation, owner: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return Cilium's policy for the Plugin's egress hosts; None where there is nothing to say."""
    if not (installation.cilium and spec.egress_hosts):
        return None
    hosts = [
        {"matchPattern": host} if "*" in host else {"matchName": host} for host in spec.egress_hosts
    ]
    dns = {
        "toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system"}}],
        "toPorts": [
            {
                "ports": [{"port": "53", "protocol": "ANY"}],
                "rules": {"dns": [{"matchPattern": "*"}]},
            }
        ],
    }
    https = {
        "toFQDNs": hosts,
        "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}],
    }
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": _metadata(plugin, installation, owner),
        "spec": {
            "endpointSelector": {"matchLabels": selector(plugin, installation.name)},
            "egress": [dns, https],
        },
    }


def _metadata(
    plugin: str, installation: Installation, owner: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "name": child_name(plugin),
        "namespace": installation.namespace,
        "labels": labels(plugin, installation.name),
        "ownerReferences": owner,
    }


def _component(installation: Installation, component: str) -> dict[str, Any]:
    return {
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "patchbay",
                "app.kubernetes.io/instance": installation.name,
                "app.kubernetes.io/component": component,
            }
        }
    }


def _world(installation: Installation) -> dict[str, Any]:
    denied_4 = [*PRIVATE_RANGES, *(r for r in installation.deny_ranges if ":" not in r)]
    denied_6 = [*PRIVATE_RANGES_6, *(r for r in installation.deny_ranges if ":" in r)]
    return {
        "to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": denied_4}},
            {"ipBlock": {"cidr": "::/0", "except": denied_6}},
        ],
        "ports": [{"protocol": "TCP", "port": 443}],
    }
