"""
A namespace of an API server in memory, as far as the operator's port promises it; and a gateway beside it.

uids, generations and resourceVersions, metadata alone where asked, statuses apart from specs, children that
go with their owners, and failures one by one. What rules and defaults do, the real API server tells
(tests/integration/operator).
"""

from __future__ import annotations

import base64
import copy
import itertools
from typing import TYPE_CHECKING, Any

import msgspec

from patchbay_gateway.plugins.instances import Instance
from patchbay_operator.cluster import KINDS, Conflicted, Gone, KubeApi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from patchbay.errors import PatchbayError
    from patchbay_gateway.plugins.reports import Standing
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.plugins.told_models import PluginTold

API = "patchbay.dev/v1alpha1"


class FakeKube(KubeApi):
    """The namespace."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.failures: list[PatchbayError | None] = []
        """What the next calls fail with; None: it succeeds."""
        self.writes: list[str] = []
        """Verb, kind and name of each."""
        self._numbers = itertools.count(1)

    # As a person does it -------------------------------------------------------------------------

    def put(self, kind: str, name: str, spec: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Make or change an object."""
        document = {"kind": kind, "metadata": {"name": name}, **more}
        if spec is not None:
            document |= {"apiVersion": API, "spec": dict(spec)}
        self._store(document)

    def secret(self, name: str, **values: str) -> None:
        """Make or change a Secret."""
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
        self.put("Secret", name, data=encoded)

    def remove(self, kind: str, name: str) -> None:
        """Delete an object and what it owns."""
        gone = self.objects.pop((kind, name))
        for key, document in list(self.objects.items()):
            owners = document["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == gone["metadata"]["uid"] for owner in owners):
                self.remove(*key)

    def condition(self, kind: str, name: str, type_: str) -> tuple[str, str]:
        """Return status and reason of a condition."""
        conditions = self.objects[kind, name].get("status", {}).get("conditions", ())
        return next(
            ((c["status"], c["reason"]) for c in conditions if c["type"] == type_), ("", "")
        )

    # The port ------------------------------------------------------------------------------------

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        self._fail()
        found = self.objects.get((kind, name))
        return copy.deepcopy(found) if found is not None else None

    async def list(
        self, kind: str, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> list[dict[str, Any]]:
        self._fail()
        found = [copy.deepcopy(d) for (k, _), d in sorted(self.objects.items()) if k == kind]
        if fields:
            found = [d for d in found if d["metadata"]["name"] == fields.partition("=")[2]]
        for part in filter(None, labels.split(",")):
            key, _, value = part.partition("=")
            found = [d for d in found if key in d["metadata"].get("labels", {})]
            found = [d for d in found if not value or d["metadata"]["labels"][key] == value]
        if metadata_only:
            found = [{k: d[k] for k in ("apiVersion", "kind", "metadata") if k in d} for d in found]
        return found

    async def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return self._write("apply", document)

    async def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        if (document["kind"], document["metadata"]["name"]) in self.objects:
            self._fail()
            raise Conflicted("it is there already")
        return self._write("create", document)

    async def replace(self, document: Mapping[str, Any]) -> dict[str, Any]:
        found = self.objects.get((document["kind"], document["metadata"]["name"]))
        if found is None:
            raise Gone("it is gone")
        if found["metadata"]["resourceVersion"] != document["metadata"]["resourceVersion"]:
            raise Conflicted("it was changed")
        return self._write("replace", document)

    async def patch_status(
        self, kind: str, name: str, status: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        self._fail()
        document = self.objects.get((kind, name))
        if document is None:
            return None
        self.writes.append(f"status {kind} {name}")
        merged = {**document.get("status", {}), **copy.deepcopy(dict(status))}
        document["status"] = {key: value for key, value in merged.items() if value is not None}
        document["metadata"]["resourceVersion"] = str(next(self._numbers))
        return copy.deepcopy(document)

    async def delete(self, kind: str, name: str) -> None:
        self._fail()
        if (kind, name) in self.objects:
            self.writes.append(f"delete {kind} {name}")
            self.remove(kind, name)

    def _fail(self) -> None:
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure

    def _write(self, verb: str, document: Mapping[str, Any]) -> dict[str, Any]:
        self._fail()
        assert document["kind"] in KINDS
        self.writes.append(f"{verb} {document['kind']} {document['metadata']['name']}")
        return copy.deepcopy(self._store(document))

    def _store(self, given: Mapping[str, Any]) -> dict[str, Any]:
        document = copy.deepcopy(dict(given))
        key = (document["kind"], document["metadata"]["name"])
        before = self.objects.get(key)
        for name, value in (document.pop("stringData", None) or {}).items():
            document.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
        metadata = document["metadata"]
        kept = before["metadata"] if before is not None else {}
        same = before is not None and before.get("spec") == document.get("spec")
        metadata["uid"] = kept.get("uid") or f"uid-{next(self._numbers)}"
        metadata["generation"] = kept.get("generation", 0) + (0 if same else 1)
        metadata["resourceVersion"] = str(next(self._numbers))
        metadata["creationTimestamp"] = kept.get("creationTimestamp") or "2026-01-01T00:00:00Z"
        if before is not None and "status" in before:
            document["status"] = before["status"]
        self.objects[key] = document
        return document


class FakeGateway:
    """What is published, who runs it, and what schedulers report."""

    def __init__(self) -> None:
        self.published: Snapshot | None = None
        self.endpoints: dict[str, list[str]] = {}
        self.told: dict[str, PluginTold] = {}
        self.standings: dict[str, Standing] = {}
        self.reported = 0
        self.away: PatchbayError | None = None
        self.reports_away: PatchbayError | None = None
        self.after_version: Callable[[], Awaitable[None]] | None = None
        """Happens once the version has been read, and before it is told."""

    def report(self, **standings: Standing) -> None:
        """Report as a scheduler does."""
        self.standings.update(standings)
        self.reported += 1

    def lose_everything(self) -> None:
        """Flush."""
        self.published, self.told, self.standings, self.reported = None, {}, {}, 0

    def _ask(self) -> None:
        if self.away is not None:
            raise self.away

    def _version(self) -> int:
        return self.published.version if self.published is not None else 0

    async def current(self) -> Snapshot | None:
        self._ask()
        return self.published

    async def publish(self, draft: Snapshot) -> Snapshot:
        self._ask()
        version = self._version() + 1
        self.published = msgspec.structs.replace(draft, version=version)
        return self.published

    async def version(self) -> int:
        self._ask()
        version = self._version()
        if self.after_version is not None:
            await self.after_version()
        return version

    async def set_endpoints(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        self._ask()
        self.endpoints = {host: list(found) for host, found in endpoints.items()}

    async def instances(self) -> list[Instance]:
        self._ask()
        return [Instance("edge-1", "edge", self._version(), ready=True)]

    async def reports_version(self) -> int:
        self._ask()
        return self.reported

    async def reports(self) -> tuple[dict[str, PluginTold], dict[str, Standing]]:
        self._ask()
        if self.reports_away is not None:
            raise self.reports_away
        return dict(self.told), dict(self.standings)
