"""
What is true of a resource, as conditions: pure, from what was decided and seen to `status`.

`Ready` sums up and its message is the one to read: it repeats the first aspect that is not as it should be.
`Stalled` means that only an edit helps, `Reconciling` that time will. A condition keeps its transition time
while its status stays. Not here: writing it (statuses.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from patchbay_operator.api.status import (
    ACCEPTED,
    AVAILABLE,
    PROGRAMMED,
    READY,
    RECONCILING,
    RESOLVED_REFS,
    STALLED,
)
from patchbay_operator.objects.naming import PLUGIN_LABEL
from patchbay_operator.verdicts import CONFIG_NOT_FOUND, SECRET_NOT_FOUND, Aspect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.plugins.instances import Instance
    from patchbay_operator.verdicts import Verdict

NEEDS_LOGIN: Final = "NeedsLogin"
"""The provider wants somebody to log in: no time and no edit of the resource helps."""
REFUSED: Final = "ObjectRefused"
"""The API server does not take an object that a Plugin becomes."""
DISABLED: Final = "Disabled"
"""Out of use because somebody wants it so."""

_WAITING: Final = frozenset({SECRET_NOT_FOUND, CONFIG_NOT_FOUND})
"""Reasons that may end without an edit of the resource."""
_SOON: Final = frozenset({"NotYetProgrammed", "NotYetRead", "RollingOut", "Pending", DISABLED})
"""Reasons of not being ready that warn of nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """A condition before it has a time."""

    type: str
    status: str
    reason: str
    message: str


def _said(kind: str, aspect: Aspect) -> Said:
    return Said(kind, "True" if aspect.ok else "False", aspect.reason, aspect.message)


def disabled_aspect(why: str) -> Aspect:
    """Return what is said of a resource that somebody took out of use."""
    return Aspect(ok=False, reason=DISABLED, message=why)


def summarise(
    verdict: Verdict,
    *,
    available: Aspect | None = None,
    programmed: Aspect | None,
    health: Said | None = None,
    serving: Aspect | None = None,
) -> list[Said]:
    """
    Return all conditions of a resource.

    Args:
        verdict: What was decided about it.
        available: Whether its pods serve; None for what has none.
        programmed: Whether every ready edge runs it; None for what was left out.
        health: A condition of its own kind, which does not count for Ready.
        serving: Why it serves nothing though the gateway runs it; None when it does.
    """
    said = [_said(ACCEPTED, verdict.accepted), _said(RESOLVED_REFS, verdict.resolved)]
    if available is not None:
        said.append(_said(AVAILABLE, available))
    if programmed is not None:
        said.append(_said(PROGRAMMED, programmed))
    else:
        text = verdict.waits or "it is not part of the configuration that the gateway runs on"
        reason = "WaitsForPods" if verdict.waits else "NotIncluded"
        said.append(Said(PROGRAMMED, "False", reason, text))
    failing = next((s for s in said if s.status != "True"), None)
    if failing is None and serving is not None and not serving.ok:
        failing = _said(READY, serving)
    if health is not None:
        said.append(health)
    if failing is None:
        said.append(Said(READY, "True", "Ready", "it serves"))
        said.append(Said(RECONCILING, "False", "Settled", ""))
        said.append(Said(STALLED, "False", "Settled", ""))
        return said
    said.append(Said(READY, "False", failing.reason, failing.message))
    edit = (
        not verdict.accepted.ok
        or (not verdict.resolved.ok and verdict.resolved.reason not in _WAITING)
        or failing.reason in {NEEDS_LOGIN, REFUSED}
    )
    waits = not edit and failing.reason != DISABLED
    said.append(
        Said(
            RECONCILING,
            "True" if waits else "False",
            failing.reason,
            failing.message if waits else "",
        )
    )
    said.append(
        Said(STALLED, "True" if edit else "False", failing.reason, failing.message if edit else "")
    )
    return said


def merge(
    previous: Sequence[Mapping[str, Any]], said: Sequence[Said], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """Return conditions with times: that of *previous* while a status stays, else *now* (RFC 3339)."""
    before = {c["type"]: c for c in previous}
    found = []
    for condition in said:
        known = before.get(condition.type)
        same = known is not None and known.get("status") == condition.status
        found.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": known["lastTransitionTime"] if same and known else now,
                "reason": condition.reason,
                "message": condition.message[:32768],
            }
        )
    return found


def transitions(
    previous: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """Return (type, reason, message) of Events worth posting: Ready changed its status or its reason."""
    before = {c["type"]: c for c in previous}
    found = []
    for condition in current:
        if condition["type"] != READY:
            continue
        known = before.get(READY)
        if known is None and condition["reason"] in {"NotYetProgrammed", "NotYetRead"}:
            continue
        if known is None or (known["status"], known["reason"]) != (
            condition["status"],
            condition["reason"],
        ):
            kind = "Normal" if condition["status"] == "True" else "Warning"
            if condition["reason"] in _SOON:
                kind = "Normal"
            found.append((kind, condition["reason"], condition["message"]))
    return found


def refused_aspect(what: str) -> Aspect:
    """Return what is said of a Plugin while the API server does not take one of its objects."""
    text = f"the API server refuses its {what}; correct the spec, or what forbids it; it is tried again"
    return Aspect(ok=False, reason=REFUSED, message=text)


def available_aspect(deployment: Mapping[str, Any] | None) -> Aspect:
    """Return whether a Plugin's pods serve, and what the Deployment says when they do not."""
    if deployment is None:
        return Aspect(ok=False, reason="NotDeployed", message="its Deployment is about to be made")
    wanted = deployment["spec"].get("replicas", 1)
    seen = deployment.get("status") or {}
    ready = int(seen.get("readyReplicas") or 0)
    if wanted == 0:
        return Aspect(ok=False, reason="ScaledToZero", message="no pods are wanted; scale it up")
    for condition in seen.get("conditions") or ():
        failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
        stuck = condition["type"] == "Progressing" and condition["status"] == "False"
        if failed or (stuck and not ready):
            text = f"{condition['message']}; kubectl get pods -l {PLUGIN_LABEL} tells more"
            return Aspect(ok=False, reason=condition["reason"], message=text)
    if ready == 0:
        return Aspect(
            ok=False,
            reason="RollingOut",
            message=f"0 of {wanted} pods are ready; kubectl describe pods tells why if it lasts",
        )
    return Aspect(ok=True, reason="Available", message=f"{ready} of {wanted} pods are ready")


def programmed_aspect(
    instances: Sequence[Instance], version: int, plugin_id: str, *, off: bool = False
) -> Aspect:
    """
    Return whether every ready edge runs *version* or a newer one, and has the plugin registered.

    With *off* that version leaves it out on purpose.
    """
    edges = [i for i in instances if i.kind == "edge" and i.ready]
    if not edges:
        text = "no edge of the gateway is ready; kubectl get pods tells why"
        return Aspect(ok=False, reason="NoEdges", message=text)
    behind = [i for i in edges if i.snapshot < version]
    if behind:
        text = f"{len(edges) - len(behind)} of {len(edges)} edges {'leave it out' if off else 'run it'}"
        return Aspect(ok=False, reason="NotYetProgrammed", message=text)
    if plugin_id:
        for edge in edges:
            state = edge.plugins.get(plugin_id, "ready")
            if state != "ready":
                return Aspect(
                    ok=False,
                    reason="NotRegistered",
                    message=f"the gateway does not use it: {state}",
                )
    text = f"{len(edges)} of {len(edges)} edges {'leave it out' if off else 'run it'}"
    return Aspect(ok=True, reason=DISABLED if off else "Programmed", message=text)
