"""
Status of resources, written where it changed; Events where readiness did.

What is said comes from conditions.py and standing.py; here it is compared with what stands there. A change of
a condition is written at once; what changes often and means little (until when a credential rests, its last
error) at most every `QUIET` seconds for each resource. Not here: when to look (controller.py).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_operator.cluster import KINDS
from patchbay_operator.conditions import (
    available_aspect,
    disabled_aspect,
    merge,
    programmed_aspect,
    refused_aspect,
    summarise,
    transitions,
)
from patchbay_operator.gathering import RESOURCES
from patchbay_operator.objects.naming import (
    PLUGIN_LABEL,
    generated_key_name,
    selector,
    selector_text,
)
from patchbay_operator.resources import understand
from patchbay_operator.standing import details, refresh_said, serving_aspect
from patchbay_operator.verdicts import Aspect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.instances import Instance
    from patchbay_gateway.plugins.reports import Standing
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.cluster import KubeApi
    from patchbay_operator.conditions import Said
    from patchbay_operator.draft import Draft
    from patchbay_operator.installation import Installation
    from patchbay_operator.resources import Resource
    from patchbay_operator.verdicts import Verdict

QUIET: Final = 15.0
"""Seconds between two writes to one resource of what is no condition."""

_log = logs.get_logger("operator.statuses")


@dataclass(frozen=True, slots=True)
class Known:
    """All that statuses say something of."""

    draft: Draft
    held: Mapping[tuple[str, int], int]
    """(uid, generation) → first version that holds it."""
    instances: Sequence[Instance] = ()
    standings: Mapping[str, Standing] = field(default_factory=dict)
    """Credential → how schedulers see it."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Plugin → which of its objects the API server refuses, and why."""
    problem: str = ""
    """Why the last snapshot was not published."""
    judged: Mapping[tuple[str, str], tuple[str, int]] | None = None
    """(kind, name) → (uid, generation) that the verdict is about; None where nothing else can be."""


