"""
A Plugin's objects: `build_children(…)` returns every one of them, ready for server-side apply.

The number of pods has one writer: whoever scales, a person or the autoscaler, scales the Plugin, and its
number is copied into the Deployment. Not here: the pod (pod.py), policies of the network (network.py).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from patchbay_operator.api.fields import API_VERSION
from patchbay_operator.objects.naming import (
    child_name,
    key_secret_name,
    labels,
    owned,
    selector,
)
from patchbay_operator.objects.network import cilium_policy, network_policy
from patchbay_operator.objects.pod import pod_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_operator.api.plugin import Autoscaling, PluginSpec
    from patchbay_operator.installation import Installation

_KNOWN_AFTER: Final = 10
"""Seconds after which the gateway knows a new pod by its address; an old one stays as long."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a Plugin's objects depend on besides its spec."""

    uid: str
    """Of the resource."""
    config: str
    """Its own configuration as YAML."""
    key: str
    """Content of its key file: lines of hex, the newest first."""
    versions: Mapping[str, str]
    """`Secret/name` or `ConfigMap/name` that its pods read → version."""


def build_children(
    plugin: str, spec: PluginSpec, installation: Installation, given: Given
) -> list[dict[str, Any]]:
    """Return the objects; none for a plugin that runs elsewhere."""
    if spec.image is None:
        return []
    owner = owned("Plugin", plugin, given.uid)
    metadata = {
        "namespace": installation.namespace,
        "labels": labels(plugin, installation.name),
        "ownerReferences": owner,
    }
    named = {"name": child_name(plugin), **metadata}
    chosen = selector(plugin, installation.name)
    children: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": named,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named,
            "data": {"config.yaml": given.config},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": key_secret_name(plugin), **metadata},
            "type": "Opaque",
            "data": {"key": base64.b64encode(given.key.encode()).decode()},
        },
        _service(named, spec, chosen),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": named,
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": chosen},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        },
    ]
    if installation.network_policies:
        children.append(network_policy(plugin, spec, installation, owner))
        if (cilium := cilium_policy(plugin, spec, installation, owner)) is not None:
            children.append(cilium)
    children.append(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named,
            "spec": {
                "replicas": spec.replicas,
                "revisionHistoryLimit": 3,
                "minReadySeconds": _KNOWN_AFTER,
                "progressDeadlineSeconds": 300,
                "selector": {"matchLabels": chosen},
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
                },
                "template": pod_template(
                    plugin, spec, installation, secrets=_digest(given.versions, given.key)
                ),
            },
        }
    )
    if spec.autoscaling is not None:
        children.append(_autoscaler(plugin, named, spec.autoscaling))
    return children


def _service(named: Mapping[str, Any], spec: PluginSpec, chosen: dict[str, str]) -> dict[str, Any]:
    ports = [
        {
            "name": "grpc",
            "port": spec.port,
            "targetPort": "grpc",
            "protocol": "TCP",
            "appProtocol": "kubernetes.io/h2c",
        }
    ]
    if spec.metrics_port:
        ports.append(
            {
                "name": "metrics",
                "port": spec.metrics_port,
                "targetPort": "metrics",
                "protocol": "TCP",
            }
        )
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dict(named),
        "spec": {"clusterIP": "None", "selector": chosen, "ports": ports},
    }


def _autoscaler(plugin: str, named: Mapping[str, Any], wish: Autoscaling) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = [
        {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {
                    "type": "Utilization",
                    "averageUtilization": wish.target_cpu_utilization,
                },
            },
        }
    ]
    if wish.target_open_streams is not None:
        metrics = [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "patchbay_plugin_open_streams"},
                    "target": {
                        "type": "AverageValue",
                        "averageValue": str(wish.target_open_streams),
                    },
                },
            }
        ]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": dict(named),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": "Plugin", "name": plugin},
            "minReplicas": wish.min_replicas,
            "maxReplicas": wish.max_replicas,
            "metrics": metrics,
            "behavior": {
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
                },
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                        {"type": "Pods", "value": 4, "periodSeconds": 15},
                    ],
                    "selectPolicy": "Max",
                },
            },
        },
    }


def _digest(versions: Mapping[str, str], key: str) -> str:
    """Return a name for what the pods read; another one rolls them."""
    digest = hashlib.sha256()
    for name in sorted(versions):
        digest.update(f"{name}={versions[name]}\n".encode())
    digest.update(key.encode())
    return digest.hexdigest()[:32]


def references(spec: PluginSpec) -> dict[str, bool]:
    """Return `Secret/name` or `ConfigMap/name` of what the pods read → whether they start only with it."""
    found: dict[str, bool] = {}

    def add(kind: str, name: str, *, optional: bool | None) -> None:
        found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", False) or not optional

    for variable in spec.env or ():
        source = variable.value_from
        if source is not None and (ref := source.secret_key_ref) is not None:
            add("Secret", ref.name, optional=ref.optional)
        if source is not None and (ref := source.config_map_key_ref) is not None:
            add("ConfigMap", ref.name, optional=ref.optional)
    for entry in spec.env_from or ():
        if entry.secret_ref is not None:
            add("Secret", entry.secret_ref.name, optional=entry.secret_ref.optional)
        if entry.config_map_ref is not None:
            add("ConfigMap", entry.config_map_ref.name, optional=entry.config_map_ref.optional)
    for volume in spec.pod_template.volumes if spec.pod_template else ():
        if volume.secret is not None and (name := volume.secret.get("secretName")):
            add("Secret", name, optional=volume.secret.get("optional"))
        if volume.config_map is not None and (name := volume.config_map.get("name")):
            add("ConfigMap", name, optional=volume.config_map.get("optional"))
    return found
