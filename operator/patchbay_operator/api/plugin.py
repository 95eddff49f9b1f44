"""
Plugin: a plugin of the gateway, run here from an image or reached at an address.

The keys of an entry of `plugins` in the configuration file, in camelCase, and how to run it. What a plugin's
author may change of the pod is listed, not merged: whatever is not in this model cannot be said, so the pod
stays within the restricted profile. Not here: the objects that it becomes (`objects`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from patchbay_gateway.kernel.config import CAPABILITIES
from patchbay_operator.api.fields import (
    OPAQUE,
    Capability,
    Duration,
    Fields,
    Glob,
    LabelMap,
    Name,
    ObjectName,
    Quantity,
    SecretKey,
    Text,
    keyed_by,
    rules,
)
from patchbay_operator.api.status import Status

Globs = Annotated[tuple[Glob, ...], Field(max_length=64)]
_KNOWN = "[" + ", ".join(f"'{c}'" for c in sorted(CAPABILITIES)) + "]"
_RESERVED = "['PATCHBAY_PLUGIN_KEY', 'PATCHBAY_PLUGIN_KEY_FILE', 'PATCHBAY_HOST_ADDRESS']"
_IMAGE_ONLY = ("autoscaling", "resources", "podTemplate", "command", "args", "env", "envFrom")


class Match(Fields):
    """Which requests it sees: all given keys must match, an empty one matches any."""

    formats: Globs = ()
    """Globs over the dialect."""
    models: Globs = ()
    """Globs over the model name."""
    routes: Globs = ()
    """Globs over the name of the ModelRoute."""
    client_keys: Globs = ()
    """Globs over the name of the client key."""


class HttpAccess(Fields):
    """HTTP through the gateway."""

    hosts: Globs = ()
    """Globs over hosts that it may call."""


class HostAccess(Fields):
    """What it may ask of the gateway."""

    models: bool = False
    """May run models."""
    http: HttpAccess = HttpAccess()
    """May call HTTP hosts."""
    auths: Literal["none", "own", "all"] = "none"
    """Whose credentials it may read."""


class ConfigFromKey(Fields):
    """A key of a Secret or ConfigMap in the same namespace."""

    name: ObjectName
    """Name of the object."""
    key: SecretKey = "config.yaml"
    """Key in its data."""


class ConfigFrom(Fields):
    """Its configuration, read from an object."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretRef) != has(self.configMapRef)",
                "configFrom needs one of secretRef and configMapRef, not both",
            )
        )
    )

    secret_ref: ConfigFromKey | None = None
    """A Secret."""
    config_map_ref: ConfigFromKey | None = None
    """A ConfigMap."""


class KeyRef(Fields):
    """A value of a Secret or ConfigMap."""

    name: ObjectName
    """Name of the object."""
    key: SecretKey
    """Key in its data."""
    optional: bool | None = None
    """Whether the pod starts without it."""


class FieldRef(Fields):
    """A field of the pod itself."""

    field_path: Annotated[str, Field(max_length=253)]
    """As `metadata.name`."""


class EnvSource(Fields):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)]"
                    ".filter(x, x).size() == 1"
                ),
                "valueFrom needs one of secretKeyRef, configMapKeyRef and fieldRef",
            )
        )
    )

    secret_key_ref: KeyRef | None = None
    """A value of a Secret."""
    config_map_key_ref: KeyRef | None = None
    """A value of a ConfigMap."""
    field_ref: FieldRef | None = None
    """A field of the pod."""


class EnvVar(Fields):
    """A variable of the container's environment."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(has(self.value) && has(self.valueFrom))", "give value or valueFrom, not both"),
            (
                f"!(self.name in {_RESERVED})",
                "the operator sets this variable itself; leave it out",
            ),
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=8192)] | None = None
    """Its value."""
    value_from: EnvSource | None = None
    """Or where the value comes from."""


class EnvFromRef(Fields):
    """All values of an object."""

    name: ObjectName
    """Name of the object."""
    optional: bool | None = None
    """Whether the pod starts without it."""


class EnvFrom(Fields):
    """All values of a Secret or ConfigMap as variables."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretRef) != has(self.configMapRef)",
                "envFrom needs one of secretRef and configMapRef, not both",
            )
        )
    )

    prefix: Annotated[str, Field(max_length=128)] | None = None
    """Put before each name."""
    secret_ref: EnvFromRef | None = None
    """A Secret."""
    config_map_ref: EnvFromRef | None = None
    """A ConfigMap."""


