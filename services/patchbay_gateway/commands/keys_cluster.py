"""
Client keys in a cluster: ClientKey resources, whose Secrets the operator makes.

With the rights of whoever calls, by the configuration that kubectl uses. lightkube is imported when a cluster
is asked for, and is an extra of the wheel. Not here: what the operator does with them.
"""

from __future__ import annotations

import base64
import binascii
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay_gateway.commands.keys import Created, Listed, Revoked, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import httpx2 as httpx

_GROUP: Final = "patchbay.dev/v1alpha1"
_LOOK_EVERY: Final = 0.25
_MERGE: Final = "application/merge-patch+json"
_OPERATOR: Final = "kubectl get pods -l app.kubernetes.io/component=operator"


class ClusterKeys:
    """
    The ClientKeys of a namespace.

    Args:
        client: Of the API server.
        namespace: Theirs.
        patience: Seconds to wait for others.
    """

    def __init__(self, client: httpx.Client, namespace: str, *, patience: float) -> None:
        self._client = client
        self._namespace = namespace
        self._patience = patience

    @classmethod
    def connect(cls, *, namespace: str = "", context: str = "", patience: float) -> ClusterKeys:
        """
        Return the keys of a namespace; by default of kubectl's context, and of its namespace.

        Raises:
            FailedPrecondition: lightkube is not installed, or there is no such cluster.
        """
        try:
            import httpx2  # noqa: PLC0415 - the extra `kubernetes`
            from lightkube import KubeConfig  # noqa: PLC0415 - the same
            from lightkube.config.client_adapter import (  # noqa: PLC0415 - the same
                Client,
                ConnectionParams,
            )
            from lightkube.core.exceptions import ConfigError  # noqa: PLC0415 - the same
        except ImportError as error:
            raise errors.FailedPrecondition(
                "keys of a cluster need an extra: pip install 'patchbay-gateway[kubernetes]'; or "
                "apply a ClientKey with kubectl"
            ) from error
        try:
            single = KubeConfig.from_env().get(context or None)
        except (ConfigError, OSError) as error:
            raise errors.FailedPrecondition(
                f"no cluster can be reached: {error}; set KUBECONFIG, or name another --context"
            ) from error
        assert single is not None
        client = Client(single, ConnectionParams(timeout=httpx2.Timeout(10.0)))
        return cls(client, namespace or single.namespace, patience=patience)

    def list(self) -> Sequence[Listed]:
        """Return all keys, by name."""
        found = self._call("GET", self._path())
        items = sorted((found or {}).get("items") or [], key=lambda i: str(i["metadata"]["name"]))
        return [_listed(item) for item in items]

    def create(self, wish: Wish) -> Created:
        """Make a ClientKey and wait until edges accept it."""
        spec: dict[str, Any] = {"models": list(wish.models), "tenant": wish.tenant}
        if wish.secret:
            named, _, within = wish.secret.partition("/")
            spec["secretRef"] = {"name": named, "key": within or "key"}
        document = {
            "apiVersion": _GROUP,
            "kind": "ClientKey",
            "metadata": {"name": wish.name},
            "spec": spec,
        }
        self._call("POST", self._path(), document)
        deadline = time.monotonic() + self._patience
        status = self._wait(wish.name, _has_key, deadline)
        secret = str(status.get("secretName") or "")
        if not _has_key(status):
            raise errors.Unavailable(
                f"the ClientKey {wish.name} is made, its key is not usable yet: "
                f"{_why(status)}; it becomes so by itself once that is mended"
            )
        key: str | None = None
        note = ""
        if not wish.secret:
            key, note = self._read(secret)
        status = self._wait(wish.name, _is_programmed, deadline)
        accepted = _is_programmed(status)
        if not accepted:
            note = f"{note} No edge has confirmed it: {_why(status)}.".strip()
        return Created(wish.name, key, f"Secret {secret}", accepted, note)

    def revoke(self, name: str) -> Revoked:
        """Disable a ClientKey, wait until every edge leaves it out, and delete it."""
        body = {"spec": {"disabled": True}}
        found = self._call("PATCH", self._path(name), body, content=_MERGE)
        assert found is not None
        generation = int(found["metadata"]["generation"])
        status = self._wait(
            name,
            lambda s: _is_off(s, generation),
            time.monotonic() + self._patience,
        )
        stopped = _now() if _is_off(status, generation) else None
        options = {"preconditions": {"uid": found["metadata"]["uid"]}}
        self._call("DELETE", self._path(name), options)
        ref = found["spec"].get("secretRef")
        note = (
            f"The Secret {ref['name']} is yours and stays." if ref else "Its Secret goes with it."
        )
        if stopped is None:
            note = (
                f"No edge has confirmed within {self._patience:.0f} s that it refuses the key: "
                f"{_why(status)}. Those that run do as soon as the operator tells them. {note}"
            )
        return Revoked(name, stopped, note)

    def _read(self, secret: str) -> tuple[str | None, str]:
        """Return the key in a Secret, or why it is not told."""
        told = f"kubectl get secret {secret} -n {self._namespace} -o jsonpath='{{.data.key}}' | base64 -d"
        try:
            found = self._call("GET", f"/api/v1/namespaces/{self._namespace}/secrets/{secret}")
            return base64.b64decode((found or {})["data"]["key"]).decode(), ""
        except (errors.PatchbayError, KeyError, binascii.Error, UnicodeDecodeError):
            return None, f"You may not read it; somebody who may: {told}"

    def _wait(
        self, name: str, holds: Callable[[Mapping[str, Any]], bool], deadline: float
    ) -> Mapping[str, Any]:
        """Return the status of a ClientKey as soon as it is as asked, or at the deadline as it is."""
        while True:
            document = self._call("GET", self._path(name)) or {}
            status: Mapping[str, Any] = document.get("status") or {}
            if holds(status) or time.monotonic() >= deadline:
                return status
            time.sleep(_LOOK_EVERY)

    def _path(self, name: str = "") -> str:
        path = f"/apis/{_GROUP}/namespaces/{self._namespace}/clientkeys"
        return f"{path}/{name}" if name else path

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content: str = "application/json",
    ) -> dict[str, Any] | None:
        import httpx2  # noqa: PLC0415 - the extra `kubernetes`
        from lightkube.core.exceptions import ConfigError  # noqa: PLC0415 - the same

        query = {"fieldManager": "patchbay"} if method in {"POST", "PATCH"} else None
        sent = orjson.dumps(body) if body is not None else None
        headers = {"accept": "application/json", "content-type": content}
        try:
            answer = self._client.request(method, path, params=query, content=sent, headers=headers)
        except (httpx2.HTTPError, ConfigError, OSError) as error:
            raise errors.Unavailable(
                f"the cluster does not answer: {str(error) or type(error).__name__}; is kubectl get "
                "clientkeys better off?"
            ) from error
        if answer.status_code < 300:
            found: dict[str, Any] = orjson.loads(answer.content)
            return found
        raise self._failure(answer.status_code, answer.content, method, path)

    def _failure(self, status: int, content: bytes, method: str, path: str) -> errors.PatchbayError:
        try:
            message = str(orjson.loads(content).get("message", ""))
        except (orjson.JSONDecodeError, AttributeError):
            message = ""
        name = path.partition("/clientkeys/")[2]
        where = f"namespace {self._namespace}"
        if status == 404 and "clientkeys" in path and not name:
            return errors.FailedPrecondition(
                f"the cluster does not know ClientKeys ({message.strip() or status}): "
                "helm install patchbay-crds charts/patchbay-crds"
            )
        if status == 404:
            return errors.NotFound(
                f"there is no ClientKey {name!r} in {where}; `patchbay keys list -n "
                f"{self._namespace}` names those that are; one of the chart's values is taken back there"
            )
        if status == 409 and method == "POST":
            return errors.FailedPrecondition(
                f"there is a key of that name in {where} already; choose another name, or revoke it first"
            )
        if status in {401, 403}:
            verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
            return errors.PermissionDenied(
                f"you may not {verb} this in {where}: {message}; ask for the right "
                f"(kubectl auth can-i {verb} clientkeys.patchbay.dev -n {self._namespace})"
            )
        return errors.FailedPrecondition(f"the cluster refuses it: {message or status}")