class Statuses:
    """
    The writer.

    Args:
        api: The namespace.
        installation: Names.
        clock: Time.
        serves: Called when a Plugin that waited for its pods has some.
        again: Called with the seconds after which to look again.
    """

    def __init__(
        self,
        api: KubeApi,
        installation: Installation,
        *,
        clock: Clock,
        serves: Callable[[], None],
        again: Callable[[float], None],
    ) -> None:
        self._api = api
        self._at = installation
        self._clock = clock
        self._serves = serves
        self._again = again
        self._written: dict[str, float] = {}
        """uid → when its status was written last, monotonic."""

    async def write(self, known: Known) -> None:
        """Write what changed. Raises what the API server raises."""
        deployments = {
            item["metadata"]["labels"].get(PLUGIN_LABEL): item
            for item in await self._api.list(
                "Deployment", labels=f"{PLUGIN_LABEL},app.kubernetes.io/instance={self._at.name}"
            )
        }
        uids = set()
        for kind in RESOURCES:
            for document in await self._api.list(kind):
                uids.add(document["metadata"]["uid"])
                if not document["metadata"].get("deletionTimestamp"):
                    await self._one(document, deployments, known)
        self._written = {uid: at for uid, at in self._written.items() if uid in uids}

    async def _one(
        self,
        document: dict[str, Any],
        deployments: Mapping[str, dict[str, Any]],
        known: Known,
    ) -> None:
        resource = understand(document)
        verdict = known.draft.verdicts.get(resource.key)
        if verdict is None:
            return
        mark = resource.uid, resource.generation
        if known.judged is not None and known.judged.get(resource.key) != mark:
            # It was changed since, or another took its name: what is said of it comes with the next draft.
            return
        before = document.get("status") or {}
        now = dt.datetime.fromtimestamp(self._clock.now(), dt.UTC)
        deployment = deployments.get(resource.name)
        status = {
            "observedGeneration": resource.generation,
            **self._fields(resource, deployment, known),
            "conditions": merge(
                before.get("conditions") or [],
                self._said(resource, verdict, deployment, known),
                generation=resource.generation,
                now=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            ),
        }
        changed = {key for key, value in status.items() if before.get(key) != value}
        if not changed or self._may_wait(resource.uid, before, status, changed):
            return
        self._written[resource.uid] = self._clock.monotonic()
        await self._api.patch_status(resource.kind, resource.name, status)
        for event, reason, message in transitions(
            before.get("conditions") or [], status["conditions"]
        ):
            await self._post(document, event, reason, message, now)

    def _may_wait(
        self, uid: str, before: Mapping[str, Any], status: Mapping[str, Any], changed: set[str]
    ) -> bool:
        """Whether only what changes often did, and it was told a moment ago."""
        if not changed <= {*details(None), "conditions"}:
            return False
        if _gist(before.get("conditions") or ()) != _gist(status["conditions"]):
            return False
        since = self._clock.monotonic() - self._written.get(uid, float("-inf"))
        if since >= QUIET:
            return False
        self._again(QUIET - since)
        return True

    def _said(
        self,
        resource: Resource[Any],
        verdict: Verdict,
        deployment: dict[str, Any] | None,
        known: Known,
    ) -> list[Said]:
        available = None
        if resource.kind == "Plugin" and resource.spec is not None:
            if resource.spec.image is not None:
                refused = known.refused.get(resource.name, "")
                available = refused_aspect(refused) if refused else available_aspect(deployment)
            if verdict.waits and available is not None and available.ok:
                self._serves()
        health = serving = None
        if resource.kind == "ProviderCredential" and resource.spec is not None:
            standing = known.standings.get(resource.name)
            health = refresh_said(resource.name, resource.spec, standing)
            reported = any(i.kind == "scheduler" and i.ready for i in known.instances)
            serving = serving_aspect(resource.name, resource.spec, standing, reported=reported)
        if verdict.off:
            serving = disabled_aspect(verdict.off)
        return summarise(
            verdict,
            available=available,
            programmed=_programmed(resource, verdict, known),
            health=health,
            serving=serving,
        )

    def _fields(
        self, resource: Resource[Any], deployment: dict[str, Any] | None, known: Known
    ) -> dict[str, Any]:
        if resource.kind == "Plugin":
            return self._plugin_fields(resource, deployment) if resource.spec is not None else {}
        if resource.kind == "ClientKey" and resource.spec is not None:
            ref = resource.spec.secret_ref
            return {"secretName": ref.name if ref else generated_key_name(resource.name)}
        if resource.kind == "ProviderCredential":
            index = hashlib.sha256(resource.name.encode()).hexdigest()[:12]
            return {"authIndex": index, **details(known.standings.get(resource.name))}
        return {}

    def _plugin_fields(
        self, resource: Resource[PluginSpec], deployment: dict[str, Any] | None
    ) -> dict[str, Any]:
        seen = (deployment or {}).get("status") or {}
        assert resource.spec is not None
        return {
            "pluginId": resource.spec.id or resource.name,
            "replicas": int(seen.get("replicas") or 0),
            "readyReplicas": int(seen.get("readyReplicas") or 0),
            "selector": selector_text(selector(resource.name, self._at.name)),
        }

    async def _post(
        self,
        document: dict[str, Any],
        kind: str,
        reason: str,
        message: str,
        now: dt.datetime,
    ) -> None:
        metadata = document["metadata"]
        at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}"},
            "involvedObject": {
                "apiVersion": KINDS[document["kind"]].api_version,
                "kind": document["kind"],
                "name": metadata["name"],
                "namespace": self._at.namespace,
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "reason": reason,
            "message": message[:1024],
            "type": kind,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": "patchbay-operator"},
            "reportingComponent": "patchbay-operator",
            "reportingInstance": "patchbay-operator",
        }
        try:
            await self._api.create(event)
        except PatchbayError as error:
            _log.warning("an Event is not posted", why=error.message)


def _programmed(resource: Resource[Any], verdict: Verdict, known: Known) -> Aspect | None:
    if not verdict.included and not verdict.off:
        return None
    version = known.held.get((resource.uid, resource.generation))
    if version is None:
        why = known.problem or "its newest form is about to be published"
        return Aspect(ok=False, reason="NotYetProgrammed", message=why)
    id_ = ""
    if resource.kind == "Plugin" and resource.spec is not None and resource.spec.enabled:
        id_ = resource.spec.id or resource.name
    return programmed_aspect(known.instances, version, id_, off=bool(verdict.off))


def _gist(conditions: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    return [(c["type"], c["status"], c["reason"], c.get("observedGeneration")) for c in conditions]