class Autoscaling(Fields):
    """A HorizontalPodAutoscaler over the Plugin's own scale."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.maxReplicas",
                "autoscaling.minReplicas is larger than maxReplicas",
            )
        )
    )

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Never fewer pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Never more pods."""
    target_cpu_utilization: Annotated[int, Field(ge=1, le=1000, alias="targetCPUUtilization")] = 70
    """Percent of the requested CPU that the pods are kept at; needs resources.requests.cpu."""
    target_open_streams: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Open streams per pod; needs a metrics adapter that serves `patchbay_plugin_open_streams`."""


class Resources(Fields):
    """CPU and memory of the container."""

    requests: Annotated[dict[str, Quantity], Field(json_schema_extra={"maxProperties": 16})] = {}
    """What the pod is sure of."""
    limits: Annotated[dict[str, Quantity], Field(json_schema_extra={"maxProperties": 16})] = {}
    """What it may not exceed."""


class ProbeTiming(Fields):
    """Times of a probe."""

    initial_delay_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Before the first."""
    period_seconds: Annotated[int, Field(ge=1, le=300)] | None = None
    """Between two."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] | None = None
    """How long an answer may take."""
    failure_threshold: Annotated[int, Field(ge=1, le=100)] | None = None
    """Failures in a row that count."""


class Probes(Fields):
    """The probes ask grpc.health.v1 at the plugin's port."""

    readiness: ProbeTiming = ProbeTiming()
    """Whether it takes calls."""
    liveness: ProbeTiming = ProbeTiming()
    """Whether it must be started anew."""
    startup: ProbeTiming = ProbeTiming()
    """How long it may take to start."""


class Toleration(Fields):
    """A taint that the pods bear."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; none means all."""
    operator: Literal["Exists", "Equal"] | None = None
    """How the value is compared."""
    value: Annotated[str, Field(max_length=253)] | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint."""
    toleration_seconds: int | None = None
    """How long NoExecute is borne."""


class Volume(Fields):
    """A volume of one of the kinds that the restricted profile allows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.projected), "
                    "has(self.persistentVolumeClaim), has(self.csi), has(self.ephemeral)]"
                    ".filter(x, x).size() == 1"
                ),
                (
                    "a volume needs one of configMap, secret, emptyDir, projected, persistentVolumeClaim, "
                    "csi and ephemeral"
                ),
            )
        )
    )

    name: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Its name; those beginning with patchbay- are the operator's."""
    config_map: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    secret: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    empty_dir: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    projected: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    persistent_volume_claim: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = (
        None
    )
    """As in a pod."""
    csi: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    ephemeral: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""


class VolumeMount(Fields):
    """Where a volume appears in the container."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the volume."""
    mount_path: Annotated[str, Field(max_length=1024)]
    """Where it appears."""
    sub_path: Annotated[str, Field(max_length=1024)] | None = None
    """A part of it."""
    read_only: bool | None = None
    """Whether it can only be read."""


class PodTemplate(Fields):
    """What may be added to the pods. The security context is not among it."""

    labels: LabelMap = {}
    """More labels; those of the operator win."""
    annotations: LabelMap = {}
    """More annotations."""
    node_selector: LabelMap = {}
    """Labels that the node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods bear."""
    affinity: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """As in a pod."""
    topology_spread_constraints: (
        Annotated[
            tuple[Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)], ...],
            Field(max_length=8),
        ]
        | None
    ) = None
    """As in a pod; without, pods spread over zones and nodes where that is possible."""
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    """Its PriorityClass."""
    runtime_class_name: Annotated[str, Field(max_length=253)] | None = None
    """Its RuntimeClass."""
    image_pull_secrets: Annotated[tuple[EnvFromRef, ...], Field(max_length=16)] = ()
    """Secrets for the registry."""
    volumes: Annotated[
        tuple[Volume, ...], Field(max_length=32, json_schema_extra=keyed_by("name"))
    ] = ()
    """More volumes."""
    volume_mounts: Annotated[
        tuple[VolumeMount, ...], Field(max_length=32, json_schema_extra=keyed_by("mountPath"))
    ] = ()
    """Where they appear."""