def _listed(document: Mapping[str, Any]) -> Listed:
    spec, status = document["spec"], document.get("status") or {}
    ready = _condition(status, "Ready")
    if document["metadata"].get("deletionTimestamp"):
        state, message = "going", ""
    elif not ready:
        state, message = "new", f"no operator has seen it yet; {_OPERATOR}"
    elif ready["status"] == "True":
        state, message = "ready", ""
    else:
        state, message = str(ready["reason"]), str(ready["message"])
    ref = spec.get("secretRef") or {}
    secret = status.get("secretName") or ref.get("name")
    return Listed(
        name=document["metadata"]["name"],
        models=spec.get("models") or ["*"],
        tenant=spec.get("tenant") or "default",
        state=state,
        message=message,
        created=document["metadata"].get("creationTimestamp"),
        source=f"Secret {secret}" if secret else "",
    )


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c["type"] == kind), {})


def _has_key(status: Mapping[str, Any]) -> bool:
    resolved = _condition(status, "ResolvedRefs").get("status") == "True"
    return resolved and _condition(status, "Accepted").get("status") == "True"


def _is_programmed(status: Mapping[str, Any], generation: int = 1) -> bool:
    found = _condition(status, "Programmed")
    seen = int(status.get("observedGeneration") or 0) >= generation
    return seen and found.get("status") == "True"


def _is_off(status: Mapping[str, Any], generation: int) -> bool:
    disabled = _condition(status, "Programmed").get("reason") == "Disabled"
    return disabled and _is_programmed(status, generation)


def _why(status: Mapping[str, Any]) -> str:
    ready = _condition(status, "Ready")
    if not ready:
        return f"no operator has seen it; {_OPERATOR}"
    return str(ready.get("message") or ready.get("reason"))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
