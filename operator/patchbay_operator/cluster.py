"""
The API server, as far as the operator uses it: documents in, documents out.

`KubeApi` is the port; `LightkubeApi` is the adapter, which leaves addresses, certificates and tokens (read
again when they are refused) to lightkube. Every failure is one of three: `Gone` (there is no such thing, or
its kind is unknown), `Conflicted` (somebody wrote meanwhile) or `Unavailable` with what the server said. Not
here: watching (kopf does), what is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx2 as httpx
import orjson
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams

from patchbay.errors import Aborted, FailedPrecondition, NotFound, PatchbayError, Unavailable
from patchbay_operator.objects.naming import MANAGER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Observe = Callable[[str, int, float], None]
    """Told verb, status (0: none arrived) and seconds of each call."""

_METADATA_ONLY: Final = (
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
)
_CHUNK: Final = "500"
_TIMEOUT: Final = 20.0


class Gone(NotFound):
    """There is no such object, or the API server does not know its kind."""

    default_reason = "KUBERNETES_NOT_FOUND"


class Conflicted(Aborted):
    """Somebody else changed or made the object meanwhile."""

    default_reason = "KUBERNETES_CONFLICT"


class Refused(FailedPrecondition):
    """The API server does not do it: invalid, or forbidden. Trying again changes nothing by itself."""

    default_reason = "KUBERNETES_REFUSED"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects, as URLs name it."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of one object, or of all."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        path = f"{root}{self.api_version}/namespaces/{namespace}/{self.plural}"
        return f"{path}/{name}" if name else path


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("patchbay.dev/v1alpha1", "Plugin", "plugins"),
        Kind("patchbay.dev/v1alpha1", "ProviderCredential", "providercredentials"),
        Kind("patchbay.dev/v1alpha1", "ModelRoute", "modelroutes"),
        Kind("patchbay.dev/v1alpha1", "ClientKey", "clientkeys"),
        Kind("v1", "ServiceAccount", "serviceaccounts"),
        Kind("v1", "ConfigMap", "configmaps"),
        Kind("v1", "Secret", "secrets"),
        Kind("v1", "Service", "services"),
        Kind("v1", "Event", "events"),
        Kind("v1", "Pod", "pods"),
        Kind("apps/v1", "Deployment", "deployments"),
        Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
        Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
        Kind("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
        Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
        Kind("coordination.k8s.io/v1", "Lease", "leases"),
        Kind("rbac.authorization.k8s.io/v1", "Role", "roles"),
        Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    )
}


class KubeApi(Protocol):
    """One namespace of a cluster. All methods raise Gone, Conflicted, Refused or Unavailable."""

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return the object; None when there is none."""
        ...

    async def list(
        self, kind: str, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> list[dict[str, Any]]:
        """Return all objects that the selectors choose; Gone when the kind is unknown."""
        ...

    async def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Apply *document* by server-side apply, by force: what the operator owns is its own."""
        ...

    async def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Create; Conflicted when it is there already."""
        ...

    async def replace(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Replace; Conflicted when its resourceVersion is an older one."""
        ...

    async def patch_status(
        self, kind: str, name: str, status: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Merge *status*; None when the object is gone."""
        ...

    async def delete(self, kind: str, name: str) -> None:
        """Delete; nothing happens when it is gone."""
        ...


class LightkubeApi:
    """
    The adapter.

    Args:
        namespace: All calls are about it.
        config: Of the cluster; None: that of the pod, or of KUBECONFIG.
        observe: Told of each call, for metrics.
    """

    def __init__(
        self,
        namespace: str,
        *,
        config: KubeConfig | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._namespace = namespace
        single = (config or KubeConfig.from_env()).get()
        assert single is not None
        self._client = AsyncClient(single, ConnectionParams(timeout=httpx.Timeout(_TIMEOUT)))
        self._observe = observe or (lambda _verb, _status, _seconds: None)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return the object; None when there is none."""
        try:
            return await self._call("GET", self._path(kind, name))
        except Gone:
            return None

    async def list(
        self, kind: str, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> list[dict[str, Any]]:
        """Return all objects that the selectors choose."""
        query = {"limit": _CHUNK}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        headers = {"accept": _METADATA_ONLY[1]} if metadata_only else {}
        found: list[dict[str, Any]] = []
        while True:
            try:
                page = await self._call("GET", self._path(kind), query=query, headers=headers)
            except Gone as error:
                if "continue" not in query:
                    raise
                # The rest of a list expires within minutes; its kind is there.
                raise Unavailable(error.message, reason="KUBERNETES_UNAVAILABLE") from error
            found += page.get("items") or []
            token = page.get("metadata", {}).get("continue")
            if not token:
                break
            query["continue"] = token
        for item in found:  # a list says once what its items are
            item.setdefault("kind", kind)
            item.setdefault("apiVersion", KINDS[kind].api_version)
        return found

    async def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Apply by force."""
        return await self._call(
            "PATCH",
            self._path(document["kind"], document["metadata"]["name"]),
            query={"fieldManager": MANAGER, "force": "true"},
            body=document,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    async def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Create."""
        return await self._call(
            "POST", self._path(document["kind"]), query={"fieldManager": MANAGER}, body=document
        )

    async def replace(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Replace."""
        return await self._call(
            "PUT",
            self._path(document["kind"], document["metadata"]["name"]),
            query={"fieldManager": MANAGER},
            body=document,
        )

    async def patch_status(
        self, kind: str, name: str, status: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Merge the status."""
        try:
            return await self._call(
                "PATCH",
                f"{self._path(kind, name)}/status",
                query={"fieldManager": f"{MANAGER}-status"},
                body={"status": status},
                headers={"content-type": "application/merge-patch+json"},
            )
        except Gone:
            return None

    async def delete(self, kind: str, name: str) -> None:
        """Delete."""
        try:
            await self._call("DELETE", self._path(kind, name))
        except Gone:
            return

    def _path(self, kind: str, name: str = "") -> str:
        return KINDS[kind].path(self._namespace, name)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        content = orjson.dumps(body) if body is not None else None
        sent = {"accept": "application/json", "content-type": "application/json", **(headers or {})}
        started = time.perf_counter()
        status = 0
        try:
            answer = await self._client.request(
                method, path, params=query, content=content, headers=sent
            )
            status = answer.status_code
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the API server does not answer {method} {path}: {str(error) or type(error).__name__}",
                reason="KUBERNETES_UNAVAILABLE",
            ) from error
        finally:
            self._observe(method, status, time.perf_counter() - started)
        if status < 300:
            found: dict[str, Any] = orjson.loads(answer.content) if answer.content else {}
            return found
        raise _failure(status, answer.content, f"{method} {path}", answer.headers)


def _failure(status: int, content: bytes, call: str, headers: Mapping[str, str]) -> PatchbayError:
    try:
        message = str(orjson.loads(content).get("message", ""))
    except (orjson.JSONDecodeError, AttributeError):
        message = content[:200].decode(errors="replace")
    text = f"{call}: {status} {message}"
    if status in {404, 410}:
        return Gone(text)
    if status == 409:
        return Conflicted(text)
    # A field that the schema does not know is a 500 in server-side apply.
    if status in {400, 403, 415, 422} or "failed to create typed patch object" in message:
        return Refused(text)
    wait = headers.get("retry-after", "")
    return Unavailable(
        text,
        reason="KUBERNETES_UNAVAILABLE",
        retry_after=float(wait) if wait.isdigit() else None,
    )
