"""
What is done about each key of the queue: the operator's loop of observe, decide, act.

    snapshot        everything is read anew, drafted and published; Plugins whose inputs changed are queued
    Plugin          its objects are applied, those it no longer wants are deleted
    ClientKey       its Secret is made, once
    access          the scheduler may read the Secrets of credentials, and nothing else
    endpoints       ready addresses of plugins, executors and schedulers go to Redis
    status          what is known of each resource is written where it changed (statuses.py)

All of it is idempotent, for two operators may lead for a moment. Not here: watching (watching.py), decisions
(draft.py, conditions.py), objects (`objects`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import keys, logs
from patchbay_gateway.plugins.told_models import with_told
from patchbay_operator.access import build_role, state_secret
from patchbay_operator.api.status import READY
from patchbay_operator.cluster import Conflicted, Gone, Refused
from patchbay_operator.draft import draft
from patchbay_operator.gathering import RESOURCES, gather, versions
from patchbay_operator.objects.naming import (
    SERVICE_LABEL,
    addressed,
    child_name,
    generated_key_name,
    owned,
    state_secret_name,
)
from patchbay_operator.objects.workload import Given, build_children, references
from patchbay_operator.resources import understand
from patchbay_operator.statuses import Known, Statuses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.plugins.instances import Instance
    from patchbay_gateway.plugins.reports import Standing
    from patchbay_gateway.plugins.told_models import PluginTold
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.cluster import KubeApi
    from patchbay_operator.draft import Draft
    from patchbay_operator.gathering import Values, World
    from patchbay_operator.installation import Installation
    from patchbay_operator.publishing import Gateway
    from patchbay_operator.resources import Resource
    from patchbay_operator.workqueue import WorkQueue

Key = tuple[str, str]
SNAPSHOT: Final[Key] = ("snapshot", "")
STATUS: Final[Key] = ("status", "")
ENDPOINTS: Final[Key] = ("endpoints", "")
ACCESS: Final[Key] = ("access", "")

_CHILDREN: Final = (
    "HorizontalPodAutoscaler",
    "CiliumNetworkPolicy",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Deployment",
    "Service",
    "ConfigMap",
    "ServiceAccount",
)
_log = logs.get_logger("operator")


class Controller:
    """
    The work.

    Args:
        api: The namespace.
        gateway: Where snapshots go and who runs them.
        installation: Names and rules.
        roots: `plugins` and `cluster`.
        values: Reads the values' configuration; blocking.
        clock: Time.
    """

    def __init__(
        self,
        api: KubeApi,
        gateway: Gateway,
        installation: Installation,
        roots: Roots,
        *,
        values: Callable[[], Values],
        clock: Clock,
    ) -> None:
        self._api = api
        self._gateway = gateway
        self._at = installation
        self._roots = roots
        self._read_values = values
        self._clock = clock
        self._values: Values | None = None
        self._draft: Draft | None = None
        self._world: World | None = None
        self._served: set[str] = set()
        """uids of Plugins whose pods were ready once."""
        self._wanted: dict[str, str] = {}
        """Plugin → digest of all that its objects depend on, as last queued."""
        self._applied: dict[str, int] = {}
        """Plugin → generation of its Deployment after our last apply."""
        self._refused: dict[str, str] = {}
        """Plugin → which of its objects the API server refuses, and why."""
        self._held: dict[tuple[str, int], int] = {}
        """(uid, generation) → first version that holds it, as far as we know."""
        self._published = 0
        self._seen_versions: dict[str, str] = {}
        self._away: set[str] = set()
        """Which of `gateway` and `api` did not answer when it was last looked at."""
        self._instances: Sequence[Instance] = ()
        self._standings: Mapping[str, Standing] = {}
        self._told: dict[str, PluginTold] = {}
        self._reports_seen = -1
        self._statuses = Statuses(
            api,
            installation,
            clock=clock,
            serves=lambda: self._add(SNAPSHOT),
            again=self._look_later,
        )
        self.problem = ""
        """Why the last snapshot was not published, for people."""
        self.queue: WorkQueue[Key] | None = None

    def _add(self, key: Key) -> None:
        assert self.queue is not None
        self.queue.add(key)

    async def work(self, key: Key) -> None:
        """Do what *key* needs. Raises what the API server and Redis raise."""
        kind, name = key
        if key == SNAPSHOT:
            await self._snapshot()
        elif key == STATUS:
            await self._write_statuses()
        elif key == ENDPOINTS:
            await self._endpoints()
        elif key == ACCESS:
            await self._access()
        elif kind == "Plugin":
            await self._plugin(name)
        elif kind == "ClientKey":
            await self._client_key(name)

    def resync(self) -> None:
        """Have everything looked at again: drift, and what a watch may have lost."""
        self._wanted.clear()
        for key in (SNAPSHOT, ENDPOINTS, ACCESS):
            self._add(key)

    def deployment_seen(self, plugin: str, generation: int) -> None:
        """Take note of a Deployment's event; one that somebody else changed is put right."""
        if plugin in self._applied and self._applied[plugin] != generation:
            self._add(("Plugin", plugin))
        self._add(STATUS)

    # Snapshot -----------------------------------------------------------------------------------

    async def _snapshot(self) -> None:
        try:
            self._values = await asyncio.to_thread(self._read_values)
        except PatchbayError as error:
            self.problem = f"the values' configuration is not used: {error.message}"
            _log.error("the values' configuration is not used", why=error.message)
            if self._values is None:
                raise
        assert self._values is not None
        world = await gather(self._api, self._values, self._roots.cluster[0], served=self._served)
        serving = world.gathered.serving
        self._served = {p.uid for p in world.gathered.plugins if p.name in serving}
        found = draft(world.gathered, self._at)
        self._draft, self._world = found, world
        self._seen_versions = dict(world.versions)
        self._queue_changed(world, found)
        try:
            previous = await self._gateway.current()
            await self._read_reports()
            made = found.snapshot(previous, self._clock.now())
            published = await self._gateway.publish(with_told(made, previous, self._told))
        except PatchbayError as error:
            self.problem = f"the snapshot is not published: {error.message}"
            self._add(STATUS)
            raise
        self.problem = ""
        if published.version != self._published:
            _log.info("snapshot", version=published.version, plugins=len(published.plugins))
        self._published = published.version
        self._note_held(world, found)
        self._add(STATUS)

    def _note_held(self, world: World, found: Draft) -> None:
        held = {}
        for (kind, name), document in world.documents.items():
            verdict = found.verdicts.get((kind, name))
            if verdict is not None and (verdict.included or verdict.off):
                mark = (document["metadata"]["uid"], document["metadata"].get("generation", 1))
                held[mark] = self._held.get(mark, self._published)
        self._held = held

    def _queue_changed(self, world: World, found: Draft) -> None:
        """Queue the Plugins whose inputs changed, and ClientKeys without a Secret."""
        wanted = {}
        for resource in world.gathered.plugins:
            verdict = found.verdicts[resource.key]
            if resource.spec is None or not verdict.accepted.ok:
                continue
            given = self._given(resource, world)
            parts = [resource.uid, str(resource.generation), given.config, given.key]
            parts += [f"{k}={v}" for k, v in sorted(given.versions.items())]
            wanted[resource.name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        for name, digest in wanted.items():
            if self._wanted.get(name) != digest:
                self._add(("Plugin", name))
        self._wanted = wanted
        for name in set(self._applied) - set(wanted):
            self._applied.pop(name)
        for key in world.gathered.client_keys:
            made = generated_key_name(key.name)
            if key.spec and key.spec.secret_ref is None and f"Secret/{made}" not in world.versions:
                self._add(("ClientKey", key.name))
        self._add(ACCESS)

    # Plugins ------------------------------------------------------------------------------------

    def _given(self, resource: Resource[PluginSpec], world: World) -> Given:
        assert resource.spec is not None
        assert self._draft is not None
        id_ = resource.spec.id or resource.name
        config = next((p.config_yaml() for p in self._draft.config.plugins if p.id == id_), "")
        lines = [keys.plugin_key(root, id_).hex() for root in self._roots.plugins]
        named = references(resource.spec)
        return Given(
            uid=resource.uid,
            config=config,
            key="".join(f"{line}\n" for line in lines),
            versions={name: world.versions.get(name, "") for name in named},
        )

    async def _plugin(self, name: str) -> None:
        document = await self._api.get("Plugin", name)
        if document is None or document["metadata"].get("deletionTimestamp"):
            self._applied.pop(name, None)
            self._refused.pop(name, None)
            return  # its objects go with it
        resource = understand(document)
        if resource.spec is None or self._world is None or self._draft is None:
            self._add(SNAPSHOT)
            return
        verdict = self._draft.verdicts.get(resource.key)
        if verdict is None or not verdict.accepted.ok:
            return
        children = build_children(name, resource.spec, self._at, self._given(resource, self._world))
        try:
            for child in children:
                refused = child["kind"]
                applied = await self._api.apply(child)
                if child["kind"] == "Deployment":
                    self._applied[name] = applied["metadata"]["generation"]
        except Refused as error:
            # Other plugins are not its affair; whoever wrote this one reads its status, not our log.
            self._refused[name] = f"{refused}: {error.message}"
            self._add(STATUS)
            raise
        self._refused.pop(name, None)
        await self._prune(resource, {child["kind"] for child in children})
        self._add(STATUS)

    async def _prune(self, resource: Resource[Any], wanted: set[str]) -> None:
        """Delete what this Plugin had and no longer wants."""
        for kind in _CHILDREN:
            if kind in wanted or (kind == "CiliumNetworkPolicy" and not self._at.cilium):
                continue
            found = await self._api.get(kind, child_name(resource.name))
            owners = (found or {}).get("metadata", {}).get("ownerReferences") or []
            if any(owner["uid"] == resource.uid for owner in owners):
                await self._api.delete(kind, child_name(resource.name))

    # Keys and rights ----------------------------------------------------------------------------

    async def _client_key(self, name: str) -> None:
        document = await self._api.get("ClientKey", name)
        if document is None or document["spec"].get("secretRef"):
            return
        made = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": generated_key_name(name),
                "labels": {
                    "app.kubernetes.io/part-of": "patchbay",
                    "app.kubernetes.io/managed-by": "patchbay-operator",
                },
                "ownerReferences": owned("ClientKey", name, document["metadata"]["uid"]),
            },
            "type": "Opaque",
            "stringData": {"key": f"pb-{secrets.token_urlsafe(32)}"},
        }
        try:
            await self._api.create(made)
        except Conflicted:
            _log.info("the key is there already", client_key=name)
        self._add(SNAPSHOT)

    async def _access(self) -> None:
        """Keep the Role of the scheduler, and the Secrets for rotated tokens."""
        if self._world is None:
            return
        credentials = self._world.gathered.credentials
        for credential in credentials:
            name = state_secret_name(credential.name)
            if f"Secret/{name}" not in self._world.versions:
                try:
                    await self._api.create(state_secret(credential))
                except Conflicted:
                    _log.info("the Secret is there already", secret=name)
        await self._api.apply(build_role(self._at, credentials))

    # Endpoints ----------------------------------------------------------------------------------

    async def _endpoints(self) -> None:
        found: dict[str, list[str]] = {}
        at = self._at
        for item in await self._api.list("EndpointSlice", labels=addressed(at.name)):
            service = item["metadata"]["labels"][SERVICE_LABEL]
            host = f"{service}.{at.namespace}.svc.{at.cluster_domain}."
            for endpoint in item.get("endpoints") or ():
                if (endpoint.get("conditions") or {}).get("ready") is not False:
                    found.setdefault(host, []).extend(endpoint.get("addresses") or ())
        await self._gateway.set_endpoints(found)

    # Status -------------------------------------------------------------------------------------

    async def _write_statuses(self) -> None:
        if self._draft is not None and self._world is not None:
            documents = self._world.documents
            known = Known(
                draft=self._draft,
                held=self._held,
                instances=self._instances,
                standings=self._standings,
                refused=self._refused,
                problem=self.problem,
                judged={key: _mark(document["metadata"]) for key, document in documents.items()},
            )
            await self._statuses.write(known)

    def _look_later(self, seconds: float) -> None:
        assert self.queue is not None
        self.queue.add_later(STATUS, seconds)

    # Looking now and then -----------------------------------------------------------------------

    async def look_at_gateway(self) -> None:
        """Take note of who runs which version; put back a snapshot that Redis lost."""
        async with self._noticing("gateway", SNAPSHOT, ENDPOINTS):
            instances = await self._gateway.instances()
        if list(instances) != list(self._instances):
            self._instances = instances
            self._add(STATUS)
        told = dict(self._told)
        if await self._read_reports():
            self._add(STATUS)
            if told != self._told:
                self._add(SNAPSHOT)
        # As it was before Redis is asked: a newer one may be published meanwhile.
        published = self._published
        if published and await self._gateway.version() < published:
            _log.warning("Redis has lost the snapshot")
            self._add(SNAPSHOT)
            self._add(ENDPOINTS)

    async def _read_reports(self) -> bool:
        """Read what schedulers report, if that is news; whether it is."""
        version = await self._gateway.reports_version()
        # Redis may have lost them, or some: what is not reported anew stays as it was.
        if version == self._reports_seen:
            return False
        told, standings = await self._gateway.reports()
        self._reports_seen = version
        known = {p.id for p in self._draft.config.plugins} if self._draft is not None else set()
        self._told = {id_: t for id_, t in self._told.items() if id_ in known} | told
        declared = self._world.gathered.credentials if self._world is not None else ()
        names = {credential.name for credential in declared}
        self._standings = {i: s for i, s in self._standings.items() if i in names} | standings
        return True

    async def look_at_objects(self) -> None:
        """Notice changed Secrets and ConfigMaps."""
        if self._world is None:
            return
        async with self._noticing("api", SNAPSHOT, ENDPOINTS, ACCESS):
            seen = await versions(self._api)
        if seen != self._seen_versions:
            self._seen_versions = seen
            self._add(SNAPSHOT)

    @contextlib.asynccontextmanager
    async def _noticing(self, which: str, *keys: Key) -> AsyncIterator[None]:
        """Queue *keys* when *which* answers again: their backoffs may have grown to minutes meanwhile."""
        try:
            yield
        except Unavailable:
            self._away.add(which)
            raise
        if which in self._away:
            self._away.discard(which)
            for key in keys:
                self._add(key)

    async def diff(self) -> dict[Key, str]:
        """
        Compare what there is with what was last drafted, whatever a watch told or lost.

        Returns:
            (kind, name) → resourceVersion of all resources.
        """
        found, marks = {}, {}
        for kind in RESOURCES:
            try:
                items = await self._api.list(kind, metadata_only=True)
            except Gone:
                continue  # its definition is not installed
            for item in items:
                metadata = item["metadata"]
                found[kind, metadata["name"]] = metadata["resourceVersion"]
                if not metadata.get("deletionTimestamp"):
                    marks[kind, metadata["name"]] = _mark(metadata)
        known = self._world.documents if self._world is not None else {}
        # What the first snapshot waits for may have come: definitions, values, the API server.
        if self._world is None or marks != {
            key: _mark(document["metadata"]) for key, document in known.items()
        }:
            self._add(SNAPSHOT)
        return found


def _mark(metadata: Mapping[str, Any]) -> tuple[str, int]:
    return metadata["uid"], metadata.get("generation", 1)


__all__ = ["ACCESS", "ENDPOINTS", "READY", "SNAPSHOT", "STATUS", "Controller"]