class PluginSpec(Fields):
    """The plugin, and how to run it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.image) != has(self.address)",
                (
                    "set image to run the plugin here, or address to use one that runs already; "
                    "one of the two"
                ),
            ),
            (
                "!(has(self.config) && has(self.configFrom))",
                "config and configFrom exclude each other; keep one",
            ),
            (
                "has(oldSelf.id) == has(self.id) && (!has(self.id) || self.id == oldSelf.id)",
                "id cannot be changed: keys and usage belong to it; create another Plugin",
            ),
            (
                f"!has(self.failurePolicies) || self.failurePolicies.all(c, c in {_KNOWN})",
                (
                    "failurePolicies has an unknown capability; kubectl explain "
                    "plugin.spec.capabilities lists them"
                ),
            ),
            (
                f"!has(self.timeouts) || self.timeouts.all(c, c in {_KNOWN})",
                (
                    "timeouts has an unknown capability; kubectl explain "
                    "plugin.spec.capabilities lists them"
                ),
            ),
            *(
                (
                    f"!(has(self.address) && has(self.{field}))",
                    (
                        f"{field} is for a plugin that runs here: remove it, or set image instead "
                        "of address"
                    ),
                )
                for field in _IMAGE_ONLY
            ),
            (
                (
                    "!has(self.autoscaling) || has(self.autoscaling.targetOpenStreams) || "
                    "(has(self.resources) && has(self.resources.requests) && "
                    "'cpu' in self.resources.requests)"
                ),
                "autoscaling on CPU compares with the request: set resources.requests.cpu",
            ),
            (
                "!has(self.drain) || duration(self.drain) <= duration('6h')",
                "drain is at most 6h",
            ),
        )
    )

    id: Name | None = None
    """As the plugin names itself; absent: the name of this resource. It cannot be changed."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image that serves it."""
    address: (
        Annotated[
            str, Field(max_length=300, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):\d{1,5}$")
        ]
        | None
    ) = None
    """host:port of one that runs already; every address of the host is used."""
    priority: int = 0
    """Larger first; ties by id."""
    enabled: bool = True
    """Switches it off without losing the resource."""
    config: Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)] | None = None
    """Its own configuration; Patchbay passes it on as YAML and does not look inside."""
    config_from: ConfigFrom | None = None
    """Its own configuration, from a Secret or ConfigMap."""
    match: Match = Match()
    """Which requests it sees."""
    capabilities: Annotated[
        tuple[Capability, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Which of its capabilities are used; empty means all that it declares."""
    failure_policies: Annotated[
        dict[str, Literal["Fail", "Ignore"]], Field(json_schema_extra={"maxProperties": 32})
    ] = {}
    """Capability to Fail or Ignore."""
    timeouts: Annotated[dict[str, Duration], Field(json_schema_extra={"maxProperties": 32})] = {}
    """Capability to deadline."""
    host_access: HostAccess = HostAccess()
    """What it may ask of the gateway."""
    public: bool = False
    """Serve its resource pages on the client port."""

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As in a pod."""
    command: Annotated[tuple[Text, ...], Field(max_length=64)] | None = None
    """Instead of the image's entry point."""
    args: Annotated[tuple[Text, ...], Field(max_length=64)] | None = None
    """Arguments."""
    env: (
        Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=keyed_by("name"))]
        | None
    ) = None
    """Environment."""
    env_from: Annotated[tuple[EnvFrom, ...], Field(max_length=16)] | None = None
    """Environment from whole Secrets and ConfigMaps."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 7003
    """Port of its gRPC server."""
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of its /metrics, if it has one; scraped if the chart's monitoring is on."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pods; kubectl scale and autoscaling write it. Leave it out of files when autoscaling is on."""
    autoscaling: Autoscaling | None = None
    """Changes replicas with the load."""
    resources: Resources | None = None
    """CPU and memory."""
    probes: Probes = Probes()
    """Times of the health probes."""
    drain: Duration = "600s"
    """How long open streams may go on when a pod stops."""
    egress_hosts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=64)
    ] = ()
    """Hosts that it calls; where Cilium enforces policies it reaches only these."""
    pod_template: PodTemplate | None = None
    """Additions to its pods."""


class PluginStatus(Status):
    """What the operator saw of it."""

    plugin_id: Annotated[str, Field(max_length=128)] | None = None
    """Id under which it is known."""
    replicas: int = 0
    """Pods that there are."""
    ready_replicas: int = 0
    """Pods that take calls."""
    selector: Annotated[str, Field(max_length=4096)] | None = None
    """Labels of its pods, for whoever scales it."""
    config_hash: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the configuration that it was given."""
