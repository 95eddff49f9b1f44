"""
A control plane with a node that only seems to be: the API server, real controllers and scheduler, and kwok.

Rollouts finish, endpoints come and go, autoscalers and the garbage collector work; no container runs, and
there are no metrics. Not here: the API server (apiserver.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import yaml
from tests.conftest import pick_port
from tests.harness.apiserver import ApiServer, assets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from patchbay_operator.cluster import LightkubeApi

_NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "fake",
        "annotations": {"kwok.x-k8s.io/node": "fake"},
        "labels": {
            "kubernetes.io/hostname": "fake",
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        },
    },
    "status": {
        "allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"},
        "capacity": {"cpu": "32", "memory": "256Gi", "pods": "110"},
    },
}


def _stage(kind: str, when: dict[str, str], then: dict[str, Any]) -> dict[str, Any]:
    """Return a step of kwok's: what becomes of a *kind* while *when* (path → operator and value) holds."""
    expressions = []
    for path, condition in when.items():
        operator, _, value = condition.partition(" ")
        expressions.append(
            {"key": path, "operator": operator, **({"values": [value]} if value else {})}
        )
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": f"{kind}-{len(when)}-{'-'.join(then)}".lower()},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": then,
        },
    }


_READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
_RUNS = """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
hostIP: 127.0.0.1
{{ with PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index . 0 | Quote }}
podIPs: [{ip: {{ index . 0 | Quote }}}]
{{ end }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
"""
_LIVES = """
{{ $now := Now | Quote }}
conditions:
- type: Ready
  status: "True"
  reason: Fake
  message: it seems to be
  lastHeartbeatTime: {{ $now }}
  lastTransitionTime: {{ $now }}
addresses: [{type: InternalIP, address: 127.0.0.1}]
"""
_GOING = ".metadata.deletionTimestamp"
_STAGES = (
    _stage("Node", {_READY: "NotIn True"}, {"statusTemplate": _LIVES}),
    _stage(
        "Pod",
        {_GOING: "DoesNotExist", ".status.phase": "In Pending", _READY: "NotIn True"},
        {"statusTemplate": _RUNS},
    ),
    _stage("Pod", {_GOING: "Exists"}, {"delete": True}),
)


class ControlPlane(ApiServer):
    """The whole of it."""

    def start_controllers(self) -> None:
        """Start what acts on objects; the collector learns late of definitions that come after this."""
        common = ("--kubeconfig", str(self.kubeconfig), "--leader-elect=false", "--secure-port=0")
        key = str(self._directory / "service-account.key")
        self._spawn(
            "kube-controller-manager",
            *common,
            *("--service-account-private-key-file", key, "--root-ca-file", str(self.authority)),
            *("--use-service-account-credentials=false", "--allocate-node-cidrs=false"),
            *("--horizontal-pod-autoscaler-sync-period", "1s", "--kube-api-qps", "200"),
            *("--kube-api-burst", "400", "--concurrent-gc-syncs", "5"),
        )
        self._spawn("kube-scheduler", *common)
        stages = self._directory / "stages.yaml"
        stages.write_text(yaml.safe_dump_all(_STAGES))
        self._spawn(
            "kwok",
            *("--config", str(stages), "--node-lease-duration-seconds", "40"),
            *("--kubeconfig", str(self.kubeconfig), "--manage-all-nodes=false"),
            *("--manage-nodes-with-annotation-selector", "kwok.x-k8s.io/node=fake"),
            *("--node-ip", "127.0.0.1", "--cidr", "10.245.0.1/24"),
            *("--server-address", f"127.0.0.1:{pick_port()}"),
        )

    async def node_is_ready(self, api: LightkubeApi) -> None:
        """Make the node and wait until it is ready."""
        await api._call("POST", "/api/v1/nodes", body=_NODE)
        deadline = time.monotonic() + 90
        while True:
            node = await api._call("GET", "/api/v1/nodes/fake")
            conditions = {c["type"]: c["status"] for c in node["status"].get("conditions", ())}
            if conditions.get("Ready") == "True":
                return
            assert time.monotonic() < deadline, self.logs()
            await asyncio.sleep(0.1)  # other processes' work; nothing tells when it is done

    def logs(self) -> str:
        """Return the ends of the logs."""
        names = ("kube-controller-manager", "kube-scheduler", "kwok")
        found = [(self._directory / f"{name}.log").read_text(errors="replace") for name in names]
        return "\n".join(text[-3000:] for text in found)


@contextlib.contextmanager
def running_control_plane(directory: Path) -> Iterator[ControlPlane]:
    """Run a control plane in *directory*, for now without controllers."""
    found = assets()
    assert found is not None
    plane = ControlPlane(directory, found)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
