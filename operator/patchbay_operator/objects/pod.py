"""
The pod of a plugin: its container, what the operator mounts, and what its author added.

It satisfies the restricted pod security standard whatever the resource says. Not here: the Deployment around
it (workload.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay_gateway.kernel.config.quantities import parse_duration
from patchbay_operator.objects.naming import child_name, key_secret_name, selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patchbay_operator.api.fields import Fields
    from patchbay_operator.api.plugin import PluginSpec, PodTemplate, ProbeTiming
    from patchbay_operator.installation import Installation

KEY_FILE: Final = "/var/run/patchbay/key/key"
TLS_DIR: Final = "/var/run/patchbay/tls"
CONFIG_DIR: Final = "/etc/patchbay"
SECRETS_ANNOTATION: Final = "patchbay.dev/secrets"
_GROUP_ID: Final = 65532
_TMP: Final = "/tmp"  # noqa: S108 - the container's own
_CONFINEMENT: Final = "container.apparmor.security.beta.kubernetes.io/"
"""Begins annotations that a kubelet still reads as part of the security context."""
_BEYOND_DRAIN: Final = 30
"""Seconds between the end of the drain and SIGKILL."""


def drain_seconds(spec: PluginSpec) -> int:
    """Return how long calls in flight may go on after SIGTERM."""
    return int(parse_duration(spec.drain))


def grace_seconds(spec: PluginSpec) -> int:
    """Return terminationGracePeriodSeconds: the drain and a little more."""
    return drain_seconds(spec) + _BEYOND_DRAIN


def pod_template(
    plugin: str, spec: PluginSpec, installation: Installation, *, secrets: str
) -> dict[str, Any]:
    """
    Return the pod template.

    Args:
        plugin: Name of the resource.
        spec: The resource.
        installation: What holds for all plugins.
        secrets: Digest of the versions of what the pod reads; a change of it rolls the pods.
    """
    extra = spec.pod_template
    more_labels = dict(extra.labels) if extra else {}
    annotations = {k: v for k, v in _annotations(extra) if not k.startswith(_CONFINEMENT)}
    annotations |= {
        SECRETS_ANNOTATION: secrets,
        "kubectl.kubernetes.io/default-container": "plugin",
    }
    pull = [*installation.image_pull_secrets, *(s.name for s in _pull_secrets(extra))]
    body: dict[str, Any] = {
        "serviceAccountName": child_name(plugin),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": _GROUP_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, installation)],
        "volumes": _volumes(plugin, extra, installation.tls_secret),
        "topologySpreadConstraints": _spread(plugin, installation, extra),
    }
    if pull:
        body["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull)]
    if extra is not None:
        for key in ("nodeSelector", "affinity", "priorityClassName", "runtimeClassName"):
            value = document(extra).get(key)
            if value:
                body[key] = value
        if extra.tolerations:
            body["tolerations"] = [document(t) for t in extra.tolerations]
    return {
        "metadata": {
            "labels": {
                **more_labels,
                **selector(plugin, installation.name),
                "app.kubernetes.io/part-of": "patchbay",
            },
            "annotations": annotations,
        },
        "spec": body,
    }


def _pull_secrets(extra: PodTemplate | None) -> Sequence[Any]:
    return extra.image_pull_secrets if extra else ()


def _annotations(extra: PodTemplate | None) -> Iterable[tuple[str, str]]:
    return extra.annotations.items() if extra else ()


def _container(spec: PluginSpec, installation: Installation) -> dict[str, Any]:
    ports = [{"name": "grpc", "containerPort": spec.port, "protocol": "TCP"}]
    if spec.metrics_port:
        ports.append({"name": "metrics", "containerPort": spec.metrics_port, "protocol": "TCP"})
    env: list[dict[str, Any]] = [
        {"name": "PATCHBAY_PLUGIN_KEY_FILE", "value": KEY_FILE},
        {"name": "PATCHBAY_HOST_ADDRESS", "value": installation.edge_callbacks},
        # What the SDK allows calls in flight; SIGKILL comes after.
        {"name": "PATCHBAY_DRAIN", "value": str(drain_seconds(spec))},
    ]
    if spec.metrics_port:
        # Where the SDK serves /metrics (patchbay/metrics.py).
        env.append({"name": "PATCHBAY_HEALTH_PORT", "value": str(spec.metrics_port)})
    mounts: list[dict[str, Any]] = [
        {"name": "patchbay-key", "mountPath": KEY_FILE.rpartition("/")[0], "readOnly": True},
        {"name": "patchbay-config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "patchbay-tmp", "mountPath": _TMP},
    ]
    if installation.tls_secret:
        env += [
            {"name": "PATCHBAY_TLS_DIR", "value": TLS_DIR},
            {"name": "PATCHBAY_TLS_NAME", "value": installation.tls_name},
        ]
        mounts.append({"name": "patchbay-tls", "mountPath": TLS_DIR, "readOnly": True})
    if spec.pod_template:
        wished = [document(m) for m in spec.pod_template.volume_mounts]
        # A list of mounts has each path once, a list of variables each name, or the API server refuses it.
        if any(mount["mountPath"] == _TMP for mount in wished):
            mounts = [mount for mount in mounts if mount["mountPath"] != _TMP]
        taken = {mount["mountPath"] for mount in mounts}
        mounts += [mount for mount in wished if mount["mountPath"] not in taken]
    own = {variable["name"] for variable in env}
    env = [document(e) for e in spec.env or () if e.name not in own] + env
    # A kubelet has no certificate; whether calls are welcome the gateway asks itself.
    asked = {"tcpSocket" if installation.tls_secret else "grpc": {"port": spec.port}}
    container: dict[str, Any] = {
        "name": "plugin",
        "image": spec.image,
        "ports": ports,
        "env": env,
        "volumeMounts": mounts,
        "startupProbe": _probe(asked, spec.probes.startup, period=1, failures=120),
        "readinessProbe": _probe(asked, spec.probes.readiness, period=2, failures=3),
        "livenessProbe": _probe(asked, spec.probes.liveness, period=10, failures=6),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    if spec.command is not None:
        container["command"] = list(spec.command)
    if spec.args is not None:
        container["args"] = list(spec.args)
    if spec.env_from:
        container["envFrom"] = [document(e) for e in spec.env_from]
    if spec.resources is not None and (resources := document(spec.resources)):
        container["resources"] = resources
    return container


def _probe(
    asked: Mapping[str, Any], timing: ProbeTiming, *, period: int, failures: int
) -> dict[str, Any]:
    return {
        **asked,
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
        **document(timing),
    }


def _volumes(plugin: str, extra: PodTemplate | None, tls_secret: str) -> list[dict[str, Any]]:
    own: list[dict[str, Any]] = [
        {
            "name": "patchbay-key",
            "secret": {"secretName": key_secret_name(plugin), "defaultMode": 0o440},
        },
        {"name": "patchbay-config", "configMap": {"name": child_name(plugin)}},
        {"name": "patchbay-tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    if tls_secret:
        secret = {"secretName": tls_secret, "defaultMode": 0o440}
        own.append({"name": "patchbay-tls", "secret": secret})
    names = {volume["name"] for volume in own}
    more = [document(v) for v in extra.volumes] if extra else []
    return own + [volume for volume in more if volume["name"] not in names]


def _spread(
    plugin: str, installation: Installation, extra: PodTemplate | None
) -> list[dict[str, Any]]:
    if extra is not None and extra.topology_spread_constraints is not None:
        return [dict(entry) for entry in extra.topology_spread_constraints]
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(plugin, installation.name)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def document(part: Fields) -> dict[str, Any]:
    """Return a part of a resource as it is written in YAML, without what is empty or absent."""
    found: Mapping[str, Any] = part.model_dump(by_alias=True, exclude_none=True, mode="json")
    return {key: value for key, value in found.items() if value not in ({}, [], ())}
